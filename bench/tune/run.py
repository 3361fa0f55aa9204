"""`bilevel tune` beside scikit-learn and optuna, on the same folds of Fashion-MNIST, one thread each.

    python3 bench/tune/run.py [--quick]

Makes the peers' environment (scikit-learn, optuna from PyPI, in build/tune-venv or $TUNE_VENV), writes the data, runs every program
in turn, and writes bench/results/tune.json. Times are processor seconds: other programs hardly change them. Takes half an hour, most of it
scikit-learn's; --quick leaves the 60,000 images out. An answer that is in the results already is not asked for again unless --again.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("BILEVEL_BINARY", str(ROOT / "build" / "bilevel"))
VENV = pathlib.Path(os.environ.get("TUNE_VENV", ROOT / "build" / "tune-venv"))
RESULTS = ROOT / "bench" / "results" / "tune.json"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LIMIT = 1200  # processor seconds of a peer


def environment() -> str:
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "scikit-learn", "optuna"], check=True)
    return str(python)


def processor_seconds(command: list[str], cwd: pathlib.Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=ONE_THREAD, cwd=cwd, text=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def ours(data: pathlib.Path, *options: str) -> dict[str, object]:
    command = ["tune", "--data", "x.npy", "--y", "y.npy", "--folds", "folds.npy", "--test", "test_x.npy", "--test-y", "test_y.npy", *options]
    with tempfile.TemporaryDirectory() as out:
        seconds, done = processor_seconds([BINARY, *command, "--out", f"{out}/run", "--json"], data)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    summary = json.loads(done.stdout)
    keys = ["slug", "cv_loss", "cv_loss_error", "cv_accuracy", "cv_mse", "test_loss", "test_accuracy", "test_mse", "evaluations", "oracle_calls"]
    table = [{key: row[key] for key in keys if key in row} | {"seconds": row["machine"]["seconds"]} for row in summary["table"]]
    for row, source in zip(table, summary["table"]):
        if len(source["strengths"]) <= 10:
            row["strengths"] = source["strengths"]
    return {"command": "bilevel " + " ".join(command), "cpu_seconds": round(seconds, 2), "table": table,
            "prior_width": summary["prior_width"], "common_kept": summary["common_kept"], "widths": summary["widths"],
            "warning": summary["warning"]}


def peer(python: str, data: pathlib.Path, *options: str) -> dict[str, object]:
    command = [python, str(ROOT / "bench" / "tune" / "peers.py"), *options, "--limit", str(LIMIT)]
    seconds, done = processor_seconds([*command[:3], str(data), *command[3:]], data)
    if done.returncode != 0:
        return {"ended_after_cpu_seconds": round(seconds), "error": done.stderr[-300:]}
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--again", action="store_true", help="ask everything anew")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "build" / "tune-data")
    parser.add_argument("--only", default="", help="only answers whose name holds this")
    arguments = parser.parse_args()
    python = environment()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() and not arguments.again else {}

    def answer(name: str, samples: int, ask) -> None:
        if arguments.only not in name or (name in results and not arguments.again):
            return
        data = arguments.data / str(samples)
        if not (data / "test_y.npy").exists():
            subprocess.run([python, ROOT / "bench" / "tune" / "data.py", str(samples), data], check=True)
        results[name] = ask(data)
        print(name, json.dumps(results[name])[:400], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")

    no_rivals = ["--set", "tune.compare=false"]
    for samples in [5000] if arguments.quick else [5000, 60000]:
        answer(f"bilevel {samples}", samples, lambda data: ours(data, *no_rivals))
        answer(f"LogisticRegressionCV {samples}", samples, lambda data: peer(python, data, "logistic"))
    answer("bilevel 5000 and its rivals", 5000, lambda data: ours(data))
    answer("optuna 5000", 5000, lambda data: peer(python, data, "optuna"))
    answer("bilevel 5000 squared", 5000, lambda data: ours(data, "--loss", "squared", *no_rivals))
    answer("RidgeCV 5000", 5000, lambda data: peer(python, data, "ridge"))
    answer("LassoCV 5000", 5000, lambda data: peer(python, data, "lasso"))
    # Many strengths: 784 on 1,000 images, with and without the guard.
    for prior in ["none", "auto"]:
        answer(f"bilevel 1000 per feature, prior {prior}", 1000,
               lambda data, prior=prior: ours(data, "--per", "feature", "--prior", prior, *no_rivals))
    answer("bilevel 5000 per class", 5000, lambda data: ours(data, "--per", "class", *no_rivals))
    answer("bilevel 5000 per feature", 5000, lambda data: ours(data, "--per", "feature", *no_rivals))


if __name__ == "__main__":
    main()
