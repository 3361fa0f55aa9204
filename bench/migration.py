"""Lines, seconds and megabytes of the programs of docs/migration.md, into the table at its end and bench/results/migration.json.

    python bench/migration.py --environment VENV [--build build] [--rounds 3]

Each program runs in a process of its own, pinned to one core with one thread; the libraries take turns. Seconds are the median of
later repetitions in one process (nothing is imported again, but what a library compiles at each run is compiled again), megabytes the
highest resident memory less that before the program with its imports began.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/peers"))
import pages  # noqa: E402

TITLES = {"reweighting": "data re-weighting", "maml": "MAML", "ridge": "ridge, implicit"}
NAMES = {"bilevel": "here", "betty": "Betty", "torchopt": "TorchOpt", "higher": "higher", "hypertorch": "hypertorch", "jaxopt": "JAXopt"}


def measured(a, task, library):
    python = a.build / "venv/bin/python" if library == "bilevel" else a.environment / "bin/python"
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        JAX_PLATFORMS="cpu",
        XLA_FLAGS="--xla_cpu_multi_thread_eigen=false",
        PYTHONPATH=str((a.build / "python").resolve()) if library == "bilevel" else "",
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "taskset",
            "-c",
            str(a.cpu),
            str(python),
            "-W",
            "ignore",
            str(ROOT / "tests/peers/run_program.py"),
            task,
            library,
            f"{folder}/r.npy",
            str(a.repetitions),
        ]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def table(rows):
    lines = ["| | " + " | ".join(f"{title}: lines, s, MB" for title in TITLES.values()) + " |", "|---|" + "---|" * len(TITLES)]
    for library, name in NAMES.items():
        cells = []
        for task in TITLES:
            row = rows.get(f"{task}/{library}")
            cells.append("–" if row is None else f"{row['lines']}, {row['seconds']:.2g}, {row['peak_mb']:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--cpu", type=int, default=1)
    a = parser.parse_args()
    found, load = {}, []
    for _ in range(a.rounds):
        for task, programs in pages.programs().items():
            for library in NAMES:
                if library in programs:
                    load.append(os.getloadavg()[0])
                    found.setdefault(f"{task}/{library}", []).append(measured(a, task, library))
    rows = {}
    for key, runs in found.items():
        task, library = key.split("/")
        rows[key] = {
            "lines": pages.lines(pages.programs()[task][library]),
            "first": statistics.median(r["first"] for r in runs),
            "seconds": statistics.median(s for r in runs for s in r["seconds"]),
            "peak_mb": statistics.median(r["peak_mb"] for r in runs),
        }
    about = {"rounds": a.rounds, "repetitions": a.repetitions, "load": [min(load), max(load)]}
    (ROOT / "bench/results/migration.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    page = pages.PAGE.read_text()
    head, rest = page.split("<!-- made by bench/migration.py -->")
    quiet = max(load) < 1.5
    note = f"One run of `bench/migration.py`, one core, one thread; the load of the machine was {min(load):.1f}–{max(load):.1f}" + (
        "." if quiet else ", so read ratios and not seconds."
    )
    pages.PAGE.write_text(
        f"{head}<!-- made by bench/migration.py -->\n{note}\n\n{table(rows)}\n<!-- end -->{rest.split('<!-- end -->')[1]}"
    )


if __name__ == "__main__":
    main()
