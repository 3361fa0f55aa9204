"""This library beside its peers, on the same dumped work, in one run.

    python bench/compare --peers DIR [--environment VENV] [--tasks hvp,hypergrad] [--cpu 1] [--rounds 2]

DIR is the harness of the peers (run.py, setup.sh, tasks/), VENV their environment, made by setup.sh where it is not there. The
harness dumps its work; then peers and ours take turns on one core, one thread, each variant in a process of its own, timed by the same
protocol. Results are compared with the float64 references of the dump. bench/results/peers-TASK.json has the rows with the keys of
`run.py --json`, docs/performance.md the tables. Ours through C++ needs the target compare_measure, ours through Python bilevel_python.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import ours
import page

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TASKS = ["hvp", "hypergrad", "cleaning", "maml", "ridge", "stochastic"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=pathlib.Path, required=True, help="the harness of the peers")
    parser.add_argument("--environment", type=pathlib.Path, default=ROOT / "build/peers", help="their Python environment")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--work", type=pathlib.Path, help="where the work is dumped (default: BUILD/compare)")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--cases", help="comma list; all by default")
    parser.add_argument("--libs", help="of the peers, a comma list of substrings")
    parser.add_argument("--cpu", type=int, default=1, help="the core that everything is pinned to")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench/results")
    return parser.parse_args()


def make_environment(a):
    """The peers' own set-up; what it could not get is a row that says so."""
    if not (a.environment / "bin/python").exists():
        subprocess.run(["sh", a.peers / "setup.sh", a.environment], check=True)


def harness(a, task, *more):
    command = [a.environment / "bin/python", a.peers / "run.py", "--task", task, "--dump", a.work, "--cpu", str(a.cpu), *more]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def peers_rows(a, task, case):
    out = a.work / "rows.json"
    harness(a, task, "--cases", case, "--json", out, *(["--libs", a.libs] if a.libs else []))
    return json.loads(out.read_text())[task]


def merged(rounds):
    """One row for each variant: the median over the rounds, the least of all, what else the first round says."""
    rows = {}
    for row in (row for rows_of_round in rounds for row in rows_of_round):
        rows.setdefault((row["library"], row["variant"]), []).append(row)
    result = []
    for same in rows.values():
        good = [row for row in same if "error" not in row]
        row = dict((good or same)[0])
        if good:
            row["median"] = statistics.median(r["median"] for r in good)
            row["min"] = min(r["min"] for r in good)
            row["rounds"] = len(good)
        result.append(row)
    return result


def load_average():
    return os.getloadavg()[0]


def main():
    a = arguments()
    a.work = (a.work or a.build / "compare").resolve()
    make_environment(a)
    a.work.mkdir(parents=True, exist_ok=True)
    a.out.mkdir(parents=True, exist_ok=True)
    for task in a.tasks.split(","):
        harness(a, task, "--dump-only", *(["--cases", a.cases] if a.cases else []))
        cases = [case for case in sorted(os.listdir(a.work / task)) if not a.cases or case in a.cases.split(",")]
        rows, loads = [], []
        for case in cases:
            folder = a.work / task / case
            ours.prepare(task, case, folder)
            rounds = []
            for k in range(a.rounds):
                loads.append(load_average())
                mine = ours.rows(a, task, case, folder)
                theirs = peers_rows(a, task, case)
                rounds.append(theirs + mine if k % 2 else mine + theirs)
                for row in mine:
                    print(
                        f"[{task}/{case}] {row['library']}: {row['variant']} {row.get('error') or format(row['median'], '.4g') + ' s'}",
                        file=sys.stderr,
                        flush=True,
                    )
            rows += merged(rounds)
        write(a, task, rows, loads)
    page.write_page()


def write(a, task, rows, loads):
    path = a.out / f"peers-{task}.json"
    kept = json.loads(path.read_text())[task] if path.exists() else []
    measured = {row["case"] for row in rows}
    rows = [row for row in kept if row["case"] not in measured] + rows
    about = {"command": "python bench/compare " + " ".join(command_line()), "rounds": a.rounds, "load": [round(x, 1) for x in loads]}
    path.write_text(json.dumps({task: rows, "about": about}, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def command_line():
    """The arguments without the paths of this machine."""
    words, skip = [], False
    for word in sys.argv[1:]:
        if skip:
            words.append("DIR")
            skip = False
            continue
        words.append(word)
        skip = word in ("--peers", "--environment", "--work", "--out", "--build")
    return words


if __name__ == "__main__":
    assert shutil.which("taskset"), "taskset (util-linux) pins the processes to a core; it is not there."
    main()
