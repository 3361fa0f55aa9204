"""Ours on the dumped work: configurations for the C++ program, and the list of variants.

The peers' weights of linear layers are [in, out] and ours [out, in]; they are converted here, outside all timing.
"""

import json
import os
import pathlib
import subprocess

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


# ---------------------------------------------------------------- layouts
def layers(flat, shapes):
    ends = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]
    return [part.reshape(s) for part, s in zip(np.split(flat, ends), shapes)]


def class_major(flat, shapes):
    """The peers' flat parameters as ours: matrices transposed."""
    return np.concatenate([(p.T if p.ndim == 2 else p).ravel() for p in layers(flat, shapes)])


def peers_order(flat, shapes):
    """And back."""
    turned = [tuple(reversed(s)) if len(s) == 2 else tuple(s) for s in shapes]
    return np.concatenate([(p.T if p.ndim == 2 else p).ravel() for p in layers(flat, turned)])


def relative(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def auc(score, positive):
    """The probability that a positive one scores higher, ties half."""
    _, inverse = np.unique(score, return_inverse=True)
    counts = np.bincount(inverse)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    p = positive.astype(bool)
    n1, n0 = p.sum(), (~p).sum()
    return float((rank[p].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def load(folder):
    work = {path.stem: np.load(path) for path in folder.glob("*.npy")}
    return work, json.loads((folder / "settings.json").read_text())


# ---------------------------------------------------------------- configurations
SOFTMAX = [(784, 10), (10,)]
MLP = [(784, 128), (128,), (128, 10), (10,)]
CLEANING = """
[problem.hyperparameters]
sample_weight = { init = 0.0 }
[data]
inner = { x = "../Xt.npy", y = "../yt.npy" }
outer = { x = "../Xv.npy", y = "../yv.npy" }
"""
MODELS = {
    "softmax": 'model = "linear"\n',
    "mlp": 'model = "mlp"\nhidden = [%d]\nactivation = "relu"\n',
    "cnn": 'model = "cnn"\nchannels = [16, 32]\nactivation = "relu"\n',
}


def save(folder, name, array):
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array))


def prepare(task, case, folder):
    """What ours read beside the dump: converted weights and configurations, in folder/ours."""
    mine = folder / "ours"
    mine.mkdir(exist_ok=True)
    work, settings = load(folder)
    for name, text in globals()[f"_{task}"](case, mine, work, settings).items():
        (mine / f"{name}.toml").write_text(text)


def _hvp(case, mine, work, settings):
    shapes = settings["shapes"]
    save(mine, "y0", class_major(work["w"], shapes))
    save(mine, "v", class_major(work["v"], shapes))
    images = case.startswith("cnn")
    if images:
        save(mine, "X", work["X"].reshape(-1, 28, 28))
    x = "X.npy" if images else "../X.npy"
    model = MODELS["cnn"] if images else MODELS["mlp"] % 256 if case.startswith("mlp") else MODELS["softmax"]
    text = f"""[problem]
{model}[problem.hyperparameters]
sample_weight = {{ init = "../s.npy", param = "identity" }}
[data]
inner = {{ x = "{x}", y = "../y.npy" }}
outer = {{ x = "{x}", y = "../y.npy" }}
[inner]
lr = 0.1
init = "y0.npy"
[hypergradient]
estimator = "t1-t2"
[run]
threads = 1
oracle = "%s"
"""
    found = {"autodiff": text % "autodiff"}
    if len(shapes) == 2:
        found["native"] = text % "native"
    return found


def _hypergrad(case, mine, work, settings):
    mlp = case == "mlp"
    if mlp:
        save(mine, "y0", class_major(work["w0"], MLP))
    head = (
        "[problem]\n"
        + (MODELS["mlp"] % 128 if mlp else MODELS["softmax"])
        + CLEANING.replace("[data]", f"[problem.fixed]\nl2 = {settings['l2']}\nl2_bias = true\n[data]")
    )
    inner = f"""[inner]
lr = {settings["lr"]}
steps = {settings["T"]}
start = "cold"
""" + ('init = "y0.npy"\nbatches = "../batches.npy"\n' if mlp else "")
    estimators = {"unroll": 'estimator = "unrolled"'}
    if mlp:
        estimators["unroll-checkpoints"] = 'estimator = "unrolled"\nmemory = "checkpoints"'
        estimators["unroll-states"] = 'estimator = "unrolled"\nmemory = "states"'
    else:
        estimators["cg"] = f'estimator = "implicit"\niterations = {settings["K"]}'
        estimators["neumann"] = f'estimator = "implicit"\nsolver = "neumann"\niterations = {settings["K"]}'
    return {
        f"{name}-{oracle}": f'{head}{inner}[hypergradient]\n{estimator}\n[run]\nthreads = 1\noracle = "{oracle}"\n'
        for name, estimator in estimators.items()
        for oracle in (["autodiff"] if mlp else ["native", "autodiff"])
    }


def _cleaning(case, mine, work, settings):
    text = f"""[problem]
{MODELS["softmax"]}{CLEANING}[inner]
lr = {settings["lr"]}
steps = 1
batches = "../bt.npy"
[hypergradient]
estimator = "unrolled"
bound_every = 0
[outer]
rule = "sgd"
lr = {settings["outer_lr"]}
steps = {settings["steps"]}
batches = "../bv.npy"
[run]
threads = 1
oracle = "%s"
"""
    return {oracle: text % oracle for oracle in ("native", "autodiff")}


def _maml(case, mine, work, settings):
    return {
        "unroll": f"""[problem]
task = "sinusoids"
folder = ".."
[inner]
lr = {settings["lr"]}
steps = {settings["steps"]}
start = "cold"
[hypergradient]
estimator = "unrolled"
bound_every = 0
[outer]
rule = "adam"
lr = 1e-3
[run]
threads = 1
"""
    }


def _ridge(case, mine, work, settings):
    model = settings["model"]
    logistic = model == "logistic"
    for name in ("y", "yv"):
        save(mine, name, (work[name] > 0).astype(np.int64) if logistic else work[name])
    penalty = "l1" if model == "lasso" else "l2"
    solvers = {"lasso": ["prox", "prox-newton"], "ridge": ["lbfgs", "newton-cg", "closed-form"], "logistic": ["lbfgs", "newton-cg"]}[model]
    found = {}
    for solver in solvers:
        tolerance = f"tolerance = {settings['tol']}\nsteps = 50000\n" if solver != "closed-form" else ""
        for linear, options in (("cg", "iterations = 2000\n"), ("pcg", 'iterations = 2000\nprecondition = "problem"\n'), ("dense", "")):
            found[f"{solver}-{linear}"] = f"""[problem]
model = "linear"
bias = false
loss = "{"logistic" if logistic else "squared"}"
dtype = "float64"
[problem.hyperparameters]
{penalty} = {{ init = {settings["theta"]} }}
[data]
inner = {{ x = "../X.npy", y = "y.npy" }}
outer = {{ x = "../Xv.npy", y = "yv.npy" }}
[inner]
solver = "{solver}"
start = "cold"
{tolerance}[hypergradient]
estimator = "implicit"
solver = "{linear.removeprefix("p")}"
{options}[run]
threads = 1
"""
    return found


def _stochastic(case, mine, work, settings):
    if case != "logistic":
        return {}  # the quadratic of dense matrices is no task here
    for level in ("inner", "outer"):
        save(mine, f"{level}_y", (work[f"{level}_y"] > 0).astype(np.int64))
    return {
        name: f"""[problem]
model = "linear"
bias = false
loss = "logistic"
[problem.hyperparameters]
l2 = {{ per = "feature", init = "../x0.npy" }}
[data]
inner = {{ x = "../inner_X.npy", y = "inner_y.npy" }}
outer = {{ x = "../outer_X.npy", y = "outer_y.npy" }}
[inner]
lr = {settings["steps"][name][case][0]}
batch = {settings["batch"]}
init = "../z0.npy"
[outer]
lr = {settings["steps"][name][case][0] / settings["steps"][name][case][1]}
batch = {settings["batch"]}
steps = {settings["iterations"]}
[run]
algorithm = "{name}"
threads = 1
"""
        for name in ("soba", "saba")
    }


def squared_hypergradient(work, x):
    """‖∇F‖² of the logistic case, exactly."""
    X, t, Xv, tv = (work[name].astype(np.float64) for name in ("inner_X", "inner_y", "outer_X", "outer_y"))
    ridge, y = np.exp(x.astype(np.float64)), np.zeros(len(x))
    for _ in range(30):  # Newton
        p = 1 / (1 + np.exp(t * (X @ y)))
        H = (X * (p * (1 - p))[:, None]).T @ X / len(X) + np.diag(ridge)
        y -= np.linalg.solve(H, ridge * y - X.T @ (t * p) / len(X))
    q = np.linalg.solve(H, -Xv.T @ (tv / (1 + np.exp(tv * (Xv @ y)))) / len(Xv))
    return float(np.sum((ridge * y * q) ** 2))


# ---------------------------------------------------------------- rows
def variants(task, case, mine):
    """(library, variant, command of this machine) for each."""
    found = []
    for path in sorted(mine.glob("*.toml")):
        oracle = "autodiff" if path.stem.endswith("autodiff") else "native"
        if task == "maml":
            found.append(("bilevel (C++, autodiff)", "batched tasks", path, "step"))
        elif task == "hvp":
            for what, name in (("gradient", "gradient"), ("hvp", "hvp, linearization kept"), ("hvp-once", "hvp")):
                found.append((f"bilevel (C++, {oracle})", name, path, what))
        elif task == "hypergrad":
            found.append((f"bilevel (C++, {oracle})", path.stem.removesuffix("-" + oracle), path, "hypergradient"))
        elif task == "cleaning":
            found.append((f"bilevel (C++, {oracle})", "unroll-1", path, "run"))
        elif task == "stochastic":
            found.append((f"bilevel (C++, {oracle})", path.stem.upper(), path, "iteration"))
        else:
            solver = " + ".join(path.stem.rsplit("-", 1))
            found.append(("bilevel (C++, native)", f"{solver}, solve + gradient", path, "hypergradient"))
    return found


def rows(a, task, case, folder):
    """Measures ours: every variant in a process of its own."""
    mine = folder / "ours"
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    pinned = ["taskset", "-c", str(a.cpu)]
    work, settings = load(folder)
    found = []
    for library, variant, config, what in variants(task, case, mine):
        out = mine / f"{config.stem}.{what}.json"
        command = [*pinned, a.build / "bench/compare_measure", config, "--what", what, "--out", out]
        if what.startswith("hvp"):
            command += ["--direction", mine / "v.npy"]
        if task == "cleaning":
            command += ["--repetitions", "3"]
        found.append(run(command, environment, dict(case=case, library=library, variant=variant), out, task, work, settings))
    python = dict(environment, PYTHONPATH=os.pathsep.join([str(a.build / "python"), str(a.peers)]))
    names = subprocess.run(
        [a.build / "venv/bin/python", HERE / "through_python.py", "--task", task, "--case", case, "--list"],
        env=python,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for variant in filter(None, names):
        out = mine / "python.json"
        command = [
            *pinned,
            a.build / "venv/bin/python",
            HERE / "through_python.py",
            "--task",
            task,
            "--case",
            case,
            "--folder",
            folder,
            "--variant",
            variant,
            "--out",
            out,
        ]
        found.append(run(command, python, dict(case=case, library="bilevel (Python)", variant=variant), out, task, work, settings))
    return found


def run(command, environment, row, out, task, work, settings):
    for old in out.parent.glob(out.name + "*"):
        old.unlink()
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return dict(row, error=(done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200])
    row.update(json.loads(out.read_text()))
    results = {path.name[len(out.name) + 1 : -4]: np.load(path) for path in out.parent.glob(out.name + ".*.npy")}
    row.update(judged(task, row["variant"], results, work, settings))
    return row


def judged(task, variant, results, work, settings):
    """Errors against the references, in the peers' keys."""

    def errors(key, value):
        found = {f"err_{key}": relative(value, work[f"ref_{key}"])}
        if f"ref_{key}_exact" in work:
            found["err_exact"] = relative(value, work[f"ref_{key}_exact"])
        return found

    if task == "hvp":
        return {k: v for name in results for k, v in errors(name, peers_order(results[name], settings["shapes"])).items()}
    if task == "hypergrad":
        key = "cg" if "cg" in variant else "neumann" if "neumann" in variant else "unroll"
        return errors(key, results["hypergradient"])
    if task == "maml":
        return errors("meta", results["hypergradient"])
    if task == "ridge":
        factor = 1.0 if settings["model"] == "logistic" else 2.0  # our squared loss is ½ r²
        return {**errors("w", results["y"]), **errors("grad", factor * results["hypergradient"])}
    if task == "stochastic":
        return {"value": squared_hypergradient(work, results["x"]), "value_at_start": squared_hypergradient(work, work["x0"])}
    W, b = layers(peers_order(results["y"], SOFTMAX), SOFTMAX)
    return {"accuracy": float(((work["Xs"] @ W + b).argmax(1) == work["ys"]).mean()), "auc": auc(-results["x"], work["corrupt"])}
