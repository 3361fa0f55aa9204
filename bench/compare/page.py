"""The tables of docs/performance.md from bench/results/peers-*.json: `python bench/compare/page.py` writes them again."""

import json
import math
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/performance.md"
RESULTS = ROOT / "bench/results"
LIBRARIES = ("higher", "TorchOpt", "hypertorch", "Betty", "curvlinops")
TORCH = (*LIBRARIES, "PyTorch", "closed form in torch ops", "(baseline) PyTorch")


class Goal:
    """A row of the numbers to reach: at least `torch` × the best PyTorch row and `best` × the best of all."""

    def __init__(self, title, task, case, words, torch, best, of=TORCH, ours=()):
        self.title, self.task, self.case, self.words = title, task, case, words
        self.torch, self.best, self.of, self.ours = torch, best, of, ours


GOALS = [
    *(
        Goal(f"hvp {case.replace('_', ' ')}", "hvp", case, "hvp", *goals)
        for case, goals in {
            "softmax_256": (7, 3),
            "softmax_4096": (7, 3),
            "logistic_tiny": (50, 20),
            "mlp_256": (1, 1),
            "cnn_64": (1, 1),
        }.items()
    ),
    Goal("hypergrad softmax, unroll 100", "hypergrad", "softmax", "unroll", 7, 2),
    Goal("hypergrad softmax, CG 20", "hypergrad", "softmax", "cg", 7, 2),
    Goal("hypergrad softmax, Neumann 20", "hypergrad", "softmax", "neumann", 7, 2),
    Goal("hypergrad MLP, unroll 50", "hypergrad", "mlp", "unroll", 1.3, 1.1),
    Goal("cleaning, 2,000 outer steps", "cleaning", "fashion", "unroll-1", 5, 2),
    Goal("maml, 10 tasks", "maml", "tasks10", "", 20, 0.5, of=LIBRARIES),
    Goal("maml, 100 tasks", "maml", "tasks100", "", 20, 0.5, of=LIBRARIES),
    *(
        Goal(f"{case.replace('_', ', ')}, solve + gradient", "ridge", case, "solve + gradient", None, 1.3)
        for case in (f"{m}_{d}" for d in ("diabetes", "synthetic") for m in ("ridge", "lasso", "logistic"))
    ),
    Goal("stochastic logistic, a step of SOBA", "stochastic", "logistic", "soba", 50, 2),
]


def rows_of(task):
    path = RESULTS / f"peers-{task}.json"
    return json.loads(path.read_text())[task] if path.exists() else []


def mine(row):
    return row["library"].startswith("bilevel")


def right(row):
    """False where the result is not the reference's, whatever the time was. CG in float32 differs by some per cent between right ones."""
    errors = [value for key, value in row.items() if key.startswith("err_") and key != "err_exact"]
    return "error" not in row and all(math.isfinite(e) and e < (0.2 if "err_cg" in row else 1e-3) for e in errors)


def best(rows):
    return min(rows, key=lambda row: row["median"], default=None)


def goal_line(goal):
    fit = [
        row
        for row in rows_of(goal.task)
        if row["case"] == goal.case and goal.words.lower() in row["variant"].lower() and not row["library"].startswith("(") and right(row)
    ]
    ours = best([row for row in fit if mine(row)])
    if ours is None:
        return [goal.title] + ["not run"] + [""] * 4
    how = ours["library"][9:-1] + (", compiled" if "compiled" in ours["variant"] else "")
    cells = [goal.title, f"{seconds(ours['median'])} ({how})"]
    for wanted, rivals in ((goal.torch, [r for r in fit if r["library"] in goal.of]), (goal.best, [r for r in fit if not mine(r)])):
        rival = best(rivals)
        if wanted is None or rival is None:
            cells += ["–", "–"]
            continue
        ratio = rival["median"] / ours["median"]
        cells += [
            f"{rival['library']} {seconds(rival['median'])}",
            f"{ratio:.2g} × of {wanted:g} ×" + ("" if ratio >= wanted else ", **short**"),
        ]
    return cells


def seconds(value):
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def markdown(head, lines):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def overhead_lines():
    """Ours through Python beside the same work by hand and beside each library, in one run."""
    found = []
    for task, case, words in (
        ("hypergrad", "softmax", "unroll"),
        ("hypergrad", "softmax", "CG"),
        ("hypergrad", "softmax", "Neumann"),
        ("hypergrad", "mlp", "unroll"),
        ("maml", "tasks10", ""),
        ("maml", "tasks100", ""),
    ):
        rows = [r for r in rows_of(task) if r["case"] == case and words.lower() in r["variant"].lower() and right(r)]
        for ours in (r for r in rows if r["library"] == "bilevel (Python)"):
            plain = best([r for r in rows if r["library"] == "PyTorch" and r["variant"].startswith(ours["variant"].split(",")[0])])
            cells = [f"{task} {case}: {ours['variant']}", seconds(ours["median"])]
            cells.append(f"{ours['median'] / plain['median']:.2f}" if plain else "–")
            for library in LIBRARIES[:4]:
                rival = best([r for r in rows if r["library"] == library])
                cells.append(f"{ours['median'] / rival['median']:.2f}" if rival else "–")
            found.append(cells)
    return found


def task_table(task):
    rows = rows_of(task)
    extra = [k for k in dict.fromkeys(k for row in rows for k in row) if k.startswith("err_") or k in ("accuracy", "auc")]
    lines = []
    for row in rows:
        head = [row["case"], row["library"], row["variant"]]
        if "error" in row:
            lines.append(head + ["not run: " + row["error"].replace("|", "/")] + [""] * (2 + len(extra)))
            continue
        numbers = ["" if k not in row else f"{row[k]:.2g}" if k.startswith("err_") else f"{row[k]:.4f}" for k in extra]
        lines.append([*head, seconds(row["median"]), seconds(row["min"]), f"{row['peak_mb']:.0f}", *numbers])
    return markdown(["case", "library", "variant", "median", "least", "peak MB", *extra], lines)


def write_page():
    text = PAGE.read_text()
    tables = {
        "goals": markdown(
            ["task", "ours", "best of PyTorch", "reached", "best of all", "reached"], [goal_line(goal) for goal in GOALS]
        ),
        "overhead": markdown(["work", "ours, Python", "by hand", *LIBRARIES[:4]], overhead_lines()),
        **{task: task_table(task) for task in ("hvp", "hypergrad", "cleaning", "maml", "ridge")},
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(text)


if __name__ == "__main__":
    write_page()
