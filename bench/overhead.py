"""One hypergradient through Python losses beside the same work written by hand in PyTorch with a kept graph.

    PYTHONPATH=build/python:DIR python bench/overhead.py --work WORK [--seconds 20]

WORK is what `bench/compare` has dumped, DIR the harness of the peers. The two take turns in one process; processor time, so that other
programs on the machine count little; the ratio is that of the medians.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent / "compare"))
from through_python import ByHand, Cleaning, Sinusoids, load, meta_step


def unrolled_by_hand(c):
    """T steps with a graph, one backward pass."""

    def once():
        x, y = c.x.clone().requires_grad_(), {k: p.clone().requires_grad_() for k, p in c.y.items()}
        for t in range(c.s["T"]):
            batch = None
            if c.mlp:
                i = c.rows[t]
                batch = (c.t["Xt"][i], c.t["yt"][i], i)
            grads = torch.autograd.grad(c.inner(x, y, batch), list(y.values()), create_graph=True)
            y = {k: p - c.s["lr"] * g for (k, p), g in zip(y.items(), grads)}
        return torch.autograd.grad(c.outer(x, y), x)[0]

    return once


def meta_by_hand(tasks):
    """The meta-gradient through the batched steps, and Adam's step."""

    def once():
        w = {k: p.clone().requires_grad_() for k, p in tasks.x.items()}
        y = tasks.begin(w)
        for _ in range(tasks.s["steps"]):
            grads = torch.autograd.grad(tasks.inner(w, y), list(y.values()), create_graph=True)
            y = {k: p - tasks.s["lr"] * g for (k, p), g in zip(y.items(), grads)}
        for p, g in zip(w.values(), torch.autograd.grad(tasks.outer(w, y), list(w.values()))):
            p.grad = g
        torch.optim.Adam(w.values(), lr=1e-3).step()

    return once


def compare(ours, by_hand, seconds):
    def took(call):
        began = time.process_time()
        call()
        return time.process_time() - began

    ours(), by_hand()
    a, b, began = [], [], time.process_time()
    while len(a) < 5 or time.process_time() - began < seconds:
        a.append(took(ours))
        b.append(took(by_hand))
    return {
        "ours": statistics.median(a),
        "by_hand": statistics.median(b),
        "ratio": statistics.median(a) / statistics.median(b),
        "least": min(a) / min(b),
        "repetitions": len(a),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=20, help="processor seconds for each comparison")
    parser.add_argument("--only", default="", help="part of a row's name")
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for case in ("tasks10", "tasks100"):
        for name, kind in (("vmap", Sinusoids), ("bmm", ByHand)):
            tasks = kind(load(str(a.work / "maml" / case)))
            rows[f"maml {case}, {name}"] = (meta_step(tasks), meta_by_hand(tasks))
    for case in ("mlp", "softmax"):
        folder = a.work / "hypergrad" / case
        cleaning = Cleaning(load(str(folder)))
        if cleaning.mlp:
            cleaning.rows = torch.tensor(cleaning.work["batches"])
        rows[f"hypergrad {case}, unrolled"] = (cleaning.hypergradient("unroll", folder, estimator="unrolled"), unrolled_by_hand(cleaning))
    busy, found = os.getloadavg()[0], {}
    for name, pair in rows.items():
        if a.only in name:
            found[name] = compare(*pair, a.seconds)
            print(name, found[name], file=sys.stderr, flush=True)
    about = {"command": f"bench/overhead.py --work DIR --seconds {a.seconds:g}", "clock": "processor time", "load": busy}
    print(json.dumps({"about": about, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
