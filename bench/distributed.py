"""Seconds of an outer step for one process and for several that share its samples, one thread each, in turns.

    PYTHONPATH=build/python build/venv/bin/python bench/distributed.py [--processes 2] [--rounds 3]

The medians over the steps of all rounds, and what the processes exchange in a step. The machine should have a core for each process.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile

CONFIG = """
[problem]
{problem}
loss = "softmax"
[problem.hyperparameters]
sample_weight = {{ init = 0.0 }}
[data]
inner = {{ builtin = "fashion-mnist", first = 0, count = {n} }}
outer = {{ builtin = "fashion-mnist", first = 50000, count = {m} }}
[inner]
rule = "sgd"
lr = 0.1
steps = 20
[hypergradient]
{hypergradient}
bound_every = 0
[outer]
rule = "sgd"
lr = 1.0
steps = 4
[run]
threads = 1
"""
LINEAR = 'model = "linear"'
MLP = 'model = "mlp"\nhidden = [128]'
UNROLLED, CG = 'estimator = "unrolled"', 'estimator = "implicit"\nsolver = "cg"\niterations = 20'
CASES = {
    "softmax 784 × 10, n = 2,000, unrolled": (LINEAR, UNROLLED, 2000),
    "softmax 784 × 10, n = 20,000, unrolled": (LINEAR, UNROLLED, 20000),
    "softmax 784 × 10, n = 20,000, CG": (LINEAR, CG, 20000),
    "MLP 784–128–10, n = 2,000, unrolled": (MLP, UNROLLED, 2000),
    "MLP 784–128–10, n = 10,000, unrolled": (MLP, UNROLLED, 10000),
}


def seconds(config: str, size: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        pathlib.Path(folder, "config.toml").write_text(config)
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        running = []
        for rank in range(size):
            group = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "bilevel", "run", "config.toml", "--out", "out"]
                    if size > 1
                    else [os.environ["BILEVEL_BINARY"], "run", "config.toml", "--out", "out"],
                    cwd=folder,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **(group if size > 1 else {})},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        for process in running:
            process.wait()
        log = pathlib.Path(folder, "out", "log.jsonl").read_text().splitlines()
    return [json.loads(line)["machine"]["seconds"] for line in log[1:-1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("BILEVEL_BINARY", str(pathlib.Path(__file__).resolve().parents[1] / "build" / "bilevel"))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, (problem, hypergradient, n) in CASES.items():
        config = CONFIG.format(problem=problem, hypergradient=hypergradient, n=n, m=max(1000, n // 4))
        times: dict[int, list[float]] = {1: [], arguments.processes: []}
        for _ in range(arguments.rounds):
            for size, found in times.items():
                found.extend(seconds(config, size))
        one, several = (statistics.median(found) for found in times.values())
        print(f"| {name} | {1e3 * one:.0f} | {1e3 * several:.0f} | {one / several:.2f} |", flush=True)


if __name__ == "__main__":
    main()
