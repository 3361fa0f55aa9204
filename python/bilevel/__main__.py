"""``python -m bilevel`` and the ``bilevel`` command: the compiled one that is installed with the package."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    command = Path(__file__).parent / "bin" / "bilevel"
    if not command.exists():
        sys.exit(f"bilevel: the command is missing at {command}; install the package again (pip install .).")
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("bilevel: torch is not installed in this environment.")
    # The command finds torch beside the package; where the two live apart, the loader is told.
    libraries = str(Path(spec.submodule_search_locations[0]) / "lib")
    known = os.environ.get("LD_LIBRARY_PATH")
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{known}" if known else libraries}
    os.execve(command, [str(command), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
