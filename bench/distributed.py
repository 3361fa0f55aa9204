"""Seconds of an outer step for one process and for several that share its samples, one thread each, in turns.

    PYTHONPATH=build/python build/venv/bin/python bench/distributed.py [--processes 2] [--rounds 3]

Of all rounds the median time of a step, and the least processor time that a step takes of the busiest process: what the time would come
to on a machine with a core for each process and no wait.
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
steps = {steps}
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


STEPS = (1, 5)  # the processor time of a step is the difference of two runs, which both load LibTorch and the data


def run(config: str, size: int) -> tuple[list[float], float]:
    """Seconds of each step, and the processor seconds of the busiest process."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "config.toml").write_text(config)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = ["run", "config.toml", "--out", "out"]
        command = [sys.executable, "-m", "bilevel", *command] if size > 1 else [os.environ["BILEVEL_BINARY"], *command]
        running = []
        for rank in range(size):
            group = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if size > 1 else {}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **group}
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet))
        usages = [os.wait4(process.pid, 0)[2] for process in running]
        log = pathlib.Path(folder, "out", "log.jsonl").read_text().splitlines()
    return [json.loads(line)["machine"]["seconds"] for line in log[1:-1]], max(u.ru_utime + u.ru_stime for u in usages)


def measure(size: int, text: str, **values: object) -> tuple[list[float], float]:
    (_, few), (steps, many) = (run(text.format(steps=steps, **values), size) for steps in STEPS)
    return steps, (many - few) / (STEPS[1] - STEPS[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("BILEVEL_BINARY", str(pathlib.Path(__file__).resolve().parents[1] / "build" / "bilevel"))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; one process, {arguments.processes}, ratio; the same of processor time")
    for name, (problem, hypergradient, n) in CASES.items():
        times: dict[int, list[float]] = {1: [], arguments.processes: []}
        work: dict[int, list[float]] = {size: [] for size in times}
        for _ in range(arguments.rounds):
            for size in times:
                steps, processor = measure(size, CONFIG, problem=problem, hypergradient=hypergradient, n=n, m=max(1000, n // 4))
                times[size].extend(steps)
                work[size].append(processor)
        one, several = (1e3 * statistics.median(found) for found in times.values())
        alone, shared = (1e3 * min(found) for found in work.values())
        wall = f"{one:.0f} | {several:.0f} | {one / several:.2f}"
        print(f"| {name} | {wall} | {alone:.0f} | {shared:.0f} | {alone / shared:.2f} |", flush=True)


if __name__ == "__main__":
    main()
