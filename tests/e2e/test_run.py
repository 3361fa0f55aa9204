"""`bilevel run`, `hypergrad`, `new`, `list`, and what they refuse."""
import json
import math
import os
import re
import signal
import struct
import time

import pytest


def npy(path, values, descr="<f8", shape=None):
    """A .npy file without NumPy."""
    code = {"<f8": "d", "<f4": "f", "<i8": "q"}[descr]
    shape = shape or (len(values),)
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(shape)!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack(f"<{len(values)}{code}", *values))


def read_npy(path):
    raw = path.read_bytes()
    assert raw[:6] == b"\x93NUMPY"
    size = struct.unpack("<H", raw[8:10])[0]
    code = {"<f8": "d", "<f4": "f", "<i8": "q"}[re.search(r"'descr': '([^']*)'", raw[10:10 + size].decode()).group(1)]
    body = raw[10 + size:]
    return list(struct.unpack(f"<{len(body) // struct.calcsize(code)}{code}", body))


# One feature, two inner and two outer samples, squared loss, one ridge strength: everything is known in closed form.
# inner: g = ½·mean((w·x − t)²) + ½·e^a·w²,  x = (1, 2), t = (1, 3)      outer: f = ½·mean((w·x' − t')²),  x' = (1, 1), t' = (1, 2)
RIDGE = """
[problem]
task = "supervised"
model = "linear"
loss = "squared"
dtype = "float64"
bias = false
[problem.hyperparameters]
l2 = { per = "one", init = -1.0, param = "log" }
[data]
inner = { x = "x.npy", y = "t.npy" }
outer = { x = "vx.npy", y = "vt.npy" }
[inner]
rule = "sgd"
lr = 0.3
steps = 200
[hypergradient]
estimator = "implicit"
solver = "dense"
[outer]
rule = "sgd"
lr = 1.0
steps = 4
[run]
seed = 3
"""


def closed_form(a):
    penalty = math.exp(a)
    w = 3.5 / (2.5 + penalty)  # mean(x·t) / (mean(x²) + e^a)
    outer = 0.5 * ((w - 1) ** 2 + (w - 2) ** 2) / 2
    slope = (w - 1.5) * (-w * penalty / (2.5 + penalty))
    return w, outer, slope


@pytest.fixture
def ridge(tmp_path):
    npy(tmp_path / "x.npy", [1.0, 2.0], shape=(2, 1))
    npy(tmp_path / "t.npy", [1.0, 3.0])
    npy(tmp_path / "vx.npy", [1.0, 1.0], shape=(2, 1))
    npy(tmp_path / "vt.npy", [1.0, 2.0])
    config = tmp_path / "ridge.toml"
    config.write_text(RIDGE)
    return config


def log_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def without_machine(records):
    return [{key: value for key, value in record.items() if key != "machine"} for record in records]


def test_run_follows_the_closed_form_and_leaves_what_it_promises(bilevel, ridge, tmp_path):
    done = bilevel("run", ridge, "--out", "out")
    out = tmp_path / "out"
    a = -1.0
    records = log_of(out)
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    for record in records:
        w, outer, slope = closed_form(a)
        assert record["outer_loss"] == pytest.approx(outer, abs=1e-10)
        assert record["hypergradient_norm"] == pytest.approx(abs(slope), abs=1e-9)
        assert set(record["machine"]) == {"seconds", "peak_bytes"}
        final, a = a, a - slope
    assert read_npy(out / "x.npy") == pytest.approx([final], abs=1e-8)
    assert read_npy(out / "y.npy") == pytest.approx([closed_form(final)[0]], abs=1e-8)
    layout = json.loads((out / "layout.json").read_text())
    assert layout["x"]["size"] == 1 and layout["y"]["size"] == 1
    assert layout["x"]["parts"][0]["offset"] == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["outcome"] == "done" and summary["status"] == "OK" and summary["steps"] == 4
    assert summary["outer_loss"] == records[-1]["outer_loss"]
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    assert done.stdout.strip(), "the summary goes to stdout"


def test_a_second_thread_changes_no_bit_and_is_in_the_costs(bilevel, ridge, tmp_path):
    fisher = 'hypergradient={{ estimator = "fisher", form = "kronecker", labels = "observed", overlap = {} }}'
    for name, overlap in (("one", "false"), ("two", "true")):
        bilevel("run", ridge, "--out", name, "--threads", "1", "--set", fisher.format(overlap))
    one, two = tmp_path / "one", tmp_path / "two"
    assert without_machine(log_of(one)) == without_machine(log_of(two))
    for name in ("x.npy", "y.npy"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    for out, keys in ((one, set()), (two, {"second_thread_seconds", "hidden_seconds"})):
        for machine in [record["machine"] for record in log_of(out)[:-1]] + [json.loads((out / "summary.json").read_text())["machine"]]:
            assert set(machine) == {"seconds", "peak_bytes"} | keys
            assert machine.get("hidden_seconds", 0) <= machine.get("second_thread_seconds", 0)
    assert "second thread" in bilevel("hypergrad", ridge, "--set", fisher.format("true")).stdout
    assert "work of a second thread, hidden" in (two / "report.html").read_text()


def test_the_written_configuration_repeats_the_run(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "a", "--set", "outer.lr=0.5", "--seed", "9", "--threads", "1")
    text = (tmp_path / "a" / "config.toml").read_text()
    assert "seed = 9" in text and "threads = 1" in text and str(tmp_path / "x.npy") in text
    other = tmp_path / "elsewhere"
    other.mkdir()
    bilevel("run", tmp_path / "a" / "config.toml", "--out", other / "b")
    assert without_machine(log_of(tmp_path / "a")) == without_machine(log_of(other / "b"))
    assert (tmp_path / "a" / "x.npy").read_bytes() == (other / "b" / "x.npy").read_bytes()
    assert (tmp_path / "a" / "config.toml").read_bytes() == (other / "b" / "config.toml").read_bytes()


def test_a_directory_is_chosen_where_none_is_given(bilevel, ridge, tmp_path):
    first, second = bilevel("run", ridge), bilevel("run", ridge)
    assert "runs/ridge-1" in first.stderr and "runs/ridge-2" in second.stderr
    assert (tmp_path / "runs" / "ridge-2" / "summary.json").exists()


def test_hypergrad_prints_one_json_object(bilevel, ridge):
    done = bilevel("hypergrad", ridge, "--json")
    result = json.loads(done.stdout)
    w, outer, slope = closed_form(-1.0)
    assert result["hypergradient"] == pytest.approx([slope], abs=1e-9)
    assert result["norm"] == pytest.approx(abs(slope), abs=1e-9)
    assert result["direct_norm"] == 0
    assert result["outer_loss"] == pytest.approx(outer, abs=1e-10)
    assert result["inner_loss"] == pytest.approx(0.5 * ((w - 1) ** 2 + (2 * w - 3) ** 2) / 2 + 0.5 * math.exp(-1) * w * w, abs=1e-10)
    assert result["status"] == "OK" and isinstance(result["message"], str)
    assert set(result["certificate"]) >= {"differentiates", "stationarity", "relative_residual", "error_bound", "distance_to_F"}
    assert result["certificate"]["differentiates"] == "F"
    assert result["cost"]["gradients"] >= 200
    assert "implicit" not in done.stdout and "‖" in bilevel("hypergrad", ridge).stdout


def test_finite_difference_oracle_agrees(bilevel, ridge):
    exact = json.loads(bilevel("hypergrad", ridge, "--json").stdout)["hypergradient"]
    differences = json.loads(bilevel("hypergrad", ridge, "--json", "--set", "run.oracle=finite-difference").stdout)["hypergradient"]
    assert differences != exact and differences == pytest.approx(exact, rel=1e-6)


def test_budgets_end_a_run_in_order(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "out", "--set", "run.max_oracle_calls=300")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["outcome"] == "budget" and 0 < summary["steps"] < 4


def test_a_diverging_run_exits_with_1(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "out", "--set", "inner.lr=5.0", "--set", "inner.steps=4000", code=1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "BAD" and summary["outcome"] == "diverged"
    assert log_of(tmp_path / "out")[0]["outer_loss"] is None or log_of(tmp_path / "out")[0]["status"] == "BAD"


MISUSE = {
    "unknown key": (["--set", "inner.stepz=3"], "stepz.*Did you mean \"steps\""),
    "unknown table": (["--set", "iner.steps=3"], "iner.*Did you mean \"inner\""),
    "wrong type": (["--set", "inner.steps=many"], "inner.steps.*whole number"),
    "negative steps": (["--set", "outer.steps=-1"], "outer.steps.*-1"),
    "negative inner steps": (["--set", "inner.steps=-1"], "steps.*-1"),
    "unknown estimator": (["--set", "hypergradient.estimator=implict"], "Did you mean \"implicit\""),
    "unknown rule": (["--set", "inner.rule=sdg"], "sdg"),
    "missing file": (["--set", "data.inner.x=none.npy"], "none.npy"),
    "no such device": (["--set", "run.device=tpu"], "tpu"),
    "negative seed": (["--seed", "-4"], "seed"),
    "bad assignment": (["--set", "nonsense"], "key=value"),
    "bad threads": (["--threads", "0"], "threads"),
    "an objection": (["--set", "inner.rule=adamw", "--set", "inner.amsgrad=true"], "implicit"),
    "bad checkpoint interval": (["--set", "run.checkpoint_every=0"], "checkpoint_every = 0"),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_exits_with_2_and_writes_nothing(bilevel, ridge, tmp_path, name):
    arguments, message = MISUSE[name]
    before = sorted(path.name for path in tmp_path.iterdir())
    for command in (["run", ridge, "--out", "out"], ["hypergrad", ridge, "--json"]):
        done = bilevel(*command, *arguments, code=2)
        assert re.search(message, done.stderr, re.S), done.stderr
        assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_command_line_misuse_exits_with_2(bilevel, tmp_path):
    for arguments in ([], ["fly"], ["run"], ["run", "missing.toml"], ["list", "birds"], ["new", "superviced"], ["resume", "."],
                      ["resume", "nowhere"], ["report", "nowhere"], ["run", "a", "--frobnicate"]):
        done = bilevel(*arguments, code=2)
        assert done.stderr and not done.stdout, arguments
    assert not list(tmp_path.iterdir())


def test_run_refuses_a_directory_in_use_and_an_unwritable_one(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "holds another run" in bilevel("run", ridge, "--out", "out", code=2).stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert "not empty" in bilevel("run", ridge, "--out", "mine", code=2).stderr
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
    assert "/proc/nowhere" in bilevel("run", ridge, "--out", "/proc/nowhere", code=2).stderr


def test_resume_of_an_ended_run_leaves_it_alone(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "out")
    log = (tmp_path / "out" / "log.jsonl").read_bytes()
    assert "has ended already" in bilevel("resume", "out").stderr
    assert (tmp_path / "out" / "log.jsonl").read_bytes() == log


def test_every_command_helps_with_an_example(bilevel):
    assert "bilevel run" in bilevel("--help").stdout
    for command in ("run", "resume", "hypergrad", "report", "new", "list", "selftest"):
        assert "Example:" in bilevel(command, "--help").stdout
    version = bilevel("--version").stdout
    for word in ("bilevel ", "torch ", "threads ", "SIMD "):
        assert word in version


def test_new_writes_a_configuration_that_runs(bilevel, tmp_path):
    (tmp_path / "start.toml").write_text(bilevel("new", "supervised").stdout)
    bilevel("run", "start.toml", "--out", "out", "--set", "outer.steps=1", "--set", "inner.steps=5")
    names = bilevel("list", "estimators").stdout
    assert "implicit" in names and "cg" not in names.split()
    everything = bilevel("list").stdout
    for name in ("supervised", "implicit", "cg", "adamw", "double-loop"):
        assert name in everything.split()


def test_interruption_checkpoints_and_exits_with_130(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "whole", "--set", "outer.steps=400")
    running = bilevel.start("run", ridge, "--out", "out", "--set", "outer.steps=400", "--set", "run.checkpoint_every=100000")
    log = tmp_path / "out" / "log.jsonl"
    while running.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert "bilevel resume out" in stderr and (tmp_path / "out" / "checkpoint").exists()
    bilevel("resume", "out")
    for name in ("x.npy", "y.npy"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert without_machine(log_of(tmp_path / "out")) == without_machine(log_of(tmp_path / "whole"))
