"""Draws docs/growth.svg from the JSON of `growth` and prints the slopes:  plot_growth.py results/growth.json ../docs/growth.svg"""
import json
import sys

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = [("n", "samples n", "seconds"), ("d", "features d", "seconds"), ("T", "inner steps T", "seconds"), ("T", "inner steps T", "bytes")]
COLORS = {"unrolled": "#0b5394", "implicit": "#cc4125", "graphs": "#38761d", "states": "#e69138", "checkpoints": "#0b5394"}
MARKERS = {"softmax": "o", "network": "s"}


def slope(x, y):
    """Of the logarithms, over the upper half of the points; what the smallest case takes does not grow and is left out."""
    half = len(x) // 2
    return np.polyfit(np.log(x[half:]), np.log(y[half:] - y[0]), 1)[0]


def main(source, target):
    records = json.load(open(source))["records"]
    plt.rcParams.update({"svg.hashsalt": "bilevel", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9})
    figure, all_axes = plt.subplots(1, 4, figsize=(13, 4.4), layout="constrained")
    for axes, (axis, label, quantity) in zip(all_axes, PANELS):
        here = [r for r in records if r["axis"] == axis]
        for model, way in sorted({(r["model"], r["memory"] if axis == "T" else r["estimator"]) for r in here}):
            rows = [r for r in here if r["model"] == model and way in (r["memory"], r["estimator"])]
            x, y = (np.array([r[key] for r in rows], float) for key in (axis, quantity))
            steep = slope(x, y)
            print(f"{quantity:8} {axis}  {model:8} {way:12} slope {steep:.2f}")
            axes.loglog(x, y / (1e6 if quantity == "bytes" else 1), color=COLORS[way], marker=MARKERS[model], ms=3.5, lw=1, fillstyle="none",
                        label=f"{way}{', network' if model == 'network' else ''}: {steep:.2f}")
        axes.set_xlabel(label)
        axes.set_ylabel("MB" if quantity == "bytes" else "seconds")
        axes.grid(True, which="major", lw=0.3)
        axes.legend(frameon=False, title="slope", fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
