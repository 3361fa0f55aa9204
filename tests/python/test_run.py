"""bilevel.minimize, resume and load_run."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import bilevel
from conftest import close
from problems import Logistic

INNER = {"rule": "sgd", "lr": 0.1, "steps": 100, "start": "cold"}


def options(**more):
    return {
        "estimator": "unrolled",
        "hypergradient": {"steps": 10},
        "inner": INNER,
        "outer": {"rule": "sgd", "lr": 1.0, "momentum": 0.9},
        "constraints": {"x": (1e-8, None)},
        "progress": False,
        **more,
    }


def test_e1_outer_loop():
    p = Logistic()
    run = bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=50, **options())
    losses = [r["outer_loss"] for r in run.records]
    for step, expected in [(0, 0.5743989630), (10, 0.5337679255), (20, 0.3615219078), (30, 0.3225042933), (50, 0.2944669355)]:
        assert losses[step] == pytest.approx(expected, abs=2e-6)
    assert run.outcome == "done" and run.x.shape == (20,) and run.x.min() >= 1e-8


@pytest.mark.parametrize("algorithm", ["soba", "saba", "ma-soba", "srba"])
def test_single_loop_methods_take_the_way_of_the_double_loop(algorithm):
    t = torch.linspace(0.5, 1.5, 5, dtype=torch.double)
    x, y = torch.zeros(1, dtype=torch.double), torch.zeros(5, dtype=torch.double)

    def inner(x, y):  # y* = t / (1 + exp x)
        return 0.5 * ((y - t).square() + x.exp() * y.square()).sum()

    def outer(x, y):
        return 0.5 * (y - 0.7 * t).square().sum()

    run = bilevel.minimize(inner, outer, x, y, steps=600, algorithm=algorithm, record_every=200, progress=False,
                           inner={"lr": 0.3, "decay": 0.0}, outer={"lr": 0.1})  # fmt: skip
    assert [r["step"] for r in run.records] == [0, 200, 400, 600] and run.rollbacks == 0
    assert run.x.item() == pytest.approx(math.log(1 / 0.7 - 1), rel=1e-6)
    with pytest.raises(bilevel.Error, match="estimator"):
        bilevel.minimize(inner, outer, x, y, algorithm=algorithm, hypergradient={"estimator": "darts"}, progress=False)


def test_a_population_finds_the_basin_that_one_run_does_not(tmp_path):
    t = torch.linspace(0.5, 1.5, 5, dtype=torch.double)
    x, y = torch.full((1,), 1.9, dtype=torch.double), torch.zeros(5, dtype=torch.double)

    def inner(x, y):  # y* = x t
        return 0.5 * (y - x * t).square().sum()

    def outer(x, y):  # minima near −1 and 1, of which the one near −1 is lower
        z = (y / t).mean()
        return (z.square() - 1).square() + 0.3 * z

    given = dict(steps=40, estimator="unrolled", constraints={"x": (-2.0, 2.0)}, progress=False, inner={"lr": 0.5, "steps": 30})
    population = {"rule": "sgd", "lr": 0.02, "population": {"members": 6, "truncation": 0.34}}
    alone = bilevel.minimize(inner, outer, x, y, outer={"rule": "sgd", "lr": 0.02}, **given)
    best = bilevel.minimize(inner, outer, x, y, algorithm="hpm", outer=population, out=tmp_path / "hpm", **given)
    assert alone.x.item() > 0.8
    assert best.x.item() == pytest.approx(min(np.roots([4, 0, -4, 0.3]).real), rel=1e-3)
    assert best.records[-1]["metrics"]["median_outer_loss"] >= best.records[-1]["outer_loss"]
    again = bilevel.minimize(inner, outer, x, y, algorithm="hpm", outer=population, threads=3, **given)
    assert torch.equal(again.x, best.x)
    given["steps"] = 2
    found = bilevel.minimize(inner, outer, x, y, algorithm="random-search", outer={"population": {"members": 6}}, **given)
    assert found.records[0]["metrics"]["best_member"] == found.records[-1]["metrics"]["best_member"]
    with pytest.raises(bilevel.Error, match="min and a max"):
        bilevel.minimize(inner, outer, x, y, algorithm="pbt", progress=False)


def test_resume_ends_at_the_same_bits(tmp_path):
    p = Logistic()
    whole = bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=20, out=tmp_path / "whole", **options())

    def interrupt(record):
        if record["step"] == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=20, out=tmp_path / "cut", **options(callback=interrupt, checkpoint_every=5))
    run = bilevel.resume(tmp_path / "cut", p.inner, p.outer, constraints={"x": (1e-8, None)}, progress=False)
    assert torch.equal(run.x, whole.x) and torch.equal(run.y, whole.y)
    saved = bilevel.load_run(tmp_path / "cut")
    assert len(saved.records) == 21 and saved.summary["status"] == "OK"
    close(saved.x["x"], whole.x, 1e-15)


def test_resume_keeps_the_groups_of_an_optimiser(tmp_path):
    X, t = torch.randn(20, 3, dtype=torch.double), torch.randn(20, dtype=torch.double)
    net = torch.nn.Linear(3, 1).double()
    optimizer = torch.optim.SGD([{"params": [net.weight], "lr": 0.1}, {"params": [net.bias], "lr": 0.01}], lr=0.1)
    losses = (
        lambda x, y: (y(X).squeeze(1) - t).square().mean() + x.exp() * y["weight"].square().sum(),
        lambda x, y: (y(X).squeeze(1) - t - 1).square().mean(),
    )

    def interrupt(record):
        if record["step"] == 2:
            raise KeyboardInterrupt

    given = {"inner": {"rule": optimizer, "steps": 5}, "estimator": "unrolled", "progress": False, "steps": 4}
    x = torch.zeros(1, dtype=torch.double)[0]
    whole = bilevel.minimize(*losses, x, net, **given)
    with pytest.raises(KeyboardInterrupt):
        bilevel.minimize(*losses, x, net, **given, out=tmp_path / "run", callback=interrupt, checkpoint_every=1)
    run = bilevel.resume(tmp_path / "run", *losses, y=net, progress=False)
    assert torch.equal(run.x, whole.x) and torch.equal(run.y["bias"], whole.y["bias"])


def test_resume_compares_the_data(tmp_path):
    p = Logistic()

    def loss(x, y, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(batch[0] @ y, batch[1]) + 0.5 * (x * y * y).sum()

    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bilevel.minimize(loss, p.outer, p.x, p.y, steps=3, out=tmp_path / "run", inner_data=(p.X, p.t), **options(callback=stop))
    with pytest.raises(bilevel.Error, match="other shapes, dtypes or data"):
        bilevel.resume(tmp_path / "run", loss, p.outer, inner_data=(p.X + 1, p.t), constraints={"x": (1e-8, None)}, progress=False)


def test_a_callback_stops_the_run():
    p = Logistic()
    run = bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=50, **options(callback=lambda r: "stop" if r["step"] == 3 else None))
    assert run.outcome == "stopped" and run.steps < 50


def test_control_c_ends_it_within_a_second(tmp_path):
    script = tmp_path / "long.py"
    script.write_text(
        "import sys, torch, bilevel\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from problems import Logistic\n"
        "p = Logistic()\n"
        "print('started', flush=True)\n"
        "bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=10**6, estimator='unrolled', inner={'lr': 0.1, 'steps': 1000})\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "started"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


def test_load_run_refuses_what_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        bilevel.load_run(tmp_path)


def test_the_log_is_json(tmp_path):
    p = Logistic()
    bilevel.minimize(p.inner, p.outer, p.x, p.y, steps=1, out=tmp_path / "r", **options())
    assert all(json.loads(line)["status"] == "OK" for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines())
