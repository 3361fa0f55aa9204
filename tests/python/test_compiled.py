"""The compiled oracle: what is traced, how it is cut in two, and that compiled programs give what autodiff gives."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as nnf

import bilevel
from bilevel import _compile, _engine
from bilevel.__main__ import compile_config
from bilevel._problem import Problem
from bilevel._structure import Structure

BINARY = os.environ.get("BILEVEL_BINARY", str(pathlib.Path(__file__).resolve().parents[2] / "build" / "bilevel"))


class Weighted:
    """A network of digits' size made small, with a weight for each sample and a ridge for each layer: every product of it is dense."""

    def __init__(self, dtype=torch.double, n=12, d=5, hidden=4, classes=3, seed=0):
        draw = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=dtype)  # noqa: E731
        self.data = (normal(n, d), torch.randint(0, classes, (n,), generator=draw), torch.arange(n))
        self.outer_data = (normal(n, d), torch.randint(0, classes, (n,), generator=draw))
        self.x = {"weight": normal(n), "ridge": normal(2) / 3}
        self.y = {"W": normal(hidden, d) / 2, "b": normal(hidden) / 2, "V": normal(classes, hidden) / 2}

    @staticmethod
    def logits(y, X):
        return nnf.linear(torch.tanh(nnf.linear(X, y["W"], y["b"])), y["V"])

    def inner(self, x, y, batch):
        X, t, i = batch
        losses = nnf.cross_entropy(self.logits(y, X), t, reduction="none")
        ridge = x["ridge"].exp()
        return (torch.sigmoid(x["weight"][i]) * losses).mean() + ridge[0] * y["W"].square().sum() + ridge[1] * y["V"].square().sum()

    def outer(self, x, y, batch):
        return nnf.cross_entropy(self.logits(y, batch[0]), batch[1]) + x["ridge"].square().sum()

    def problem(self):
        return Problem(
            self.inner, self.outer, Structure(self.x, "x"), Structure(self.y, "y"), inner_data=self.data, outer_data=self.outer_data
        )


def products(loss, x, y, w, u):
    """g, r, H w, (∂x r)ᵀ w and ∂x r u by autograd."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = loss(x, y)
    r, g_x = torch.autograd.grad(value, (y, x), create_graph=True)
    hvp, cross = torch.autograd.grad(r, (y, x), w, retain_graph=True)
    return value.detach(), r.detach(), hvp, cross, torch.autograd.grad(g_x, y, u)[0]


def check_programs(traced, loss, x, y, batch):
    """The programs of an inner loss against autograd, run as the graphs that they are before they are compiled."""
    draw = torch.Generator().manual_seed(1)
    w, u = (torch.randn(len(p), generator=draw, dtype=torch.double).to(p.dtype) for p in (y, x))
    inputs = [x, y, *batch, *traced.constants]
    value, residual, hvp, cross, jvp_x = products(loss, x, y, w, u)
    found = traced.program("linearization")(*inputs)
    saved = found[2:]
    pairs = [
        *zip(traced.program("gradient")(*inputs), (value, residual)),
        *zip(found, (value, residual)),
        (traced.program("hvp")(w, *inputs, *saved)[0], hvp),
        *zip(traced.program("vjp")(w, *inputs, *saved), (hvp, cross)),
        (traced.program("jvp_x")(u, *inputs, *saved)[0], jvp_x),
    ]
    bound = 1e-12 if x.dtype == torch.double else 1e-4
    for got, expected in pairs:
        assert got.shape == expected.shape and expected.norm() > 0
        assert (got - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("dtype", [torch.double, torch.float])
@pytest.mark.parametrize("samples", [None, torch.tensor([3, 0, 7, 3])])
def test_the_programs_cut_from_one_trace_give_every_derivative(dtype, samples):
    problem = Weighted(dtype).problem()
    x, y = problem.x0, problem.y0
    traced = _compile._trace(problem.inner_loss, "inner_loss", x, y, samples)
    check_programs(traced, lambda a, b: problem.inner_loss(a, b, samples, 0), x, y, [] if samples is None else [samples])


def test_a_product_repeats_no_matrix_product_of_the_linearization():
    problem = Weighted().problem()
    traced = _compile._trace(problem.inner_loss, "inner_loss", problem.x0, problem.y0, None)
    matrix_products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    count = lambda graph: sum(node.target in matrix_products for node in graph.nodes)  # noqa: E731
    whole = _compile._extract([*traced.directions.values(), *traced.inputs], [traced.outputs[o] for o in ("residual", "hvp")])
    first, second = (count(traced.program(kind).graph) for kind in ("linearization", "hvp"))
    assert first > 0 and second > 0
    assert first + second == count(whole.graph)


def test_captured_tensors_are_inputs_and_no_copies():
    captured = torch.tensor([1.0, 2.0], dtype=torch.double)
    traced = _compile._trace(
        lambda x, y, samples, step: (captured * y * x).square().sum(), "inner_loss", torch.ones(2).double(), torch.ones(2).double(), None
    )
    (constant,) = traced.constants
    assert constant.data_ptr() == captured.data_ptr()
    captured.mul_(3)
    value, _ = traced.program("gradient")(torch.ones(2).double(), torch.ones(2).double(), *traced.constants)
    assert value.item() == pytest.approx(9 + 36)


def test_operations_in_place_are_traced_as_what_they_compute():
    def loss(x, y, samples, step):
        z = torch.zeros(3, dtype=y.dtype)
        z[:2] += (y * x.exp()).pow(3)
        return z.mul_(2).sum()

    x, y = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.5, 1.5]).double()
    traced = _compile._trace(loss, "inner_loss", x, y, None)
    check_programs(traced, lambda a, b: loss(a, b, None, 0), x, y, [])


def with_decision(x, y):
    return (x * y).sum() if y.sum().item() > 0 else (x - y).square().sum()


def with_a_value(x, y):
    return (x * y).square().sum() * y.sum().item()


def with_a_mask(x, y):
    return (x * y)[y > 0].square().sum()


def with_dropout(x, y):
    return (nnf.dropout(y, 0.5) * x).square().sum()


class WithStatistics(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def __call__(self, x, y):
        return (self.norm((x * y).view(3, 2)) * y.view(3, 2)).sum()


@pytest.mark.parametrize(
    "loss, names",
    [
        (with_decision, ["inner_loss", "_local_scalar_dense"]),
        (with_a_value, ["inner_loss", "_local_scalar_dense"]),
        (with_a_mask, ["inner_loss", "shapes that depend on values"]),
        (with_dropout, ["random"]),
        (WithStatistics(), ["changes a tensor that it captures"]),
    ],
)
def test_what_cannot_be_traced_is_an_error_that_says_why(loss, names):
    with pytest.raises(bilevel.Error) as caught:
        bilevel.hypergradient(loss, loss, torch.ones(6), torch.ones(6), oracle="compiled", inner={"steps": 1, "lr": 0.1})
    assert all(name in str(caught.value) for name in [*names, "autodiff"])


def test_losses_said_to_draw_random_numbers_are_refused():
    with pytest.raises(bilevel.Error, match="random"):
        bilevel.hypergradient(with_dropout, with_dropout, torch.ones(2), torch.ones(2), oracle="compiled", random=True)


def test_without_a_compiler_and_a_package_the_error_says_so(monkeypatch, tmp_path):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no working compiler was found")

    import torch._inductor

    monkeypatch.setenv("BILEVEL_CACHE", str(tmp_path))
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", no_compiler)
    loss = lambda x, y: (x * y - 1).square().sum()  # noqa: E731
    with pytest.raises(bilevel.Error, match=r"no working compiler.*autodiff"):
        bilevel.hypergradient(loss, loss, torch.ones(2), torch.ones(2), oracle="compiled", inner={"steps": 1, "lr": 0.1})


@pytest.fixture
def uncompiled(monkeypatch):
    """Programs run as the graphs that they are compiled from."""
    monkeypatch.setattr(_compile, "_loaded", lambda program, what: _engine.LoadedProgram(program.forward))


def hypergradient(task, oracle, **options):
    found = bilevel.hypergradient(
        task.inner, task.outer, task.x, task.y, inner_data=task.data, outer_data=task.outer_data, oracle=oracle, **options
    )  # fmt: skip
    return torch.cat(list(found.value.values()))


OPTIONS = {
    "unrolled": {"estimator": "unrolled", "inner": {"lr": 0.2, "steps": 7, "batch": 6, "momentum": 0.5}},
    "forward": {"estimator": "forward", "inner": {"lr": 0.2, "steps": 4}},
    "implicit": {"iterations": 6, "damping": 0.5, "inner": {"lr": 0.2, "steps": 20}},
    "implicit by blocks": {"solver": "nystrom", "damping": 0.5, "inner": {"lr": 0.2, "steps": 20}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype, bound", [(torch.double, 1e-11), (torch.float, 1e-3)])
def test_estimators_get_from_programs_what_they_get_from_autodiff(uncompiled, options, dtype, bound):
    task = Weighted(dtype)
    found, expected = (hypergradient(task, oracle, **options) for oracle in ("compiled", "autodiff"))
    assert 0 < (found - expected).norm() < bound * expected.norm()  # equal to rounding, and not the same operations


def test_programs_that_are_kept_take_other_data_and_are_traced_once(uncompiled, monkeypatch):
    one, other = Weighted(), Weighted(seed=5)
    expected = [hypergradient(task, "autodiff", **OPTIONS["unrolled"]) for task in (one, other)]
    assert (expected[0] - expected[1]).norm() > 0.1 * expected[0].norm()
    kept = bilevel.Compiled()
    found = [hypergradient(one, kept, **OPTIONS["unrolled"])]
    monkeypatch.setattr(_compile, "_trace", None)
    found.append(hypergradient(other, kept, **OPTIONS["unrolled"]))
    for got, wanted in zip(found, expected):
        assert (got - wanted).norm() < 1e-11 * wanted.norm()


def test_a_run_by_programs_is_the_run_by_autodiff(uncompiled):
    task = Weighted()

    def run(oracle):
        options = {"estimator": "unrolled", "inner": {"lr": 0.2, "steps": 3}, "oracle": oracle, "progress": False, "steps": 3}
        return bilevel.minimize(task.inner, task.outer, task.x, task.y, inner_data=task.data, outer_data=task.outer_data, **options)

    found, expected = run("compiled"), run("autodiff")
    for name, start in task.x.items():
        moved = (expected.x[name] - start).norm()
        assert moved > 0 and (found.x[name] - expected.x[name]).norm() < 1e-9 * moved


def test_the_command_uses_what_was_compiled_for_a_configuration_and_neither_python_nor_a_compiler(monkeypatch, tmp_path, capsys):
    cache = tmp_path / "cache"
    monkeypatch.setenv("BILEVEL_CACHE", str(cache))
    config = tmp_path / "config.toml"
    config.write_text("""
        [problem]
        model = "mlp"
        hidden = [3]
        dtype = "float64"
        [problem.hyperparameters]
        l2 = { per = "layer", init = -2.0 }
        [data]
        inner = { builtin = "digits", first = 0, count = 20 }
        outer = { builtin = "digits", first = 20, count = 20 }
        [inner]
        lr = 0.1
        steps = 4
        init = "random"
        [hypergradient]
        estimator = "unrolled"
        bound_every = 0
        check_every = 0
    """)

    def command(oracle, *more, code=0, folder=cache):
        arguments = ["hypergrad", config, "--json", "--no-check", "--threads", "1", "--set", f"run.oracle={oracle}", *more]
        done = subprocess.run(
            [BINARY, *map(str, arguments)], env={"BILEVEL_CACHE": str(folder), "PATH": ""}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, done.stderr
        return torch.tensor(json.loads(done.stdout)["hypergradient"]).double() if code == 0 else done.stderr

    assert "python -m bilevel compile" in command("compiled", code=2)
    assert compile_config([str(config), "--threads", "1"]) == 0
    made = int(capsys.readouterr().out.split()[0])
    assert made == len(list(cache.glob("*.pt2"))) == 3  # linearization, vjp, outer
    found, expected = command("compiled"), command("autodiff")
    assert (found - expected).norm() < 1e-8 * expected.norm()
    for listed in cache.glob("problem-*"):
        shutil.copy(listed, tmp_path)
    assert "no compiled program" in command("compiled", code=2, folder=tmp_path)  # so the packages were used
    assert "have not been compiled" in command("compiled", "--set", "problem.hyperparameters.l2.init=-3.0", code=2)


def test_losses_of_a_configuration_are_traced_like_those_of_python(monkeypatch, tmp_path):
    class SeenError(Exception):
        pass

    def look(self, kind, x, y, samples):
        loss = self._losses.inner_loss
        point = 0.1 * torch.randn(len(y), generator=torch.Generator().manual_seed(0), dtype=torch.double)
        traced = _compile._trace(loss, "inner_loss", x, y, samples)
        check_programs(traced, lambda a, b: loss(a, b, samples, 0), x, point, [] if samples is None else [samples])
        raise SeenError(kind)

    config = tmp_path / "config.toml"
    config.write_text("""
        [problem]
        model = "cnn"
        channels = [2, 3]
        dtype = "float64"
        [problem.hyperparameters]
        sample_weight = { init = 0.0 }
        l2 = { per = "layer", init = -2.0 }
        [data]
        inner = { builtin = "digits", first = 0, count = 20 }
        outer = { builtin = "digits", first = 20, count = 20 }
        [inner]
        lr = 0.1
        batch = 5
        steps = 2
        init = "random"
        [hypergradient]
        estimator = "unrolled"
    """)
    monkeypatch.setattr(_compile.Programs, "program", look)
    with pytest.raises(SeenError, match="linearization"):
        _engine.compile_config(str(config), [])


def test_the_packages_of_another_number_of_threads_are_others():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _engine.compiled_for()
        torch.set_num_threads(2)
        assert _engine.compiled_for() != one
    finally:
        torch.set_num_threads(threads)
    assert pathlib.Path(_engine.compiled_cache()).is_absolute()
