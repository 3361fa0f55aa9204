"""The numbers of other programs (E1–E3 of the reference on peer libraries), through the command line, from plain files."""
import gzip
import json
import pathlib
import random

import pytest

from test_run import log_of, npy

ROOT = pathlib.Path(__file__).resolve().parents[2]


class RandomState:
    """numpy.random.RandomState: mt19937 seeded by one number."""

    def __init__(self, seed):
        state = [seed]
        for i in range(1, 624):
            state.append((1812433253 * (state[-1] ^ (state[-1] >> 30)) + i) & 0xFFFFFFFF)
        self.generator = random.Random()
        self.generator.setstate((3, tuple(state) + (624,), None))
        self.kept = None

    def normal(self):
        if self.kept is not None:
            value, self.kept = self.kept, None
            return value
        while True:
            a, b = 2 * self.generator.random() - 1, 2 * self.generator.random() - 1
            square = a * a + b * b
            if 0 < square < 1:
                break
        import math
        factor = math.sqrt(-2 * math.log(square) / square)
        self.kept = factor * a
        return factor * b

    def permutation(self, n):
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            mask = (1 << i.bit_length()) - 1
            while True:
                j = self.generator.getrandbits(32) & mask
                if j <= i:
                    break
            order[i], order[j] = order[j], order[i]
        return order


NOTEBOOK = """
[problem]
loss = "logistic"
dtype = "float64"
bias = false
[problem.hyperparameters]
l2 = { per = "feature", init = 1.0, param = "identity", min = 1e-8 }
[data]
inner = { x = "train_x.npy", y = "train_y.npy" }
outer = { x = "val_x.npy", y = "val_y.npy" }
[inner]
rule = "sgd"
lr = 0.1
steps = 100
start = "cold"
[hypergradient]
estimator = "unrolled"
[outer]
rule = "sgd"
lr = 1.0
momentum = 0.9
steps = 100
"""


@pytest.fixture
def notebook(tmp_path):
    """hypertorch's logistic_regression.ipynb."""
    rng = RandomState(1)
    oracle = [rng.normal() for _ in range(20)]
    assert oracle[:2] == pytest.approx([1.62434536, -0.61175641])
    x = [[rng.normal() for _ in range(20)] for _ in range(1000)]
    y = [float(sum(a * b for a, b in zip(row, oracle)) + 0.1 * rng.normal() > 0) for row in x]
    order = rng.permutation(1000)
    assert order[:5] == [648, 134, 667, 844, 149] and sum(y) == 518
    for name, part in (("val", order[:500]), ("train", order[500:])):
        npy(tmp_path / f"{name}_x.npy", [value for i in part for value in x[i]], "<f4", (500, 20))
        npy(tmp_path / f"{name}_y.npy", [y[i] for i in part], "<f4")
    config = tmp_path / "notebook.toml"
    config.write_text(NOTEBOOK)
    return config


def hypergrad(bilevel, config, *assignments, code=0):
    sets = [argument for assignment in assignments for argument in ("--set", assignment)]
    return json.loads(bilevel("hypergrad", config, "--json", *sets, code=code).stdout)


# First components; where all twenty are published, the norm follows too.
E1 = {
    "unrolled": ([], [0.008659258, 0.001510068, 0.000790458, 0.003071124, 0.005326387]),
    "last ten": (["hypergradient.steps=10"], [0.006463654, 0.001089672, 0.000597967, 0.002240709, 0.004055269]),
    "cg 1": (["hypergradient.estimator=implicit", "hypergradient.iterations=1"],
             [0.008948293, 0.001463039, 0.000843330, 0.003033078, 0.005706814]),
    "cg 2": (["hypergradient.estimator=implicit", "hypergradient.iterations=2"],
             [0.008666339, 0.001507881, 0.000782652, 0.003078645, 0.005343971]),
    "cg 20": (["hypergradient.estimator=implicit", "hypergradient.iterations=20"],
              [0.008659401, 0.001510136, 0.000790472, 0.003071210, 0.005326420]),
    "neumann": (["hypergradient.estimator=implicit", "hypergradient.solver=neumann", "hypergradient.iterations=99"],
                [0.008659392, 0.001510131, 0.000790470, 0.003071204, 0.005326422]),
}


@pytest.mark.parametrize("name", E1)
def test_hypergradients_of_the_notebook(bilevel, notebook, name):
    sets, values = E1[name]
    # One product leaves a large residual, which may be graded BAD.
    done = bilevel.start("hypergrad", notebook, "--json", *[a for s in sets for a in ("--set", s)])
    result = json.loads(done.communicate()[0])
    assert result["hypergradient"][:5] == pytest.approx(values, abs=1e-9)
    assert result["inner_loss"] == pytest.approx(0.6240899339, abs=1e-10)
    assert result["outer_loss"] == pytest.approx(0.5743989630, abs=1e-10)
    assert result["direct_norm"] == 0
    assert result["certificate"]["differentiates"].startswith("F_T" if "implicit" not in str(sets) else "F")


E2 = {
    "sgd": (["inner.steps=5"], 0.6311763077, 0.003873170, [0.001253168, 0.000186383, 0.000135909]),
    "weight decay": (["inner.steps=5", "inner.weight_decay=0.1"], 0.6323248799, 0.003799239, [0.001229617, 0.000182776, 0.000133626]),
    "momentum": (["inner.steps=20", "inner.momentum=0.9"], 0.5947882701, 0.010357555, [-0.003913561, -0.000340690, -0.000429056]),
    "adam 5": (["inner.rule=adam", "inner.lr=0.05", "inner.steps=5"], 0.5272486759, 0.032386026, [0.008922648, 0.003366614, 0.001950426]),
    "adam 20": (["inner.rule=adam", "inner.lr=0.05", "inner.steps=20"], 0.5660182114, 0.024088390,
                [0.001322082, 0.000022480, 0.001541767]),
    "adamw": (["inner.rule=adamw", "inner.lr=0.05", "inner.weight_decay=0.01", "inner.steps=5"], 0.5273759818, 0.032370994,
              [0.008918482, 0.003360367, 0.001950619]),
}


@pytest.mark.parametrize("name", E2)
def test_unrolled_optimizers(bilevel, notebook, name):
    sets, outer, norm, values = E2[name]
    result = hypergrad(bilevel, notebook, *sets)
    assert result["outer_loss"] == pytest.approx(outer, abs=1e-10)
    assert result["norm"] == pytest.approx(norm, abs=1e-9)
    assert result["hypergradient"][:3] == pytest.approx(values, abs=1e-9)


def test_outer_loop_of_the_notebook(bilevel, notebook, tmp_path):
    bilevel("run", notebook, "--out", "out", "--set", "hypergradient.steps=10")
    losses = [record["outer_loss"] for record in log_of(tmp_path / "out")]
    published = {0: .5743989630, 10: .5337679255, 20: .3615219078, 30: .3225042933, 40: .2987646017, 50: .2944669355, 100: .2853543584}
    for step, loss in published.items():
        assert losses[step] == pytest.approx(loss, abs=1e-9), step


CLEANING = """
[problem]
dtype = "float64"
[problem.hyperparameters]
sample_weight = { init = 0.0, param = "sigmoid" }
[problem.fixed]
l2 = 0.01
l2_bias = true
[data]
inner = { x = "train_x.npy", y = "train_y.npy" }
outer = { x = "val_x.npy", y = "val_y.npy" }
test = { x = "test_x.npy", y = "test_y.npy" }
[inner]
rule = "sgd"
lr = 0.5
steps = 100
start = "cold"
[hypergradient]
estimator = "unrolled"
"""


def test_data_cleaning(bilevel, tmp_path):
    with gzip.open(ROOT / "bilevel" / "problem" / "data" / "digits.csv.gz", "rt") as file:
        rows = [[float(value) for value in line.split(",")] for line in file if line[0].isdigit()]
    assert len(rows) == 1797
    features, labels = [[value / 16 for value in row[:64]] for row in rows], [int(row[64]) for row in rows]
    for i in range(0, 500, 2):
        labels[i] = (labels[i] + 1 + (i // 2) % 9) % 10
    assert labels[:12] == [1, 1, 4, 3, 7, 5, 0, 7, 3, 9, 6, 1]
    for name, begin, end in (("train", 0, 500), ("val", 500, 1000), ("test", 1000, 1797)):
        npy(tmp_path / f"{name}_x.npy", [value for row in features[begin:end] for value in row], "<f8", (end - begin, 64))
        npy(tmp_path / f"{name}_y.npy", labels[begin:end], "<i8")
    config = tmp_path / "cleaning.toml"
    config.write_text(CLEANING)
    result = hypergrad(bilevel, config)
    assert result["inner_loss"] == pytest.approx(0.9594366947, abs=1e-10)
    assert result["outer_loss"] == pytest.approx(1.6326698867, abs=1e-10)
    assert result["norm"] == pytest.approx(2.444055959e-2, abs=1e-10)
    assert result["hypergradient"][:3] == pytest.approx([1.850383e-3, -1.488963e-3, -1.452928e-4], abs=1e-9)
    assert sum(result["hypergradient"][0::2]) == pytest.approx(0.1076732091, abs=1e-9)
    assert sum(result["hypergradient"][1::2]) == pytest.approx(-0.2530364191, abs=1e-9)
    last_ten = hypergrad(bilevel, config, "hypergradient.steps=10")
    assert last_ten["norm"] == pytest.approx(7.702580692e-3, abs=1e-10)
    bilevel("run", config, "--out", "out", "--set", "outer.rule=adam", "--set", "outer.lr=0.1", "--set", "outer.steps=10")
    records = log_of(tmp_path / "out")
    for step, loss, accuracy in ((0, 1.63266989, 0.670013), (1, 1.59012645, 0.700125), (5, 1.43762740, 0.772898), (10, 1.28970112, 0.795483)):
        assert records[step]["outer_loss"] == pytest.approx(loss, abs=1e-8)
        assert records[step]["metrics"]["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
