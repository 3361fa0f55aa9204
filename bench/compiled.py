"""The compiled oracle beside autodiff: products and hypergradients, in turns in one process, by processor time.

    cmake --build build --target bilevel_python compiled_bench
    PYTHONPATH=build/python OMP_NUM_THREADS=1 build/venv/bin/python bench/compiled.py [--seconds 3] [--out bench/results/compiled.json]

Networks are the engine's own, on random numbers; MAML is the batched Python task of bench/compare. What programs take to compile is not
in the times; they come from the cache where it has them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

import bilevel

CASES = {
    # name: model, samples, shape of a sample, batch
    "MLP 64-32-10, batch 64": ("mlp", 640, (64,), 64, "hidden = [32]"),
    "MLP 784-256-10, batch 256": ("mlp", 2560, (784,), 256, "hidden = [256]"),
    "CNN 8-16, 28 × 28, batch 64": ("cnn", 640, (28, 28), 64, "channels = [8, 16]"),
}
ESTIMATORS = {
    "unroll 50": 'estimator = "unrolled"\n[outer]\nsteps = 1',
    "CG 20": 'estimator = "implicit"\nsolver = "cg"\niterations = 20\ntolerance = 0.0\ndamping = 1.0\nhvp_batch = {batch}\ncross_batch = {batch}\n[outer]\nsteps = 1',
}


def configuration(folder, case, estimator):
    model, n, shape, batch, more = CASES[case]
    draw = np.random.RandomState(0)
    for part, size in (("inner", n), ("outer", 256)):
        np.save(folder / f"{part}_x.npy", draw.randn(size, *shape).astype(np.float32))
        np.save(folder / f"{part}_y.npy", draw.randint(0, 10, size))
    path = folder / "config.toml"
    path.write_text(f"""
[problem]
model = "{model}"
{more}
[problem.hyperparameters]
sample_weight = {{ init = 0.0 }}
l2 = {{ per = "layer", init = -5.0 }}
[data]
inner = {{ x = "inner_x.npy", y = "inner_y.npy" }}
outer = {{ x = "outer_x.npy", y = "outer_y.npy" }}
[inner]
lr = 0.05
steps = 50
batch = {batch}
init = "random"
[hypergradient]
{ESTIMATORS[estimator].format(batch=batch)}
""")
    return path, batch


def network(case, estimator, program, seconds):
    with tempfile.TemporaryDirectory() as folder:
        path, batch = configuration(pathlib.Path(folder), case, estimator)
        subprocess.run([sys.executable, "-m", "bilevel", "compile", str(path), "--threads", "1"], check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run([program, path, "--batch", str(batch), "--seconds", str(seconds)], check=True, capture_output=True, text=True)
        row = json.loads(done.stdout)
        # The programs of gradients and of H v are there only where a step has asked for them.
        return row if estimator == "CG 20" else {"hypergradient": row["hypergradient"], "difference": row["difference"]}


def sinusoids(tasks=10, shots=10, steps=5):
    """The batched tasks of bench/compare, with made-up sinusoids; a meta-gradient as a function of the oracle."""
    draw = torch.Generator().manual_seed(0)
    u = 10 * torch.rand(tasks, 2 * shots, 1, generator=draw) - 5
    t = torch.sin(u + 3 * torch.rand(tasks, 1, 1, generator=draw))
    shapes = {"W1": (1, 40), "b1": (40,), "W2": (40, 40), "b2": (40,), "W3": (40, 1), "b3": (1,)}
    x = {name: 0.3 * torch.randn(*shape, generator=draw) for name, shape in shapes.items()}

    def loss(p, u, t):
        h = torch.relu(u @ p["W1"] + p["b1"][:, None])
        return ((torch.relu(h @ p["W2"] + p["b2"][:, None]) @ p["W3"] + p["b3"][:, None] - t) ** 2).sum() / shots

    def begin(x):
        return {name: p.expand(tasks, *p.shape) for name, p in x.items()}

    def meta(oracle):
        h = bilevel.hypergradient(
            lambda x, y: loss(y, u[:, :shots], t[:, :shots]),
            lambda x, y: loss(y, u[:, shots:], t[:, shots:]) / tasks,
            x, begin(x), initial_inner=begin, estimator="unrolled", inner={"lr": 0.01, "steps": steps}, oracle=oracle,
        )  # fmt: skip
        return torch.cat([p.reshape(-1) for p in h.value.values()])

    return meta


def maml(tasks, seconds):
    meta, kept = sinusoids(tasks), bilevel.Compiled()
    found, expected = meta(kept), meta("autodiff")
    times = {"compiled": [], "autodiff": []}
    while len(times["autodiff"]) < 7 or sum(map(sum, times.values())) < seconds:
        for name, oracle in (("compiled", kept), ("autodiff", "autodiff")):
            began = time.process_time()
            meta(oracle)
            times[name].append(time.process_time() - began)
    row = {name: 1e6 * statistics.median(t) for name, t in times.items()}
    row.update(times_faster=row["autodiff"] / row["compiled"], repetitions=len(times["autodiff"]))
    return {"hypergradient": row, "difference": ((found - expected).norm() / expected.norm()).item()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="for each comparison")
    parser.add_argument("--program", default="build/bench/compiled_bench")
    parser.add_argument("--only", default="", help="part of a row's name")
    parser.add_argument("--out", type=pathlib.Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = {f"{case}, {e}": lambda case=case, e=e: network(case, e, a.program, a.seconds) for case in CASES for e in ESTIMATORS}
    rows.update({f"MAML, {k} tasks": lambda k=k: maml(k, a.seconds) for k in (10, 100)})
    found = {"command": " ".join(["python", *sys.argv]), "load": os.getloadavg()[0], "microseconds": {}}
    for name, measure in rows.items():
        if a.only in name:
            found["microseconds"][name] = measure()
            print(name, found["microseconds"][name], file=sys.stderr, flush=True)
    text = json.dumps(found, indent=1)
    print(text)
    if a.out:
        a.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
