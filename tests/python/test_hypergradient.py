"""bilevel.hypergradient: published numbers, closed forms, finite differences; what goes wrong, and how it is said."""

import gc
import weakref

import pytest
import torch
from torch import nn

import bilevel
from conftest import close
from problems import E1_EXACT, E1_REVERSE, Cleaning, Logistic, Sinusoids

GD = {"rule": "sgd", "lr": 0.1, "steps": 100}


@pytest.fixture(scope="module")
def logistic():
    return Logistic()


def test_e1_reverse(logistic):
    h = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, estimator="unrolled", inner=GD)
    assert h.inner_loss == pytest.approx(0.6240899339, abs=1e-10)
    assert h.outer_loss == pytest.approx(0.5743989630, abs=1e-10)
    assert (h.value - torch.tensor(E1_REVERSE, dtype=torch.double)).abs().max() < 1e-8
    assert h.certificate.differentiates == "F_T"


def test_e1_implicit_at_the_optimum(logistic):
    inner = {"rule": "sgd", "lr": 0.5, "steps": 5000, "tolerance": 1e-12}
    h = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, inner=inner, iterations=40, tolerance=1e-13)
    assert h.status == "OK" and h.certificate.error_bound is None
    assert (h.value - torch.tensor(E1_EXACT, dtype=torch.double)).abs().max() < 1e-8
    again = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, h.y, solved=True, iterations=40, tolerance=1e-13)
    close(again.value, h.value, 1e-10)


def test_a_bound_holds_and_slopes_agree(logistic):
    inner = {"rule": "sgd", "lr": 0.5, "steps": 60}  # some way from the optimum
    h = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, inner=inner, bound=True, check=True)
    error = (h.value - torch.tensor(E1_EXACT, dtype=torch.double)).norm().item()
    assert 1e-9 < error <= h.certificate.error_bound + 1e-8 <= 10 * error + 1e-7
    assert h.status == "OK"
    wrong = bilevel.hypergradient(
        logistic.inner, logistic.outer, logistic.x, logistic.y, estimator="identity", inner=inner, bound=True, check=True
    )
    assert wrong.certificate.distance_to_F > 0.01 * wrong.norm


@pytest.mark.parametrize(
    ("rule", "steps", "norm", "first"),
    [
        ({"rule": "sgd", "lr": 0.1}, 5, 0.003873170, [0.001253168, 0.000186383, 0.000135909]),
        ({"rule": "sgd", "lr": 0.1, "momentum": 0.9}, 20, 0.010357555, [-0.003913561, -0.000340690, -0.000429056]),
        ({"rule": "adam", "lr": 0.05}, 20, 0.024088390, [0.001322082, 0.000022480, 0.001541767]),
        ({"rule": "adamw", "lr": 0.05, "weight_decay": 0.01}, 5, 0.032370994, [0.008918482, 0.003360367, 0.001950619]),
    ],
)
def test_e2_rules(logistic, rule, steps, norm, first):
    h = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, estimator="unrolled", inner={**rule, "steps": steps})
    assert h.norm == pytest.approx(norm, abs=1e-8)
    assert (h.value[:3] - torch.tensor(first, dtype=torch.double)).abs().max() < 1e-8


def test_e3_cleaning(digits):
    p = Cleaning(*digits)
    h = bilevel.hypergradient(p.inner, p.outer, p.x, p.y, estimator="unrolled", inner={"rule": "sgd", "lr": 0.5, "steps": 100})
    assert h.outer_loss == pytest.approx(1.6326698867, abs=1e-9)
    assert h.norm == pytest.approx(2.444055959e-2, abs=1e-9)
    assert h.value[0::2].sum() == pytest.approx(0.1076732091, abs=1e-8)
    assert h.value[1::2].sum() == pytest.approx(-0.2530364191, abs=1e-8)


@pytest.mark.parametrize(
    ("rule", "steps", "lr", "loss", "norm", "first"),
    [
        ("sgd", 1, 0.1, 1.851725765035, 4.613839751231, [-0.9105268321, -0.6316432911, -0.2418779126, 0.2028280055]),
        ("sgd", 5, 0.05, 0.553577091482, 2.971137095976, [-0.4427849232, -0.2877076467, -0.1307855732, 0.1043180121]),
        ("adam", 3, 0.05, 1.267118398111, 3.475295106183, [-0.9438818932, -0.2417869268, 0.1632374368]),
    ],
)
def test_e4_maml(rule, steps, lr, loss, norm, first):
    net = Sinusoids()
    total, gradient = 0.0, None
    for task in range(4):
        support, query = Sinusoids.data(task)
        h = bilevel.hypergradient(
            lambda x, y, s=support: (y(s[0]) - s[1]).square().mean(),
            lambda x, y, q=query: (y(q[0]) - q[1]).square().mean(),
            dict(net.named_parameters()),
            net,
            estimator="unrolled",
            initial_inner=lambda x: x,
            inner={"rule": rule, "lr": lr, "steps": steps},
        )
        total += h.outer_loss / 4
        flat = torch.cat([v.reshape(-1) for v in h.value.values()]) / 4
        gradient = flat if gradient is None else gradient + flat
    assert total == pytest.approx(loss, abs=1e-9)
    assert gradient.norm().item() == pytest.approx(norm, abs=1e-8)
    assert (gradient[: len(first)] - torch.tensor(first, dtype=torch.double)).abs().max() < 1e-8


def test_initial_inner_by_name():
    """y₀(x) may have its parts in another order than y; other shapes are refused."""
    x = {"a": torch.tensor([1.0, -2.0]).double(), "b": torch.tensor([[0.5]]).double()}

    def inner(x, y):
        return (y["a"] ** 4).sum() + (y["b"] ** 4).sum()

    def outer(x, y):
        return (y["a"] * torch.tensor([1.0, 3.0])).sum() + 5 * y["b"].sum()

    def step(v):  # one step of gradient descent
        return v - 0.01 * 4 * v**3

    options = {"estimator": "unrolled", "inner": {"lr": 0.01, "steps": 1}}
    h = bilevel.hypergradient(inner, outer, x, x, initial_inner=lambda x: {"b": x["b"], "a": x["a"]}, **options)
    assert torch.allclose(h.y["a"], step(x["a"]), rtol=1e-14)
    assert torch.allclose(h.value["a"], torch.tensor([1.0, 3.0]).double() * (1 - 0.12 * x["a"] ** 2), rtol=1e-14)
    assert torch.allclose(h.value["b"], 5 * (1 - 0.12 * x["b"] ** 2), rtol=1e-14)
    with pytest.raises(ValueError, match=r"initial_inner\(x\) should have a \[2\], b \[1, 1\], got a \[2\], b \[1\]"):
        bilevel.hypergradient(inner, outer, x, x, initial_inner=lambda x: {"a": x["a"], "b": x["b"][0]}, **options)


def test_structures(logistic):
    """The same numbers for a tensor, a dictionary and a module."""
    plain = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, estimator="unrolled", inner=GD).value
    x = {"first": logistic.x[:7].clone(), "rest": logistic.x[7:].reshape(13, 1).clone()}
    net = nn.Linear(20, 1, bias=False).double()
    nn.init.zeros_(net.weight)

    def whole(x):
        return torch.cat([x["first"], x["rest"].reshape(-1)])

    h = bilevel.hypergradient(
        lambda x, y: (
            nn.functional.binary_cross_entropy_with_logits(y(logistic.X).squeeze(1), logistic.t)
            + 0.5 * (whole(x) * y["weight"].square().squeeze(0)).sum()
        ),
        lambda x, y: nn.functional.binary_cross_entropy_with_logits(y(logistic.Xv).squeeze(1), logistic.tv),
        x,
        net,
        estimator="unrolled",
        inner=GD,
    )
    assert h.value["rest"].shape == (13, 1)
    close(whole(h.value), plain, 1e-12)
    assert h.y["weight"].shape == (1, 20)
    assert not net.weight.any()  # what was given is left as it was


def test_minibatches_follow_the_data(logistic):
    def loss(x, y, batch):
        X, t = batch
        return nn.functional.binary_cross_entropy_with_logits(X @ y, t) + 0.5 * (x * y * y).sum()

    inner = {"rule": "sgd", "lr": 0.1, "steps": 20, "batch": 50}
    given = {"inner_data": (logistic.X, logistic.t), "estimator": "unrolled", "inner": inner}
    a = bilevel.hypergradient(loss, logistic.outer, logistic.x, logistic.y, **given, seed=1)
    b = bilevel.hypergradient(loss, logistic.outer, logistic.x, logistic.y, **given, seed=1)
    c = bilevel.hypergradient(loss, logistic.outer, logistic.x, logistic.y, **given, seed=2)
    assert torch.equal(a.value, b.value)
    assert not torch.equal(a.value, c.value)


def test_a_loss_raises_its_own_exception(logistic):
    class Mine(RuntimeError):
        pass

    calls = []

    def bad(x, y):
        calls.append(1)
        if len(calls) == 5:
            raise Mine("in the loss")
        return logistic.inner(x, y)

    with pytest.raises(Mine, match="in the loss"):
        bilevel.hypergradient(bad, logistic.outer, logistic.x, logistic.y, estimator="unrolled", inner=GD)
    h = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, estimator="unrolled", inner=GD)
    assert h.status == "OK"  # nothing is left of the failure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "unroled"}, "unrolled"),
        ({"iteratons": 3}, "iterations"),
        ({"inner": {"rule": "sgdd"}}, "sgd"),
        ({"inner": {"lr": -1.0}}, "lr"),
        ({"x": torch.ones(3, dtype=torch.int64)}, "int64"),
        ({"x": torch.ones(20)}, "float32"),
        ({"y": {}}, "empty"),
        ({"inner_loss": lambda x, y: y}, "scalar"),
        ({"iterations": {}}, "dict"),
    ],
)
def test_misuse_says_what_would_be_right(logistic, change, message):
    given = {"inner_loss": logistic.inner, "outer_loss": logistic.outer, "x": logistic.x, "y": logistic.y, **change}
    with pytest.raises((bilevel.Error, TypeError, ValueError), match=message):
        bilevel.hypergradient(**given)


def test_a_solver_may_be_drawn_out_of_several(logistic):
    """Of two that are the same; an unknown key in one of them is refused by name."""
    given = (logistic.inner, logistic.outer, logistic.x, logistic.y)
    options = {"estimator": "implicit", "iterations": 5}
    drawn = {"solver": "sampled", "candidates": {"first": GD, "second": GD}}
    found = bilevel.hypergradient(*given, **options, inner=drawn)
    assert torch.equal(found.value, bilevel.hypergradient(*given, **options, inner=GD).value)
    with pytest.raises(bilevel.Error, match="step"):
        bilevel.hypergradient(*given, **options, inner={"solver": "sampled", "candidates": {"first": {"step": 3}}})


def test_moreau_takes_a_few_steps_for_a_proximal_one():
    """From y₀(x) = x, on a loss of curvature a, with γ = 5 · 0.1 by itself: ∂y f at the end, divided by 1 + γ a."""
    a, b = torch.linspace(0.5, 2, 4, dtype=torch.double), torch.linspace(-1, 1, 4, dtype=torch.double)
    x = torch.linspace(0, 1, 4, dtype=torch.double)
    given = {"inner_loss": lambda x, y: (a * y.square() / 2 - b * y).sum(), "outer_loss": lambda x, y: y.cos().sum(), "x": x, "y": x}
    h = bilevel.hypergradient(**given, initial_inner=lambda x: x, estimator="moreau", inner={"rule": "sgd", "lr": 0.1, "steps": 5})
    end = b / a + (x - b / a) * (1 - 0.1 * a) ** 5
    assert (h.value + end.sin() / (1 + 0.5 * a)).norm() < 1e-8


def test_a_budget_of_bytes_gives_the_same(logistic):
    given = {"estimator": "unrolled", "inner": GD, "memory": "checkpoints"}
    h = bilevel.hypergradient(logistic.inner, logistic.outer, logistic.x, logistic.y, **given, budget="1MB")
    assert (h.value - torch.tensor(E1_REVERSE, dtype=torch.double)).abs().max() < 1e-8


def test_nothing_is_kept(logistic):
    class Holder:
        def __call__(self, x, y):
            return logistic.inner(x, y)

    holder = Holder()
    gone = weakref.ref(holder)
    bilevel.hypergradient(holder, logistic.outer, logistic.x, logistic.y, inner={"steps": 3})
    del holder
    gc.collect()
    assert gone() is None


@pytest.fixture
def predicted():
    """Weighted least squares by a linear model of the outputs: f and g take z = predict(y, batch) in the place of y."""
    draw = torch.Generator().manual_seed(0)
    features, targets = torch.randn(30, 4, generator=draw, dtype=torch.double), torch.randn(30, generator=draw, dtype=torch.double)
    outer = (torch.randn(20, 4, generator=draw, dtype=torch.double), torch.randn(20, generator=draw, dtype=torch.double))
    return {
        "inner_loss": lambda x, z, batch: 0.5 * (torch.sigmoid(x[batch[2]]) * (z - batch[1]) ** 2).mean(),
        "outer_loss": lambda x, z, batch: 0.5 * ((z - batch[1]) ** 2).mean() + 0.05 * (x**2).mean(),
        "x": torch.randn(30, generator=draw, dtype=torch.double),
        "y": {"w": torch.zeros(4, dtype=torch.double)},
        "inner_data": (features, targets, torch.arange(30)),
        "outer_data": outer,
        "inner": {"solver": "lbfgs", "tolerance": 1e-12},
        "predict": lambda y, batch: batch[0] @ y["w"],
    }


def test_a_model_gives_its_outputs_by_predict(predicted):
    exact = bilevel.hypergradient(**predicted, solver="dense")
    network = bilevel.hypergradient(**predicted, estimator="functional", adjoint="network", adjoint_steps=3000, adjoint_lr=0.01)
    curvature = bilevel.hypergradient(**predicted, solver="dense", curvature="gauss-newton")
    assert (network.value - exact.value).norm() < 1e-3 * (exact.value - exact.direct).norm()
    assert (exact.value - exact.direct).norm() > 0.1 * exact.direct.norm()
    assert (curvature.value - exact.value).norm() < 1e-9 * exact.value.norm()  # the outputs are linear in y
    assert network.cost["hvps"] == 0
    assert network.certificate.more["bias"]


def test_predict_wants_data_and_functional_wants_predict(predicted):
    with pytest.raises(ValueError, match="inner_data"):
        bilevel.hypergradient(**{**predicted, "outer_data": None})
    with pytest.raises(bilevel.Error, match='adjoint = "network"'):
        bilevel.hypergradient(**predicted, estimator="functional")
    x = torch.ones(3, dtype=torch.double)
    with pytest.raises(bilevel.Error, match="outputs"):
        bilevel.hypergradient(lambda x, y: ((y - x) ** 2).sum(), lambda x, y: (y**2).sum(), x, x, estimator="functional")
