"""How near the forecasts of `bilevel plan` come: six different jobs, each planned and then run.

    python bench/plan_check.py --binary build/bilevel --out bench/results/plan_check

writes plan_check.json and plan_check.md, and ends with 1 where a forecast is more than 25 % off. Plans and runs take turns, and
medians are compared, so that what else the machine does falls on both.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

DIGITS = '[data]\ninner = { builtin = "digits", count = %d }\nouter = { builtin = "digits", first = %d, count = %d }\n'

JOBS = {
    "ridge per feature, implicit CG": '''
[problem]
model = "linear"
[problem.hyperparameters]
l2 = { per = "feature", init = -4.0 }
''' + DIGITS % (800, 800, 800) + '''
[inner]
steps = 200
[hypergradient]
estimator = "implicit"
iterations = 20
[outer]
steps = 40
''',
    "network, unrolled, graphs": '''
[problem]
model = "mlp"
hidden = [64]
[problem.hyperparameters]
l2 = { per = "layer", init = -5.0 }
''' + DIGITS % (600, 600, 600) + '''
[inner]
lr = 0.1
steps = 150
start = "cold"
[hypergradient]
estimator = "unrolled"
[outer]
steps = 12
''',
    "network, unrolled, checkpoints": '''
[problem]
model = "mlp"
hidden = [96]
[problem.hyperparameters]
sample_weight = { init = 0.0 }
''' + DIGITS % (500, 500, 500) + '''
[inner]
rule = "adam"
lr = 0.01
steps = 200
start = "cold"
[hypergradient]
estimator = "unrolled"
memory = "checkpoints"
[outer]
steps = 4
''',
    "weights of samples, L-BFGS and CG": '''
[problem]
model = "linear"
[problem.hyperparameters]
sample_weight = { init = 0.0 }
[problem.fixed]
l2 = 0.01
''' + DIGITS % (900, 900, 800) + '''
[inner]
solver = "lbfgs"
tolerance = 1e-5
[hypergradient]
estimator = "implicit"
iterations = 30
[outer]
steps = 40
''',
    "convolutions, minibatches, t1-t2": '''
[problem]
model = "cnn"
channels = [8]
[problem.hyperparameters]
l2 = { per = "one", init = -5.0 }
''' + DIGITS % (600, 600, 300) + '''
[inner]
rule = "adam"
lr = 0.003
steps = 60
batch = 64
[hypergradient]
estimator = "t1-t2"
[outer]
steps = 10
''',
    "double, a tolerance, the Hessian's matrix": '''
[problem]
model = "linear"
loss = "softmax"
dtype = "float64"
[problem.hyperparameters]
l2 = { per = "class", init = -2.0 }
''' + DIGITS % (200, 200, 200) + '''
[inner]
steps = 500
tolerance = 1e-2
[hypergradient]
estimator = "implicit"
solver = "dense"
[outer]
steps = 8
''',
}


def plan(binary, config, environment):
    done = subprocess.run([binary, "plan", config, "--json"], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run(binary, config, out, environment):
    began = time.monotonic()
    process = subprocess.Popen([binary, "run", config, "--out", out], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = status
    machine = json.loads((out / "summary.json").read_text())["machine"]
    return {"seconds": machine["seconds"], "wall": wall, "step_bytes": machine["peak_bytes"], "process_bytes": usage.ru_maxrss * 1024}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/bilevel")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("bench/results/plan_check"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", default="1")
    arguments = parser.parse_args()
    environment = {**os.environ, "OMP_NUM_THREADS": arguments.threads, "NO_COLOR": "1"}
    rows = []
    for name, toml in JOBS.items():
        plans, runs = [], []
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            config = folder / "job.toml"
            config.write_text(toml)
            for k in range(arguments.repeats):
                plans.append(plan(arguments.binary, config, environment))
                runs.append(run(arguments.binary, config, folder / str(k), environment))
        foreseen = {
            "seconds": statistics.median(p["configured"]["total"]["seconds"] for p in plans),
            "step_bytes": statistics.median(p["configured"]["step"]["peak_bytes"] for p in plans),
            "process_bytes": statistics.median(p["configured"]["total"]["peak_bytes"] for p in plans),
        }
        found = {key: statistics.median(r[key] for r in runs) for key in ("seconds", "wall", "step_bytes", "process_bytes")}
        ratios = {key: foreseen[key] / found[key] for key in foreseen}
        rows.append({"job": name, "config": toml, "probes": plans[0]["configured"]["probes"], "foreseen": foreseen, "found": found,
                     "foreseen over found": ratios})
        print(name, {key: round(value, 3) for key, value in ratios.items()}, flush=True)
    worst = max(abs(value - 1) for row in rows for value in row["foreseen over found"].values())
    lines = ["# Forecasts of `bilevel plan`", "",
             f"Foreseen and found, medians of {arguments.repeats} plans and runs that took turns, {arguments.threads} thread(s), "
             f"{platform.machine()}. Made by `bench/plan_check.py`.", "",
             "| job | outer steps probed | seconds foreseen | found | ratio | MB of a step's tensors foreseen | found | ratio | MB of the process foreseen | found | ratio |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row["job"], str(row["probes"])]
        for key, unit in (("seconds", 1), ("step_bytes", 1e6), ("process_bytes", 1e6)):
            cells += [f"{row['foreseen'][key] / unit:.3g}", f"{row['found'][key] / unit:.3g}", f"{row['foreseen over found'][key]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"The worst is {100 * worst:.0f} % off; 25 % are allowed."]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".json").write_text(json.dumps({"worst": worst, "rows": rows}, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    return 0 if worst <= 0.25 else 1


if __name__ == "__main__":
    sys.exit(main())
