"""Style, types and the documentation's site."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "python", "tests/python", "tests/peers"],
        ["ruff", "format", "--no-cache", "--check", "python", "tests/python", "tests/peers"],
        ["mypy", "--cache-dir", "/dev/null"],
        ["mypy.stubtest", "--allowlist", "tests/python/stubtest.txt", "bilevel._engine", "bilevel._built"],
        ["mkdocs", "build", "--quiet", "--strict"],
    ],
    ids=lambda c: f"{c[0]} {c[-1]}",
)
def test_is_clean(command, tmp_path):
    if command[0] == "mkdocs":
        command = [*command, "--site-dir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
