"""Options as the engine reads them: lines of ``table.key=value`` in TOML, the very keys of a configuration file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def assignments(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{table}.{key}={_toml(value, f'{table}.{key}')}" for table, options in tables.items() for key, value in options.items()]


def tables(lines: str) -> dict[str, dict[str, Any]]:
    """The values of ``[table]`` and ``key = value`` lines, as the engine writes them."""
    found: dict[str, dict[str, Any]] = {}
    options: dict[str, Any] = {}
    for line in lines.splitlines():
        if line.startswith("["):
            options = found.setdefault(line.strip("[]"), {})
        elif line:
            key, _, value = line.partition(" = ")
            options[key.strip()] = json.loads(value)
    return found


def _toml(value: Any, key: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, str)):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)  # repr gives inf and nan as TOML has them
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item, key) for item in value) + "]"
    if isinstance(value, Mapping) and value:
        return "{" + ", ".join(f"{name} = {_toml(item, f'{key}.{name}')}" for name, item in value.items()) + "}"
    raise TypeError(f"{key} should be a number, a string, true or false, a list or a table of them, got {type(value).__name__}.")
