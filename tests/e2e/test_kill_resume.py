"""A run killed at any moment resumes to the bit-identical end."""
import json
import os
import random
import signal
import subprocess
import time

import pytest

# Momentum that is carried on, minibatches, a warm linear solve and Adam: all that a checkpoint must hold.
CONFIG = """
[problem]
model = "linear"
loss = "softmax"
[problem.hyperparameters]
sample_weight = { init = 0.0, param = "sigmoid" }
l2 = { per = "feature", init = -3.0, param = "log" }
[data]
inner = { builtin = "digits", first = 0, count = 60 }
outer = { builtin = "digits", first = 60, count = 60 }
test = { builtin = "digits", first = 120, count = 50 }
[inner]
rule = "sgd"
momentum = 0.9
carry_state = true
lr = 0.1
steps = 4
batch = 20
[hypergradient]
estimator = "implicit"
solver = "cg"
iterations = 3
[outer]
rule = "adam"
lr = 0.05
steps = 300
[run]
seed = 5
checkpoint_every = 7
"""


def state_of(directory):
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["machine"]
    return (directory / "x.npy").read_bytes(), (directory / "y.npy").read_bytes(), lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from conftest import Bilevel
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.toml").write_text(CONFIG)
    began = time.monotonic()
    # A weak estimate may be graded BAD (exit 1): what counts here is that it is the same each time.
    process = Bilevel(folder).start("run", "config.toml", "--out", "out")
    process.communicate(timeout=300)
    assert process.returncode in (0, 1)
    return state_of(folder / "out"), time.monotonic() - began, process.returncode


def test_killed_at_thirty_random_moments_and_resumed(bilevel, tmp_path, whole):
    expected, seconds, code = whole
    assert len(expected[2]) == 301
    rng = random.Random(20240611)
    (tmp_path / "config.toml").write_text(CONFIG)
    kills = resumed = ended = 0
    while kills < 30:
        out = tmp_path / f"out-{ended}"
        # A directory without a configuration holds no run yet.
        arguments = ["resume", out] if (out / "config.toml").exists() else ["run", "config.toml", "--out", out]
        resumed += arguments[0] == "resume"
        process = bilevel.start(*arguments)
        try:
            process.communicate(timeout=rng.uniform(0.0, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            assert process.returncode == code
            assert state_of(out) == expected
            ended += 1
    last = tmp_path / f"out-{ended}"
    if (last / "config.toml").exists():
        bilevel("resume", last, code=code)
        assert state_of(last) == expected
        ended += 1
    assert resumed >= 10 and ended >= 1


def test_a_torn_log_line_is_cut(bilevel, tmp_path, whole):
    expected, seconds, code = whole
    (tmp_path / "config.toml").write_text(CONFIG)
    out = tmp_path / "out"
    process = bilevel.start("run", "config.toml", "--out", out)
    while not (out / "checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    with open(out / "log.jsonl", "a") as log:
        log.write('{"step":299,"outer_lo')
    bilevel("resume", out, code=code)
    assert state_of(out) == expected


def test_a_full_disk_is_a_clear_error_and_the_checkpoint_stays_good(bilevel, tmp_path, whole):
    expected, seconds, code = whole
    (tmp_path / "config.toml").write_text(CONFIG)
    out = tmp_path / "out"
    process = bilevel.start("run", "config.toml", "--out", out)
    while not (out / "checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    # A limit on the size of files stands for the full disk; the log outgrows it.
    import resource
    limit = (out / "log.jsonl").stat().st_size + 3000

    def full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    failed = bilevel("resume", out, code=1, preexec_fn=full_disk)
    assert "Cannot write" in failed.stderr and "File too large" in failed.stderr
    bilevel("resume", out, code=code)
    assert state_of(out) == expected


def stop_at_a_checkpoint(bilevel, out):
    """A run of `config.toml` that has left a checkpoint and is not at its end."""
    process = bilevel.start("run", "config.toml", "--out", out, "--set", "outer.steps=100000")
    while not (out / "checkpoint").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()


TABLE = """
[problem]
model = "linear"
[problem.hyperparameters]
sample_weight = { init = 0.0 }
[data]
inner = { x = "inner.csv", label = "kind" }
outer = { x = "outer.csv", label = "kind" }
[inner]
steps = 3
lr = 0.1
[run]
checkpoint_every = 5
"""


@pytest.mark.parametrize("change", ["a number", "a label", "the order of two rows", "a row more", "the outer data"])
def test_a_run_whose_data_have_changed_is_refused_and_stays_as_it_was(bilevel, tmp_path, change):
    draw = random.Random(3)
    rows = {name: [f"{draw.gauss(i % 2, 1):.4f},{draw.gauss(0, 1):.4f},{'ab'[i % 2]}" for i in range(40)] for name in ("inner", "outer")}

    def write(name, lines):
        (tmp_path / f"{name}.csv").write_text("\n".join(["u,v,kind", *lines]) + "\n")

    for name, lines in rows.items():
        write(name, lines)
    (tmp_path / "config.toml").write_text(TABLE)
    out = tmp_path / "out"
    stop_at_a_checkpoint(bilevel, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    inner = rows["inner"]
    first, second, *rest = inner
    u, v, kind = first.split(",")
    changed = {"a number": [f"{u},{float(v) + 0.001:.4f},{kind}", second, *rest], "a label": [f"{u},{v},b", second, *rest],
               "the order of two rows": [second, first, *rest], "a row more": [*inner, first], "the outer data": rows["outer"][1:]}
    write("outer" if change == "the outer data" else "inner", changed[change])
    refused = bilevel("resume", out, code=2)
    assert "other shapes, dtypes or data" in refused.stderr and "bring its data back" in refused.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    for name, lines in rows.items():
        write(name, lines)
    process = bilevel.start("resume", out)
    log = (out / "log.jsonl").read_text().count("\n")
    while (out / "log.jsonl").read_text().count("\n") <= log:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
