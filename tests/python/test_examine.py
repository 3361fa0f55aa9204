"""bilevel.doctor, plan and explain, on Python losses and on runs."""

import threading
import time

import pytest
import torch

import bilevel
from conftest import close

D = torch.double
INNER = {"rule": "sgd", "lr": 0.2, "steps": 400, "start": "cold"}


class Ridge:
    """Ridge regression with a strength for each feature: y* and dF/dx in closed form."""

    def __init__(self, dtype=D):
        generator = torch.Generator().manual_seed(3)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=D).to(dtype)

        self.X, self.t, self.V, self.s = draw(30, 4), draw(30), draw(25, 4), draw(25)
        self.x, self.y = torch.linspace(-2, 0, 4, dtype=D).to(dtype), torch.zeros(4, dtype=dtype)

    def inner(self, x, y):
        return 0.5 * (self.X @ y - self.t).square().mean() + 0.5 * (x.exp() * y.square()).sum()

    def losses(self, x, y):
        return 0.5 * (self.V @ y - self.s).square()

    def outer(self, x, y):
        return self.losses(x, y).mean()

    def exact(self, x, losses=None):
        """dF/dx of the losses' mean, in double, by autograd through the closed form."""
        X, t, V, s = (a.double() for a in (self.X, self.t, self.V, self.s))
        x = x.double().requires_grad_()
        y = torch.linalg.solve(X.T @ X / len(t) + torch.diag(x.exp()), X.T @ t / len(t))
        each = 0.5 * (V @ y - s).square()
        return torch.autograd.grad(each.mean() if losses is None else each[losses] / len(s), x)[0]


def trials(diagnosis):
    return {trial.name: trial for trial in diagnosis.trials}


def test_doctor_measures_against_the_closed_form():
    p = Ridge()
    diagnosis = bilevel.doctor(p.inner, p.outer, p.x, p.y, solver="neumann", iterations=1, inner=INNER, progress=False)
    exact = p.exact(p.x)
    assert diagnosis.reference["norm"] == pytest.approx(exact.norm().item(), rel=1e-9)
    assert diagnosis.reference["differentiates"] == "F" and diagnosis.reference["trusted"]
    for trial in diagnosis.trials:  # each is what hypergradient gives with its options
        if trial.outcome == "done" and trial.name in ("identity", "implicit cg 2", "one-step", "unrolled last 10"):
            h = bilevel.hypergradient(p.inner, p.outer, p.x, p.y, inner=INNER, **trial.options)
            assert trial.error == pytest.approx(((h.value - exact).norm() / exact.norm()).item(), rel=1e-4)
    own = next(trial for trial in diagnosis.trials if trial.configured)
    assert own.options["solver"] == "neumann" and own.error > 0.05 > trials(diagnosis)["unrolled"].error
    h = bilevel.hypergradient(p.inner, p.outer, p.x, p.y, inner=INNER, **diagnosis.options)
    close(h.value, exact, 0.01)
    assert "Trials" in str(diagnosis) and own.name in str(diagnosis) and "estimator=" in str(diagnosis)


def test_doctor_has_its_reference_in_double_for_losses_in_float():
    p = Ridge(torch.float32)
    p.X = p.X * torch.logspace(0, 1.5, 4)  # condition 1000: float32 alone would see it
    diagnosis = bilevel.doctor(p.inner, p.outer, p.x, p.y, inner={"solver": "lbfgs"}, progress=False, seconds=20)
    assert diagnosis.reference["norm"] == pytest.approx(p.exact(p.x).norm().item(), rel=1e-9)
    assert p.y.dtype == p.X.dtype == torch.float32


def test_the_doctors_picture():
    pytest.importorskip("matplotlib").use("Agg")
    p = Ridge()
    figure = bilevel.doctor(p.inner, p.outer, p.x, p.y, inner=INNER, progress=False).plot()
    labels = {line.get_label() for line in figure.axes[0].lines}
    assert {"implicit cg", "unrolled", "identity"} <= labels


@pytest.mark.parametrize("examine", [bilevel.doctor, bilevel.plan])
def test_what_a_loss_raises_comes_out(examine):
    class Mine(RuntimeError):
        pass

    p = Ridge()
    calls = []

    def bad(x, y):
        calls.append(1)
        if len(calls) == 500:
            raise Mine("in the loss")
        return p.inner(x, y)

    with pytest.raises(Mine, match="in the loss"):
        examine(bad, p.outer, p.x, p.y, inner=INNER, progress=False)


def test_plan_counts_what_the_run_asks():
    p = Ridge()
    given = {"steps": 6, "estimator": "unrolled", "inner": {**INNER, "steps": 40}}
    plan = bilevel.plan(p.inner, p.outer, p.x, p.y, **given, progress=False)
    run = bilevel.minimize(p.inner, p.outer, p.x, p.y, **given, progress=False)
    assert plan.steps == 6 and plan.forecasts[0].measured and plan.forecasts[0].changes == {}
    assert plan.forecasts[0].step_cost == {kind: run.records[1]["cost"][kind] for kind in plan.forecasts[0].step_cost}
    assert {"hypergradient": {"memory": "checkpoints"}} in [one.changes for one in plan.forecasts]
    assert plan.choice is not None and plan.choice.fits and plan.limit is None
    assert "checkpoints" in str(plan)
    small = bilevel.plan(p.inner, p.outer, p.x, p.y, **given, memory="1MB", progress=False)
    assert small.choice is None and small.limit == 1_000_000 and "fits" in small.advice
    with pytest.raises(bilevel.Error, match="much"):
        bilevel.plan(p.inner, p.outer, p.x, p.y, **given, memory="much", progress=False)


@pytest.mark.parametrize("directory", [False, True])
def test_explain_takes_a_component_apart(directory, tmp_path):
    p = Ridge()
    out = tmp_path / "run" if directory else None
    inner = {**INNER, "steps": 4000, "tolerance": 1e-13}
    run = bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=3, inner=inner, out=out, progress=False)
    exact = p.exact(run.x)
    explained = bilevel.explain(run, "x[2]", sample_losses=p.losses, top=25)
    assert explained.value == pytest.approx(exact[2].item(), rel=1e-8) and explained.step == 3
    assert explained.x == pytest.approx(run.x[2].item()) and explained.start == p.x[2].item()
    assert explained.direct == 0 and sum(part.value for part in explained.parts) == pytest.approx(explained.implicit)
    assert len(explained.samples) == 25
    for sample in explained.samples:
        assert sample.value == pytest.approx(p.exact(run.x, sample.index)[2].item(), rel=1e-6, abs=1e-9)
    assert "Why x[2] moves" in str(explained)
    if directory:  # functions are given again, and steps that were not kept are done again
        first = bilevel.explain(out, "x[2]", p.inner, p.outer, step=1)
        close(first.x, run.x[2], 1.0)
        close(torch.tensor(first.value, dtype=D), p.exact(_after_one(p, inner))[2], 1e-7)
        assert first.samples == []
        with pytest.raises(TypeError, match="give inner_loss and outer_loss again"):
            bilevel.explain(out, "x[2]")
    else:
        with pytest.raises(ValueError, match="last point only"):
            bilevel.explain(run, "x[2]", step=1)


def _after_one(p, inner):
    return bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=1, inner=inner, progress=False).x


def test_explain_says_what_is_wrong():
    p = Ridge()
    run = bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=1, inner=INNER, progress=False)
    with pytest.raises(bilevel.Error, match=r"x\[0\] to x\[3\]"):
        bilevel.explain(run, "x[7]")
    with pytest.raises(bilevel.Error, match="no hyperparameter"):
        bilevel.explain(run, "z")
    with pytest.raises(ValueError, match="should be equal"):
        bilevel.explain(run, "x[0]", sample_losses=lambda x, y: 2 * p.losses(x, y))
    with pytest.raises(TypeError, match="one number for each outer sample"):
        bilevel.explain(run, "x[0]", sample_losses=p.outer)


COMMAND = """
[problem]
task = "supervised"
dtype = "float64"
[problem.hyperparameters]
l2 = { per = "class", init = -4.0 }
[data]
inner = { builtin = "digits", count = 300 }
outer = { builtin = "digits", first = 300, count = 300 }
[inner]
steps = 300
[outer]
steps = 8
"""


def test_a_run_of_the_command_is_explained_while_other_threads_go_on(tmp_path):
    """All of it is C++, so that the GIL is free: a thread that wakes now and then would otherwise wake once or twice."""
    (tmp_path / "config.toml").write_text(COMMAND)
    wakes, ended = [], threading.Event()

    def other():
        while not ended.is_set():
            time.sleep(0.002)
            wakes.append(1)

    thread = threading.Thread(target=other)
    thread.start()
    before = len(wakes)
    explained = bilevel.explain(tmp_path, "l2[3]", step=8)
    during = len(wakes) - before
    ended.set()
    thread.join()
    assert during > 20
    assert explained.step == 8 and len(explained.samples) == 20 and explained.samples[0].label
    assert sum(part.value for part in explained.parts) == pytest.approx(explained.implicit, rel=1e-9)
