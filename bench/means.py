"""Means and standard errors over seeds: the runs of reweight_bench (one JSON object a line) become a file of bench/results and a
Markdown table on stdout. Needs nothing but Python."""
import argparse
import json
import os
import statistics


def mean(values):
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error, "seeds": len(values)}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def show(m, digits, scale=1):
    error = "" if m["standard_error"] is None else f" ± {scale * m['standard_error']:.{digits}f}"
    return f"{scale * m['mean']:.{digits}f}{error}"


def by_sample(runs):
    names = ["trusted", "self-confidence", "learned", "combined"]
    cells = []
    for noise in ("uniform", "swap", "source", "feature"):
        for trusted in sorted({run["trusted"] for run in runs}):
            of = [run for run in runs if (run["noise"], run["trusted"]) == (noise, trusted)]
            if not of:
                continue
            cell = {"noise": noise, "trusted": trusted, "auc": {name: mean([run["auc"][name] for run in of]) for name in names}}
            # Seeds share their images and their noise between the rankings: the difference is what a standard error is for.
            best = max(names[:3], key=lambda name: cell["auc"][name]["mean"])
            cell["best_single"] = best
            cell["combined_minus_best"] = mean([run["auc"]["combined"] - run["auc"][best] for run in of])
            cells.append(cell)
    print(table(["noise", "trusted samples", *names, "combined − best single"],
                [[c["noise"], str(c["trusted"]), *(f"{c['auc'][name]['mean']:.3f}" for name in names),
                  f"{c['combined_minus_best']['mean']:+.3f} ± {c['combined_minus_best']['standard_error'] or 0:.3f} ({c['best_single']})"]
                 for c in cells]))
    return cells


def posterior_start(runs):
    cells = []
    for simulate in ("mixed", "swapping"):
        of = [run for run in runs if run["simulate"] == simulate]
        if not of:
            continue
        rows = {slug: mean([run["rows"][slug] for run in of]) for slug in of[0]["rows"]}
        starts = {name: mean([run["posterior_from"][name]["accuracy"] for run in of]) for name in of[0]["posterior_from"]}
        cells.append({"simulate": simulate, "rows": rows, "posterior_from": starts})
    rows = [(slug, lambda c, slug=slug: c["rows"][slug]) for slug in cells[0]["rows"]]
    rows += [(f"posterior from {name} weights", lambda c, name=name: c["posterior_from"][name]) for name in cells[0]["posterior_from"]]
    print(table(["row"] + [f"{c['simulate']} ({c['rows']['all']['seeds']} seeds)" for c in cells],
                [[title, *(show(get(c), 1, 100) for c in cells)] for title, get in rows]))
    return cells


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=["by_sample", "posterior_start"])
    parser.add_argument("runs")
    parser.add_argument("--command", required=True)
    parser.add_argument("--out", required=True)
    a = parser.parse_args()
    with open(a.runs) as file:
        runs = [json.loads(line) for line in file]
    cells = {"by_sample": by_sample, "posterior_start": posterior_start}[a.study](runs)
    with open(a.out, "w") as file:
        json.dump({"command": a.command, "cores": os.cpu_count(), "threads": 1, "means": cells, "runs": runs}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
