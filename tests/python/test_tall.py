"""Matrices of few columns, which lie in the engine by columns and which losses see transposed."""

import pytest
import torch
import torch.nn.functional as nnf

import bilevel
from conftest import close

STEPS = 12


class Softmax:
    """Data re-weighting with a ridge for each feature; W is [70, 3]."""

    def __init__(self):
        draw = torch.Generator().manual_seed(3)
        self.X, self.V = (torch.randn(n, 70, dtype=torch.double, generator=draw) for n in (40, 30))
        self.t, self.s = (torch.randint(3, (n,), generator=draw) for n in (40, 30))
        self.x = {"weight": torch.zeros(40, dtype=torch.double), "ridge": torch.full((70, 1), -3.0, dtype=torch.double)}
        self.y = {"W": torch.randn(70, 3, dtype=torch.double, generator=draw), "b": torch.zeros(3, dtype=torch.double)}
        self.strides = set()

    def inner(self, x, y):
        self.strides.add(y["W"].stride())
        losses = nnf.cross_entropy(self.X @ y["W"] + y["b"], self.t, reduction="none")
        return (x["weight"].sigmoid() * losses).mean() + 0.5 * (x["ridge"].exp() * y["W"].square()).sum()

    def outer(self, x, y):
        return nnf.cross_entropy(self.V @ y["W"] + y["b"], self.s)

    def by_autograd(self, lr=0.1):
        """Gradients to x and to y₀ of the outer loss after the steps, and y_T."""
        x = {name: part.clone().requires_grad_() for name, part in self.x.items()}
        start = {name: part.clone().requires_grad_() for name, part in self.y.items()}
        y, lrs = dict(start), lr if isinstance(lr, dict) else {"W": lr, "b": lr}
        for _ in range(STEPS):
            grads = torch.autograd.grad(self.inner(x, y), list(y.values()), create_graph=True)
            y = {name: p - lrs[name] * g for (name, p), g in zip(y.items(), grads)}
        wanted = [*x.values(), *start.values()]
        found = torch.autograd.grad(self.outer(x, y), wanted)
        return dict(zip(x, found)), dict(zip(start, found[2:])), {name: p.detach() for name, p in y.items()}


def same(found, expected, within=1e-12):
    for name, part in expected.items():
        assert found[name].shape == part.shape and found[name].is_contiguous(), name
        close(found[name], part, within)


def test_a_loss_sees_it_transposed_and_results_are_by_rows():
    p = Softmax()
    expected, _, reached = p.by_autograd()
    p.strides.clear()
    h = bilevel.hypergradient(p.inner, p.outer, p.x, p.y, estimator="unrolled", inner={"lr": 0.1, "steps": STEPS})
    assert p.strides == {(1, 70)}
    same(h.value, expected)
    same(h.y, reached)


def test_the_adjoint_has_the_structure_of_y():
    p = Softmax()
    h = bilevel.hypergradient(p.inner, p.outer, p.x, p.y, inner={"lr": 0.1, "steps": 400}, iterations=300, tolerance=1e-13)
    y = {name: part.clone().requires_grad_() for name, part in h.y.items()}
    grads = torch.autograd.grad(p.inner(p.x, y), list(y.values()), create_graph=True)
    products = torch.autograd.grad(grads, list(y.values()), list(h.q.values()))
    same(dict(zip(y, products)), dict(zip(y, torch.autograd.grad(p.outer(p.x, y), list(y.values())))), 1e-9)


@pytest.mark.parametrize("refusing", ["inner", "outer", "both"])
def test_a_loss_that_asks_for_a_view_gets_a_copy_by_rows(refusing):
    p = Softmax()

    def viewing(loss, name):
        return (lambda x, y: loss(x, y) + 0 * y["W"].view(-1).sum()) if refusing in (name, "both") else loss

    expected, _, reached = p.by_autograd()
    p.strides.clear()
    h = bilevel.hypergradient(
        viewing(p.inner, "inner"), viewing(p.outer, "outer"), p.x, p.y, estimator="unrolled", inner={"lr": 0.1, "steps": STEPS}
    )
    assert ((3, 1) in p.strides) == (refusing != "outer")
    same(h.value, expected)
    same(h.y, reached)


def test_another_error_of_a_loss_comes_out_as_it_is():
    p = Softmax()
    with pytest.raises(RuntimeError, match="size of tensor"):
        bilevel.hypergradient(lambda x, y: (y["W"] + torch.ones(4)).sum(), p.outer, p.x, p.y, inner={"lr": 0.1, "steps": 1})


def test_a_single_matrix():
    p = Softmax()
    bias = p.y["b"]
    losses = [lambda x, W, f=f: f(x, {"W": W, "b": bias}) for f in (p.inner, p.outer)]
    h = bilevel.hypergradient(*losses, p.x, p.y["W"], estimator="unrolled", inner={"lr": 0.1, "steps": STEPS})
    expected, _, reached = p.by_autograd({"W": 0.1, "b": 0.0})
    same(h.value, expected)
    same({"W": h.y}, {"W": reached["W"]})


def test_unroll_reaches_the_start_and_a_step_size_for_each_element():
    p = Softmax()
    expected, start, reached = p.by_autograd()
    x = {name: part.clone().requires_grad_() for name, part in p.x.items()}
    y0 = {name: part.clone().requires_grad_() for name, part in p.y.items()}
    y = bilevel.unroll("sgd", p.inner, y0, STEPS, x=x, lr=0.1)
    same(y, reached)
    p.outer(x, y).backward()
    same({name: part.grad for name, part in x.items()}, expected)
    close(y0["W"].grad, start["W"], 1e-12)

    lr = torch.linspace(0.01, 0.2, 213, dtype=torch.double)  # in the order of y: W by rows, b
    _, _, reached = p.by_autograd({"W": lr[:210].view(70, 3), "b": lr[210:]})
    same(bilevel.unroll("sgd", p.inner, p.y, STEPS, x=p.x, lr=lr.requires_grad_()), reached)


def test_runs_are_saved_resumed_and_read_by_rows(tmp_path):
    p = Softmax()
    given = {"estimator": "unrolled", "inner": {"lr": 0.1, "steps": 3}, "outer": {"lr": 0.1}, "steps": 6, "progress": False}
    whole = bilevel.minimize(p.inner, p.outer, p.x, p.y, **given)

    def interrupt(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bilevel.minimize(p.inner, p.outer, p.x, p.y, **given, out=tmp_path / "run", callback=interrupt, checkpoint_every=2)
    run = bilevel.resume(tmp_path / "run", p.inner, p.outer, progress=False)
    assert all(torch.equal(run.y[name], part) for name, part in whole.y.items())
    same(bilevel.load_run(tmp_path / "run").y, whole.y, 1e-15)
