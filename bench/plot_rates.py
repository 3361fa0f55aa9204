"""Draws docs/rates.svg from the JSON of `rates`:  plot_rates.py results/rates.json ../docs/rates.svg"""
import json
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

NAMES = {"cg": "cg", "minres": "minres", "gmres": "gmres", "neumann": "neumann", "truncation": "unrolled, last K steps"}
STYLES = {"cg": ("#0b5394", "o"), "minres": ("#38761d", "s"), "gmres": ("#93c47d", "x"), "neumann": ("#cc4125", "^"),
          "truncation": ("#e69138", "v")}


def main(source, target):
    records = json.load(open(source))["records"]
    plt.rcParams.update({"svg.hashsalt": "bilevel", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9})
    figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for axes, condition in zip(all_axes, sorted({r["condition"] for r in records})):
        here = [r for r in records if r["condition"] == condition]
        for method, (color, marker) in STYLES.items():
            rows = [r for r in here if r["method"] == method]
            axes.loglog([r["K"] for r in rows], [max(r["error"], 1e-16) for r in rows], color=color, marker=marker, ms=3.5, lw=1,
                        label=NAMES[method], fillstyle="none")
        most = max(r["K"] for r in here)
        grid = [10 ** (i * (len(str(most)) + 0.0) / 200) for i in range(201)]
        for method, label in (("cg", "2((√κ−1)/(√κ+1))ᴷ"), ("truncation", "(1−ημ)ᴷ")):
            rate = next(r["rate"] for r in here if r["method"] == method)
            factor = 2 if method == "cg" else 1
            axes.loglog([k for k in grid if k <= most], [max(factor * rate**k, 1e-16) for k in grid if k <= most], "--",
                        color="#777777" if method == "cg" else "#bbbbbb", lw=1, label=label, zorder=0)
        axes.set_title(f"condition {condition:,.0f}")
        axes.set_xlabel("products K")
        axes.grid(True, which="major", lw=0.3)
        axes.set_ylim(1e-15, 3)
    all_axes[0].set_ylabel("relative error of the hypergradient")
    all_axes[2].legend(loc="lower left", frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
