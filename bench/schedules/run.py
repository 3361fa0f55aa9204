"""A schedule learned by hypergradients beside a Bayesian optimiser and random search, with as many trainings each.

    python3 bench/schedules/run.py [--seeds 5] [--trainings 10]

Digits of which 30 % of the labels are wrong, 1,000 to train on, 400 to validate, 397 to test; a network of 32 hidden units, 200 steps of
sgd with batches of 64. Searched for: five step sizes of 40 steps each, momentum and weight decay. `bilevel run` learns them from zero by
forward mode and the signs of the hypergradient (docs/algorithms/forward.md); the others propose points in the box that it could have
reached, and are judged by the same configuration. Makes its environment (bayesian-optimization, scikit-learn from PyPI, in
build/schedules-venv or $SCHEDULES_VENV) and writes bench/results/schedules.json. Takes ten minutes of one core.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("BILEVEL_BINARY", str(ROOT / "build" / "bilevel"))
VENV = pathlib.Path(os.environ.get("SCHEDULES_VENV", ROOT / "build" / "schedules-venv"))
REACH = [1.0] * 5 + [0.99, 0.03]  # ten steps from zero
CONFIG = """
[problem]
model = "mlp"
hidden = [32]
loss = "softmax"
dtype = "float64"
[problem.hyperparameters]
step_size = { per = "step", window = 40, init = "lr.npy", min = 0.0, max = 1.0 }
momentum = { init = "momentum.npy", min = 0.0, max = 0.99 }
weight_decay = { param = "identity", init = "decay.npy", min = 0.0, max = 0.1 }
[data]
inner = { x = "train_x.npy", y = "train_y.npy" }
outer = { x = "val_x.npy", y = "val_y.npy" }
test = { x = "test_x.npy", y = "test_y.npy" }
[inner]
rule = "sgd"
steps = 200
batch = 64
start = "cold"
init = "random"
[hypergradient]
estimator = "forward"
[outer]
rule = "sign"
lr = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.003]
steps = TRAININGS
[run]
seed = SEED
threads = 1
"""


def environment():
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "scikit-learn", "bayesian-optimization"], check=True)
    return python


def write_data(folder, seed, trainings):
    import numpy as np
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = x[order] / 16, y[order].astype(np.int64)
    wrong = rng.random(1400) < 0.3
    y[:1400][wrong] = (y[:1400][wrong] + rng.integers(1, 10, wrong.sum())) % 10
    for name, rows in (("train", slice(0, 1000)), ("val", slice(1000, 1400)), ("test", slice(1400, None))):
        np.save(folder / f"{name}_x.npy", x[rows])
        np.save(folder / f"{name}_y.npy", y[rows])
    (folder / "schedule.toml").write_text(CONFIG.replace("TRAININGS", str(trainings)).replace("SEED", str(seed)))


def write_point(folder, point):
    import numpy as np

    for name, values in (("lr", point[:5]), ("momentum", point[5]), ("decay", point[6])):
        np.save(folder / f"{name}.npy", np.asarray(values, dtype=np.float64))


def run(folder, *options):
    """Summary and x of a run of the configuration."""
    import numpy as np

    with tempfile.TemporaryDirectory() as out:
        command = [BINARY, "run", "schedule.toml", "--out", f"{out}/run", *options]
        done = subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True)
        summary = pathlib.Path(out, "run", "summary.json")
        if not summary.exists():
            raise SystemExit(done.stderr)
        return json.loads(summary.read_text()), np.load(f"{out}/run/x.npy")


def train(folder, point):
    """Validation loss and test accuracy of one training."""
    write_point(folder, point)
    summary, _ = run(folder, "--set", "outer.steps=0", "--set", "hypergradient.estimator=one-step")
    loss = summary["outer_loss"]
    return (loss if loss is not None else 10.0), 100 * summary["metrics"]["test_accuracy"]


def searches(folder, seed, trainings):
    import numpy as np
    from bayes_opt import BayesianOptimization

    found = {}
    write_point(folder, [0.0] * 7)
    _, x = run(folder)
    found["hypergradient"] = list(x)

    rng = np.random.default_rng(1000 + seed)
    points = [list(np.array(REACH) * rng.random(7)) for _ in range(trainings)]
    found["random search"] = min(points, key=lambda point: train(folder, point)[0])

    names = [f"x{i}" for i in range(7)]
    bounds = {name: (0.0, reach) for name, reach in zip(names, REACH)}
    # The loss of a training that went astray would bend the model of all the others.
    optimiser = BayesianOptimization(
        f=lambda **given: -min(train(folder, [given[name] for name in names])[0], 3.0), pbounds=bounds, random_state=seed, verbose=0
    )
    optimiser.maximize(init_points=min(4, trainings), n_iter=max(0, trainings - 4))
    found["Bayesian optimiser"] = [optimiser.max["params"][name] for name in names]
    return {name: {"x": [float(v) for v in point], **dict(zip(("loss", "accuracy"), train(folder, point)))} for name, point in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trainings", type=int, default=10)
    a = parser.parse_args()
    if not os.environ.get("SCHEDULES_INSIDE"):
        environment_of_ours = {**os.environ, "SCHEDULES_INSIDE": "1"}
        raise SystemExit(subprocess.run([environment(), *sys.argv], env=environment_of_ours).returncode)
    import bayes_opt

    rows = []
    for seed in range(a.seeds):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_data(folder, seed, a.trainings)
            rows.append({"seed": seed, **searches(folder, seed, a.trainings)})
        print(json.dumps({key: round(row["accuracy"], 1) for key, row in rows[-1].items() if key != "seed"}), file=sys.stderr, flush=True)
    summary = {}
    for name in rows[0]:
        if name != "seed":
            accuracies = [row[name]["accuracy"] for row in rows]
            error = statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else None
            summary[name] = {"accuracy": statistics.mean(accuracies), "standard_error": error}
    about = {"command": f"bench/schedules/run.py --seeds {a.seeds} --trainings {a.trainings}", "bayesian-optimization": bayes_opt.__version__}
    (ROOT / "bench/results/schedules.json").write_text(json.dumps({"about": about, "summary": summary, "rows": rows}, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
