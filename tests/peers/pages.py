"""The programs of docs/migration.md."""

import pathlib
import re

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "migration.md"


def programs():
    """{task: {"data": text, library: text}}, in the order of the page."""
    found = {}
    for task, what, text in re.findall(r"^```python task=(\w+) (?:library=)?(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        found.setdefault(task, {})[what] = text
    return found


def lines(text):
    """Those that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())
