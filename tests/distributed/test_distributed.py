"""Several processes that share the samples find what one process finds, to rounding, and end in order where one of them is lost."""
import json
import math
import pathlib
import re
import signal
import struct
import subprocess
import sys
import time

import pytest

from conftest import ENVIRONMENT, Processes

HERE = pathlib.Path(__file__).resolve().parent

# 61 samples: no number of processes divides them. Weights of samples stay with their process, the ridge belongs to all.
CONFIG = """
[problem]
model = "linear"
loss = "softmax"
dtype = "float64"
[problem.hyperparameters]
sample_weight = { init = 0.0, param = "sigmoid" }
l2 = { per = "feature", init = -3.0, param = "log" }
[data]
inner = { builtin = "digits", first = 0, count = 61 }
outer = { builtin = "digits", first = 60, count = 47 }
test = { builtin = "digits", first = 120, count = 50 }
[inner]
rule = "sgd"
momentum = 0.9
lr = 0.1
steps = 5
[hypergradient]
bound_every = 0
[outer]
rule = "adam"
lr = 0.05
steps = 4
[run]
seed = 5
"""

# What each case changes. Minibatches of 7 leave some processes without a sample now and then.
CASES = {
    "unrolled": ["hypergradient.estimator=unrolled", "inner.start=cold"],
    "unrolled-minibatches": ["hypergradient.estimator=unrolled", "inner.batch=7", "outer.batch=5"],
    "unrolled-last-steps-certified": ["hypergradient.estimator=unrolled", "hypergradient.steps=3", "hypergradient.bound_every=2"],
    "unrolled-checkpoints-budget": ["hypergradient={ estimator = \"unrolled\", memory = \"checkpoints\", budget = \"2 MB\" }",
                                    "problem.model=mlp", "problem.hidden=[8]", "problem.hyperparameters.l2={ per = \"layer\" }"],
    "implicit-certified": ["hypergradient.estimator=implicit", "hypergradient.solver=cg", "hypergradient.iterations=6",
                           "hypergradient.bound_every=2", "hypergradient.check_every=4", "inner.steps=40",
                           "problem.hyperparameters.l2={ per = \"feature\", init = -3.0, bias = true }"],
    "implicit-neumann-minibatches": ["hypergradient.estimator=implicit", "hypergradient.solver=neumann", "hypergradient.iterations=4",
                                     "inner.batch=7"],
    "implicit-autodiff-micro-batches": ["hypergradient.estimator=implicit", "run.oracle=autodiff", "run.micro_batch=13"],
    "implicit-lbfgs": ["hypergradient.estimator=implicit", "inner={ solver = \"lbfgs\", tolerance = 1e-9 }"],
    "finite-difference": ["hypergradient.estimator=implicit", "run.oracle=finite-difference"],
    "forward": ["hypergradient.estimator=forward", "problem.hyperparameters={ l2 = { per = \"class\", init = -3.0 } }"],
    "one-step": ["hypergradient.estimator=one-step"],
    "t1-t2": ["hypergradient.estimator=t1-t2"],
    "darts": ["hypergradient.estimator=darts"],
    "sama": ["hypergradient.estimator=sama"],
    "fisher-minibatches": ["hypergradient.estimator=fisher", "inner.batch=7"],
    "fisher-dense": ["hypergradient={ estimator = \"fisher\", form = \"dense\", labels = \"observed\", bound_every = 0 }"],
    "fisher-kronecker-second-thread": ["hypergradient={ estimator = \"fisher\", form = \"kronecker\", labels = \"observed\", overlap = true, "
                                       "bound_every = 0 }"],
    "identity": ["hypergradient.estimator=identity"],
    "functional": ["hypergradient.estimator=functional", "hypergradient.damping=0.01"],
    "functional-network-minibatches": ["hypergradient={ estimator = \"functional\", adjoint = \"network\", adjoint_steps = 4, bound_every = 0 }",
                                       "problem.hyperparameters={ sample_weight = {} }", "inner.batch=7", "outer.batch=5"],
    "step-size": ["hypergradient.estimator=unrolled", "inner={ rule = \"sgd\", steps = 5 }",
                  "problem.hyperparameters={ step_size = { init = 0.1 }, sample_weight = {} }"],
    "soba": ["run.algorithm=soba", "hypergradient={}", "inner={ lr = 0.1, batch = 7 }", "run.record_every=5",
             "outer={ lr = 0.1, steps = 20, batch = 5 }"],
    "saba": ["run.algorithm=saba", "hypergradient={}", "inner={ lr = 0.1, batch = 7 }", "outer={ lr = 0.1, steps = 20, batch = 5 }"],
}


def read_npy(path):
    raw = path.read_bytes()
    size = struct.unpack("<H", raw[8:10])[0]
    assert b"<f8" in raw[10:10 + size]
    return struct.unpack(f"<{(len(raw) - 10 - size) // 8}d", raw[10 + size:])


def log_of(directory):
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["machine"]
    return lines


def distance(a, b):
    assert len(a) == len(b)
    return math.dist(a, b)


def close(one, other, tolerance):
    """To rounding; what is small beside 1 was made by cancellation."""
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance))


def assert_same_run(one, other, tolerance=1e-8):
    for name in ("x.npy", "y.npy"):
        a, b = read_npy(one / name), read_npy(other / name)
        assert distance(a, b) <= tolerance * math.hypot(*a), name
    a, b = log_of(one), log_of(other)
    assert len(a) == len(b)
    for i, (first, second) in enumerate(zip(a, b)):
        for key in ("step", "status"):
            assert first[key] == second[key], f"record {i}.{key}"
        for key in ("outer_loss", "inner_loss", "hypergradient_norm", "stationarity"):
            assert close(first[key], second[key], tolerance), f"record {i}.{key}: {first[key]} {second[key]}"
        assert first["metrics"].keys() == second["metrics"].keys()
        for key, value in first["metrics"].items():
            assert close(value, second["metrics"][key], tolerance), f"record {i}.{key}"
        # Of Lanczos and CG, which end a product sooner or later by rounding.
        for key in ("error_bound", "distance_to_F", "relative_residual"):
            pair = [record.get("certificate", {}).get(key) for record in (first, second)]
            assert close(*pair, 0.01), f"record {i}.certificate.{key}: {pair}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, alone):
    """Each case in one process."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.toml").write_text(CONFIG)
    for case, changes in CASES.items():
        sets = [part for change in changes for part in ("--set", change)]
        (folder / f"{case}.stdout").write_text(alone(folder, "run", "config.toml", "--out", case, *sets).stdout)
    return folder


# Four processes on fewer cores wait for each other most of the time.
SOME = ["unrolled", "unrolled-minibatches", "implicit-autodiff-micro-batches", "soba"]


@pytest.mark.parametrize(("size", "cases"), [(2, list(CASES)), (4, SOME)], ids=["2", "4"])
def test_every_way_to_a_hypergradient_equals_one_process(size, cases, whole, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    commands = [["run", "config.toml", "--out", case, *(part for change in CASES[case] for part in ("--set", change))] for case in cases]
    commands.append([*commands[1][:3], "again", *commands[1][4:]])
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    ends = Processes(size, [HERE / "worker.py", "commands.json"], tmp_path).ended()
    assert [code for code, _, _ in ends] == [0] * size, ends
    for _, out, err in ends[1:]:
        assert (out, err) == ("", ""), "the first process alone prints"
    assert "Writing the run to" in ends[0][2]
    for case in cases:
        try:
            assert_same_run(whole / case, tmp_path / case, 1e-5 if case in ("finite-difference", "darts", "sama") else 1e-8)
        except AssertionError as error:
            raise AssertionError(f"{case} in {size} processes: {error}") from error
        start, end = log_of(tmp_path / case)[0], log_of(tmp_path / case)[-1]
        assert abs(start["outer_loss"] - end["outer_loss"]) > 1e-4, f"{case} has moved nothing"
        assert sorted(p.name for p in (tmp_path / case).iterdir()) == sorted(p.name for p in (whole / case).iterdir())
    assert log_of(tmp_path / "again") == log_of(tmp_path / cases[1]), "the same bits from the same processes"
    assert (tmp_path / "again" / "x.npy").read_bytes() == (tmp_path / cases[1] / "x.npy").read_bytes()
    certificates = [log_of(whole / case)[2]["certificate"] for case in CASES if case.endswith("certified")]
    assert len(certificates) == 2 and all(certificate["error_bound"] > 0 for certificate in certificates), "there is something to compare"


LONG = [part for change in ("outer={ rule = \"sgd\", lr = 1.0, steps = 120 }", "run.checkpoint_every=100000", "run.checkpoint_seconds=1000",
                            "hypergradient={ estimator = \"unrolled\", bound_every = 0 }") for part in ("--set", change)]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory, alone):
    folder = tmp_path_factory.mktemp("long")
    (folder / "config.toml").write_text(CONFIG)
    alone(folder, "run", "config.toml", "--out", "out", *LONG)
    return folder / "out"


def wait_for_records(directory, count, processes):
    log = directory / "log.jsonl"
    until = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < count:
        assert time.monotonic() < until and all(process.poll() is None for process in processes.all), processes.ended(1)
        time.sleep(0.005)


def resumed(directory, into, resume):
    subprocess.run(["cp", "-r", directory, into], check=True)
    resume(into)
    return into


def test_a_killed_process_ends_the_run_which_goes_on_with_any_number(tmp_path, start, alone, long_run):
    (tmp_path / "config.toml").write_text(CONFIG)
    processes = start(2, "run", "config.toml", "--out", "out", *LONG)
    wait_for_records(tmp_path / "out", 10, processes)
    processes.all[1].kill()
    (code, out, err), _ = processes.ended(30)
    assert (code, out) == (1, "")
    assert re.search(r"bilevel: Process 0 of 2 lost another one.*bilevel resume out\.\n", err), err
    assert not (tmp_path / "out" / "summary.json").exists()
    assert 10 <= len(log_of(tmp_path / "out")) < 121, "the run was over too soon for this test"
    assert (tmp_path / "out" / "checkpoint").exists()

    def with_three(directory):
        ends = start(3, "resume", directory).ended()
        assert [end[0] for end in ends] == [0, 0, 0], ends
        assert "Going on from step" in ends[0][2]

    for name, resume in (("three", with_three), ("one", lambda directory: alone(tmp_path, "resume", directory))):
        assert_same_run(long_run, resumed(tmp_path / "out", tmp_path / name, resume))


def test_a_process_that_hangs_is_given_up_after_the_time_out(tmp_path, start):
    (tmp_path / "config.toml").write_text(CONFIG)
    processes = start(2, "run", "config.toml", "--out", "out", *LONG, "--set", "run.group_timeout=10")
    wait_for_records(tmp_path / "out", 5, processes)
    processes.all[0].send_signal(signal.SIGSTOP)
    out, err = processes.all[1].communicate(timeout=60)
    assert (processes.all[1].returncode, out) == (1, "")
    assert re.search(r"Process 1 of 2 lost another one: it has ended, or did not answer within 10 s.*bilevel resume out\.\n", err), err


def test_an_interruption_of_one_ends_all_in_order(tmp_path, start, alone, long_run):
    (tmp_path / "config.toml").write_text(CONFIG)
    processes = start(3, "run", "config.toml", "--out", "out", *LONG)
    wait_for_records(tmp_path / "out", 10, processes)
    processes.all[2].send_signal(signal.SIGTERM)
    ends = processes.ended(60)
    assert [end[0] for end in ends] == [130, 130, 130], ends
    assert "Interrupted after" in ends[0][2] and "bilevel resume out" in ends[0][2]
    assert [end[1:] for end in ends[1:]] == [("", "")] * 2
    assert_same_run(long_run, resumed(tmp_path / "out", tmp_path / "one", lambda directory: alone(tmp_path, "resume", directory)))


def test_misuse_is_told_once_and_ends_all(tmp_path, start):
    (tmp_path / "config.toml").write_text(CONFIG)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text(CONFIG.replace("count = 47", "count = 46"))
    jobs = tmp_path / "job.toml"
    jobs.write_text("[problem]\ntask = \"tune\"\n")
    for arguments, where, who, text in (
            (["run", "config.toml", "--set", "outer.stepz=3"], None, 0, "stepz"),
            (["run", "config.toml"], {1: tmp_path / "nowhere"}, 1, "config.toml"),
            (["run", "config.toml", "--out", "out"], {1: other}, 1, "another configuration or other data"),
            (["run", "job.toml"], None, 0, "one process"),
            (["run", "config.toml", "--set", "run.algorithm=hpm"], None, 0, "threads of one process"),
            (["doctor", "config.toml"], None, 0, "without torchrun"),
            (["resume", "nothing"], None, 0, "nothing")):
        (tmp_path / "nowhere").mkdir(exist_ok=True)
        ends = start(2, *arguments, where=where).ended()
        assert text in ends[who][2], ends
        assert ends[who][0] == 2 and ends[1 - who][0] != 0, ends
        assert (ends[1 - who][1], ends[1 - who][2]) == ("", ""), ends
    assert not (tmp_path / "out").exists() and not (tmp_path / "runs").exists()


def test_torchrun_as_the_documentation_has_it(tmp_path, whole):
    (tmp_path / "config.toml").write_text(CONFIG)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bilevel", "run",
                           "config.toml", "--out", "unrolled", *(part for change in CASES["unrolled"] for part in ("--set", change))],
                          cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert_same_run(whole / "unrolled", tmp_path / "unrolled")
    alone = (whole / "unrolled.stdout").read_text()
    assert [line.split()[:1] for line in done.stdout.splitlines()] == [line.split()[:1] for line in alone.splitlines()], "once"
