"""The peers run in an environment of their own, which BILEVEL_PEERS names (see bench/README.md); without it nothing here is run."""

import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


def peers_python():
    folder = os.environ.get("BILEVEL_PEERS")
    if not folder:
        pytest.skip("not run: BILEVEL_PEERS names no environment of the peers")
    return pathlib.Path(folder) / "bin/python"


def run_with_peers(*command, cwd=None):
    """Standard output of a program in the peers' environment; 'not run' where a peer could not be had."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu", PYTHONPATH="")
    done = subprocess.run(
        [str(word) for word in (peers_python(), *command)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=600
    )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("not run: " + done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
