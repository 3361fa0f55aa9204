"""What the end-to-end tests share: the command, called as a user calls it."""
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("BILEVEL_BINARY", str(ROOT / "build" / "bilevel"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


class Bilevel:
    def __init__(self, cwd):
        self.cwd = cwd

    def start(self, *arguments, **options):
        return subprocess.Popen([BINARY, *map(str, arguments)], cwd=self.cwd, env=ENVIRONMENT, text=True, errors="replace",
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def __call__(self, *arguments, code=0, **options):
        done = subprocess.run([BINARY, *map(str, arguments)], cwd=self.cwd, env=ENVIRONMENT, text=True, capture_output=True,
                              timeout=300, **options)
        assert done.returncode == code, f"exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture
def bilevel(tmp_path):
    return Bilevel(tmp_path)
