"""Writes the tables of studies/baselines/README.md into docs/choosing.md; with --check only says whether they are there."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/choosing.md"


def main():
    readme = (ROOT / "studies/baselines/README.md").read_text()
    tables = re.findall(r"^### (?:One hypergradient|After \d+ oracle calls).*?(?=^###? |\Z)", readme, re.M | re.S)
    assert len(tables) == 4, "studies/baselines/README.md should have four tables; run `bilevel reproduce baselines --full`."
    page = PAGE.read_text()
    begin, end = "<!-- baselines -->\n", "<!-- end of baselines -->\n"
    before, rest = page.split(begin)
    written = before + begin + "".join(tables) + end + rest.split(end)[1]
    if "--check" not in sys.argv:
        PAGE.write_text(written)
    elif written != page:
        raise SystemExit("docs/choosing.md has other tables than studies/baselines/README.md: run python studies/baselines/choosing.py.")


if __name__ == "__main__":
    main()
