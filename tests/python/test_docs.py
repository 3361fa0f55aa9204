"""The Python blocks of a page of the documentation run, in order, in one namespace; those of other libraries in tests/peers."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "```python" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for info, block in re.findall(r"^```python([^\n]*)\n(.*?)^```$", page.read_text(), re.M | re.S):
        if "library=" in info and "library=bilevel" not in info:
            continue
        exec(compile(block, str(page), "exec"), namespace)
