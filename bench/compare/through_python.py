"""Ours through Python callables, on the dumped work; one variant in this process, by the harness's own clock.

The losses are written as in the peers' rows, with their layouts, so that the difference is what the engine adds or saves.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from common import load, measure  # the harness of the peers

import bilevel

VARIANTS = {}


def variant(task, name, *cases):
    def register(build):
        VARIANTS.setdefault(task, {})[name] = (cases, build)
        return build

    return register


def cross_entropy(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


# ---------------------------------------------------------------- hypergrad
class Cleaning:
    """Data re-weighting, softmax regression or a network; parameters as the peers have them."""

    def __init__(self, work):
        self.work, self.s = work, work.s
        self.t = {k: torch.tensor(work[k]) for k in ("Xt", "yt", "Xv", "yv")}
        self.mlp = work.s["case"] == "mlp"
        self.x = torch.zeros(len(work["yt"]))
        if self.mlp:
            shapes = [(784, 128), (128,), (128, 10), (10,)]
            flat = torch.tensor(work["w0"]).split([int(np.prod(s)) for s in shapes])
            self.y = {f"p{i}": p.reshape(s) for i, (p, s) in enumerate(zip(flat, shapes))}
        else:
            self.y = {"p0": torch.zeros(784, 10), "p1": torch.zeros(10)}

    def out(self, p, X):
        return X @ p["p0"] + p["p1"] if not self.mlp else torch.relu(X @ p["p0"] + p["p1"]) @ p["p2"] + p["p3"]

    def inner(self, x, y, batch=None):
        X, labels = self.t["Xt"], self.t["yt"]
        if batch is not None:
            X, labels, rows = batch
            x = x[rows]
        losses = cross_entropy(self.out(y, X), labels)
        return (torch.sigmoid(x) * losses).mean() + 0.5 * self.s["l2"] * sum((p * p).sum() for p in y.values())

    def outer(self, x, y, batch=None):
        return cross_entropy(self.out(y, self.t["Xv"]), self.t["yv"]).mean()

    def hypergradient(self, key, folder, **options):
        inner = {"lr": self.s["lr"], "steps": self.s["T"]}
        data = {}
        if self.mlp:
            inner["batches"] = str(folder / "batches.npy")
            data["inner_data"] = (self.t["Xt"], self.t["yt"], torch.arange(len(self.x)))

        def once():
            h = bilevel.hypergradient(self.inner, self.outer, self.x, self.y, inner=inner, **data, **options)
            assert h.status != "BAD", h.message
            return {key: h.value.numpy()}

        return once


@variant("hypergrad", "unroll T", "softmax", "mlp")
def _(work, folder):
    return Cleaning(work).hypergradient("unroll", folder, estimator="unrolled")


@variant("hypergrad", "unroll T, compiled", "mlp")
def _(work, folder):
    return Cleaning(work).hypergradient("unroll", folder, estimator="unrolled", oracle=bilevel.Compiled())


@variant("hypergrad", "unroll T, checkpoints", "mlp")
def _(work, folder):
    return Cleaning(work).hypergradient("unroll", folder, estimator="unrolled", memory="checkpoints")


@variant("hypergrad", "CG 20", "softmax")
def _(work, folder):
    return Cleaning(work).hypergradient("cg", folder, estimator="implicit", iterations=work.s["K"])


@variant("hypergrad", "Neumann 20", "softmax")
def _(work, folder):
    return Cleaning(work).hypergradient("neumann", folder, estimator="implicit", solver="neumann", iterations=work.s["K"])


# ---------------------------------------------------------------- maml
class Sinusoids:
    """One inner problem of k tasks at once, by torch.func.vmap."""

    names = ("W1", "b1", "W2", "b2", "W3", "b3")

    def __init__(self, work):
        self.s = work.s
        x, y, w = (torch.tensor(work[k]) for k in ("x", "y", "w"))
        self.inner_data, self.outer_data = (x[:, :10, None], y[:, :10, None]), (x[:, 10:, None], y[:, 10:, None])
        self.tasks = len(x)
        sizes = [int(np.prod(s)) for s in self.s["shapes"]]
        self.x = {name: p.reshape(s) for name, p, s in zip(self.names, w.split(sizes), self.s["shapes"])}

    @staticmethod
    def mse(p, x, y):
        h = torch.relu(x @ p["W1"] + p["b1"])
        return ((torch.relu(h @ p["W2"] + p["b2"]) @ p["W3"] + p["b3"] - y) ** 2).mean()

    def inner(self, x, y):
        return torch.func.vmap(self.mse)(y, *self.inner_data).sum()

    def outer(self, x, y):
        return torch.func.vmap(self.mse)(y, *self.outer_data).mean()

    def begin(self, x):
        return {name: p.expand(self.tasks, *p.shape) for name, p in x.items()}


class ByHand(Sinusoids):
    """The same with the tasks' dimension written out."""

    def loss(self, p, x, y):
        h = torch.relu(x @ p["W1"] + p["b1"][:, None])
        return ((torch.relu(h @ p["W2"] + p["b2"][:, None]) @ p["W3"] + p["b3"][:, None] - y) ** 2).sum() / x.shape[1]

    def inner(self, x, y):
        return self.loss(y, *self.inner_data)

    def outer(self, x, y):
        return self.loss(y, *self.outer_data) / self.tasks


def meta_step(tasks, oracle="auto"):
    """The meta-gradient and Adam's step, like the peers' rows."""

    def once():
        w = {name: p.clone() for name, p in tasks.x.items()}
        h = bilevel.hypergradient(
            tasks.inner,
            tasks.outer,
            w,
            tasks.begin(w),
            initial_inner=tasks.begin,
            estimator="unrolled",
            inner={"lr": tasks.s["lr"], "steps": tasks.s["steps"]},
            oracle=oracle,
        )
        for name, p in w.items():
            p.grad = h.value[name]
        torch.optim.Adam(w.values(), lr=1e-3).step()
        return {"meta": torch.cat([g.reshape(-1) for g in h.value.values()]).numpy()}

    return once


@variant("maml", "torch.func vmap", "tasks10", "tasks100")
def _(work, folder):
    return meta_step(Sinusoids(work))


@variant("maml", "batched by hand (bmm)", "tasks10", "tasks100")
def _(work, folder):
    return meta_step(ByHand(work))


@variant("maml", "batched by hand (bmm), compiled", "tasks10", "tasks100")
def _(work, folder):
    return meta_step(ByHand(work), bilevel.Compiled())


# ---------------------------------------------------------------- cleaning, from start to end
@variant("cleaning", "unroll-1", "fashion")
def _(work, folder):
    s = work.s
    t = {k: torch.tensor(work[k]) for k in ("Xt", "yt", "Xv", "yv")}
    rows = torch.arange(len(t["yt"]))

    def inner(x, y, batch):
        X, labels, i = batch
        return (torch.sigmoid(x[i]) * cross_entropy(X @ y["W"] + y["b"], labels)).mean()

    def outer(x, y, batch):
        X, labels = batch
        return cross_entropy(X @ y["W"] + y["b"], labels).mean()

    def once():
        run = bilevel.minimize(
            inner,
            outer,
            torch.zeros(len(rows)),
            {"W": torch.zeros(784, 10), "b": torch.zeros(10)},
            steps=s["steps"],
            estimator="unrolled",
            inner={"lr": s["lr"], "steps": 1, "batches": str(folder / "bt.npy")},
            hypergradient={"bound_every": 0},
            outer={"rule": "sgd", "lr": s["outer_lr"], "batches": str(folder / "bv.npy")},
            inner_data=(t["Xt"], t["yt"], rows),
            outer_data=(t["Xv"], t["yv"]),
            progress=False,
        )
        return {"x": run.x.numpy(), "y": torch.cat([run.y["W"].t().reshape(-1), run.y["b"]]).numpy()}

    return once


# ---------------------------------------------------------------- ridge
@variant("ridge", "lbfgs + cg, solve + gradient", "ridge_diabetes", "ridge_synthetic", "logistic_diabetes", "logistic_synthetic")
def _(work, folder):
    X, y, Xv, yv = (torch.tensor(work[k]) for k in ("X", "y", "Xv", "yv"))
    logistic = work.s["model"] == "logistic"

    def loss(w, X, y):
        return torch.nn.functional.softplus(-y * (X @ w)).mean() if logistic else ((X @ w - y) ** 2).mean()

    def inner(x, w):
        return (1.0 if logistic else 0.5) * loss(w, X, y) + 0.5 * x.exp() * (w @ w)

    def outer(x, w):
        return (1.0 if logistic else 0.5) * loss(w, Xv, yv)

    def once():
        h = bilevel.hypergradient(
            inner,
            outer,
            torch.tensor(work.s["theta"], dtype=torch.double),
            torch.zeros(X.shape[1], dtype=torch.double),
            inner={"solver": "lbfgs", "tolerance": work.s["tol"], "steps": 5000},
            iterations=2000,
        )
        return {"hypergradient": h.value.reshape(1).numpy(), "y": h.y.numpy()}

    return once


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--variant")
    parser.add_argument("--out", type=pathlib.Path)
    a = parser.parse_args()
    known = VARIANTS.get(a.task, {})
    if a.list:
        print("\n".join(name for name, (cases, _) in known.items() if a.case in cases))
        return
    torch.set_num_threads(1)
    result, row = measure(known[a.variant][1](load(str(a.folder)), a.folder), reps=3 if a.task == "cleaning" else None)
    names = {"unroll": "hypergradient", "cg": "hypergradient", "neumann": "hypergradient", "meta": "hypergradient"}
    for key, value in result.items():
        np.save(f"{a.out}.{names.get(key, key)}.npy", value)
    a.out.write_text(json.dumps(row))


if __name__ == "__main__":
    main()
