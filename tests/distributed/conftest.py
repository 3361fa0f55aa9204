"""What the tests of several processes share: processes on this machine, started as torchrun starts them."""
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("BILEVEL_BINARY", str(ROOT / "build" / "bilevel"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


class Processes:
    """`size` processes in `cwd` that find each other."""

    def __init__(self, size, arguments, cwd, where=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.all = []
        for rank in range(size):
            environment = {**ENVIRONMENT, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port)}
            self.all.append(subprocess.Popen([sys.executable, *map(str, arguments)], cwd=(where or {}).get(rank, cwd), env=environment,
                                             text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE))

    def ended(self, timeout=240):
        """(exit status, stdout, stderr) of each, in the order of the ranks."""
        try:
            out = [process.communicate(timeout=timeout) for process in self.all]
        finally:
            for process in self.all:
                process.kill()
        return [(process.returncode, *texts) for process, texts in zip(self.all, out)]


@pytest.fixture
def start(tmp_path):
    """The command in `size` processes."""
    running = []

    def begin(size, *arguments, cwd=tmp_path, where=None):
        running.append(Processes(size, ["-m", "bilevel", *arguments], cwd, where))
        return running[-1]

    yield begin
    for processes in running:
        for process in processes.all:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def alone():
    """The command in one process, as its user calls it."""

    def call(cwd, *arguments):
        done = subprocess.run([BINARY, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=240)
        assert done.returncode in (0, 1), done.stderr
        return done

    return call
