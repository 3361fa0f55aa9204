"""Cleanlab's filter on the labels of `bilevel reweight`'s demonstration, with the same model. Use run.sh.

For each kind of labellers and each seed: reweight_bench hands over labels and class probabilities of softmax regression, cleanlab
says which labels are wrong, and reweight_bench trains the same softmax regression on the rest and the trusted samples. Cleanlab sees
neither the truth nor the test images. The probabilities are of two models: of all rows with the trusted ones, out of fold, which is
how cleanlab is meant to be used; and of the trusted samples alone, which have seen none of the doubtful rows.
"""
import argparse
import importlib.metadata
import json
import os
import subprocess
import tempfile
import time

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores


MODELS = {"out_of_fold": "all rows, out of fold", "trusted": "the trusted samples alone"}


def auc(score, positive):
    """The area under the ROC curve; the scores of cleanlab have no ties worth a thought."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    p = positive.sum()
    return (rank[positive].sum() - p * (p + 1) / 2) / (p * (len(score) - p))


def one(bench, simulate, seed):
    def call(*args):
        done = subprocess.run([bench, *map(str, args), "--simulate", simulate, "--seed", str(seed)], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    with tempfile.TemporaryDirectory() as folder:
        call("labels", "--out", folder)
        labels, truth = (np.load(f"{folder}/{name}.npy") for name in ("labels", "truth"))
        wrong = labels != truth
        rows = []
        for model in MODELS:
            probabilities = np.load(f"{folder}/{model}.npy").astype(np.float64)
            probabilities /= probabilities.sum(axis=1, keepdims=True)
            began = time.perf_counter()
            issues = find_label_issues(labels, probabilities, n_jobs=1)
            seconds = time.perf_counter() - began
            np.save(f"{folder}/keep.npy", (~issues).astype(np.float32))
            quality = {method: get_label_quality_scores(labels, probabilities, method=method) for method in ("self_confidence", "normalized_margin")}
            rows.append({
                "simulate": simulate, "seed": seed, "probabilities": model, **call("train", "--weights", f"{folder}/keep.npy"),
                "kept": int((~issues).sum()), "of": len(labels), "wrong_before": float(wrong.mean()),
                "wrong_after": float(wrong[~issues].mean()), "filter_seconds": seconds,
                "auc": {method: float(auc(-q, wrong)) for method, q in quality.items()}})
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True, help="the program reweight_bench")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--simulate", nargs="+", default=["mixed", "swapping"])
    parser.add_argument("--out", required=True)
    a = parser.parse_args()
    rows = [row for simulate in a.simulate for seed in range(a.seeds) for row in one(a.bench, simulate, seed)]
    means = []
    for simulate in a.simulate:
        for model, title in MODELS.items():
            of = [row for row in rows if (row["simulate"], row["probabilities"]) == (simulate, model)]
            accuracy = np.array([row["accuracy"] for row in of])
            error = float(accuracy.std(ddof=1) / len(of) ** 0.5) if len(of) > 1 else None
            means.append({"simulate": simulate, "probabilities": model, "accuracy": float(accuracy.mean()), "standard_error": error,
                          "wrong_after": float(np.mean([row["wrong_after"] for row in of])),
                          "auc": float(np.mean([row["auc"]["self_confidence"] for row in of]))})
            print(f"| cleanlab, probabilities of {title} | {simulate} | {100 * accuracy.mean():.1f} ± {100 * (error or 0):.1f} | "
                  f"{100 * means[-1]['wrong_after']:.1f} % | {means[-1]['auc']:.3f} |", flush=True)
    result = {
        "command": f"bench/cleanlab/run.sh --seeds {a.seeds} --simulate {' '.join(a.simulate)}", "cores": os.cpu_count(), "threads": 1,
        "versions": {name: importlib.metadata.version(name) for name in ("cleanlab", "scikit-learn", "numpy")},
        "means": means, "rows": rows}
    with open(a.out, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
