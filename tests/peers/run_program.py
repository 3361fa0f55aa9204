"""One program of docs/migration.md: `run_program.py TASK LIBRARY RESULT.npy`. Prints what its repetitions took, as JSON."""

import json
import sys
import time

import numpy as np

import pages


def resident(key):
    """A line of /proc/self/status in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))


def main(task, library, out, repetitions=0):
    programs = pages.programs()[task]
    namespace = {"__name__": "program"}
    exec(programs["data"], namespace)
    program = compile(programs[library], f"{task}/{library}", "exec")
    base, seconds = resident("VmRSS"), []
    for _ in range(1 + int(repetitions)):
        began = time.perf_counter()
        exec(program, namespace)
        seconds.append(time.perf_counter() - began)
    np.save(out, np.asarray(namespace["result"]))
    print(json.dumps({"first": seconds[0], "seconds": seconds[1:], "peak_mb": resident("VmHWM") - base}))


if __name__ == "__main__":
    main(*sys.argv[1:])
