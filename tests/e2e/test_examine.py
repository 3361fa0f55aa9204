"""`bilevel doctor`, `plan` and `explain`."""
import json
import math

import pytest

from test_run import RIDGE, closed_form, npy

MLP = """
[problem]
task = "supervised"
model = "mlp"
hidden = [8]
[problem.hyperparameters]
l2 = { per = "layer", init = -4.0 }
[data]
inner = { builtin = "digits", count = 80 }
outer = { builtin = "digits", first = 80, count = 60 }
[inner]
steps = 150
lr = 0.05
start = "cold"
[hypergradient]
estimator = "unrolled"
[outer]
steps = 3
"""


@pytest.fixture
def ridge(tmp_path):
    npy(tmp_path / "x.npy", [1.0, 2.0], shape=(2, 1))
    npy(tmp_path / "t.npy", [1.0, 3.0])
    npy(tmp_path / "vx.npy", [1.0, 1.0], shape=(2, 1))
    npy(tmp_path / "vt.npy", [1.0, 2.0])
    config = tmp_path / "ridge.toml"
    config.write_text(RIDGE)
    return config


@pytest.fixture
def mlp(tmp_path):
    config = tmp_path / "mlp.toml"
    config.write_text(MLP)
    return config


def trials(diagnosis):
    return {trial["name"]: trial for trial in diagnosis["trials"]}


def test_doctor_measures_against_the_closed_form(bilevel, ridge):
    diagnosis = json.loads(bilevel("doctor", ridge, "--json").stdout)
    _, _, slope = closed_form(-1.0)
    assert diagnosis["reference"]["norm"] == pytest.approx(abs(slope), rel=1e-9)
    assert diagnosis["reference"]["differentiates"] == "F" and diagnosis["reference"]["trusted"]
    found = trials(diagnosis)
    own = next(trial for trial in diagnosis["trials"] if trial["configured"])
    assert own["name"].startswith("implicit dense") and own["error"] < 1e-9 and own["cosine"] == pytest.approx(1)
    assert found["unrolled"]["error"] < 1e-6
    # For one weight the step size 0.3 stands for 1/H, H = 2.5 + e^-1.
    assert found["identity"]["norm_ratio"] == pytest.approx(0.3 * (2.5 + math.exp(-1)), rel=1e-6)
    assert found["identity"]["error"] == pytest.approx(1 - 0.3 * (2.5 + math.exp(-1)), rel=1e-5)
    names = [trial["name"] for trial in diagnosis["trials"]]
    for estimator in bilevel("list", "estimators").stdout.splitlines():
        assert any(name.split()[0] == estimator.split()[0] for name in names), estimator
    advice = diagnosis["recommendation"]
    assert advice["within_1_percent"] and advice["toml"].startswith("[hypergradient]\nestimator = ")


def test_the_recommended_lines_are_a_configuration(bilevel, ridge, tmp_path):
    diagnosis = json.loads(bilevel("doctor", ridge, "--json").stdout)
    head, _, tail = RIDGE.partition("[hypergradient]")
    (tmp_path / "better.toml").write_text(head + diagnosis["recommendation"]["toml"] + tail[tail.index("[outer]"):])
    done = json.loads(bilevel("hypergrad", "better.toml", "--json").stdout)
    assert done["norm"] == pytest.approx(diagnosis["reference"]["norm"], rel=0.011)


def test_doctor_says_that_the_inner_solve_stops_too_early(bilevel, ridge, tmp_path):
    done = bilevel("doctor", ridge, "--set", "inner.steps=1", "--html", "doctor.html")
    assert "Far from stationary" in done.stdout and "To paste" in done.stdout and "[hypergradient]" in done.stdout
    page = (tmp_path / "doctor.html").read_text()
    assert "Scatter chart" in page and "Far from stationary" in page


def test_doctor_unrolls_where_the_network_is_not_convex(bilevel, mlp):
    diagnosis = json.loads(bilevel("doctor", mlp, "--set", "inner.steps=10", "--seconds", "30", "--json").stdout)
    assert diagnosis["reference"]["differentiates"] == "F_T"
    assert any(trap.startswith("Indefinite") for trap in diagnosis["traps"])
    assert trials(diagnosis)["unrolled"]["error"] < 1e-3


def test_doctor_looks_after_some_outer_steps(bilevel, ridge):
    diagnosis = json.loads(bilevel("doctor", ridge, "--after", "2", "--json").stdout)
    a = -1.0
    for _ in range(2):
        a -= closed_form(a)[2]
    assert diagnosis["reference"]["norm"] == pytest.approx(abs(closed_form(a)[2]), rel=1e-6)


def test_plan_counts_what_the_run_will_ask_and_hold(bilevel, mlp, tmp_path):
    plan = json.loads(bilevel("plan", mlp, "--json").stdout)
    bilevel("run", mlp, "--out", "out")
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    step = plan["configured"]["step"]
    assert plan["steps"] == 3 and plan["configured"]["measured"] and plan["configured"]["probes"] >= 2
    for kind in ("forwards", "gradients", "hvps", "cross_products"):
        assert step[kind] == log[1]["cost"][kind]  # the first and the last one bound their errors too
    assert step["peak_bytes"] == pytest.approx(max(record["machine"]["peak_bytes"] for record in log), rel=0.25)
    ways = {one["name"]: one["step"]["peak_bytes"] for one in plan["forecasts"]}
    for memory in ("graphs", "states", "checkpoints"):
        bilevel("run", mlp, "--out", memory, "--set", f"hypergradient.memory={memory}")
        peaks = [json.loads(line)["machine"]["peak_bytes"] for line in (tmp_path / memory / "log.jsonl").read_text().splitlines()]
        assert ways[f'memory = "{memory}"'] == pytest.approx(max(peaks), rel=0.25), memory


def test_plan_fits_a_run_into_a_limit(bilevel, mlp, tmp_path):
    free = json.loads(bilevel("plan", mlp, "--json").stdout)
    assert free["choice"]["fits"]
    limit = free["configured"]["total"]["peak_bytes"] // 3
    refused = bilevel("plan", mlp, "--memory", str(limit), "--json", code=1)
    assert json.loads(refused.stdout)["choice"] is None
    assert "Nothing foreseen fits" in json.loads(refused.stdout)["advice"]
    assert bilevel("plan", mlp, "--memory", "much", code=2).stdout == ""


def test_explain_sums_to_the_hypergradient(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "out", "--set", "outer.steps=2")
    done = bilevel("explain", "out", "--hyperparameter", "l2", "--json")
    explained = json.loads(done.stdout)
    a = -1.0
    for _ in range(2):
        a -= closed_form(a)[2]
    w, _, slope = closed_form(a)
    assert explained["step"] == 2 and explained["start"] == -1.0
    assert explained["x"] == pytest.approx(a, abs=1e-8)
    assert explained["value"] == pytest.approx(slope, abs=1e-8)
    assert sum(part["value"] for part in explained["parts"]) + explained["direct"] == pytest.approx(explained["value"], abs=1e-12)
    # f_k = ½ (w − t_k)², so that its share is (w − t_k) dw/da / 2, t = (1, 2).
    answer = -w * math.exp(a) / (2.5 + math.exp(a))
    for sample in explained["samples"]:
        assert sample["value"] == pytest.approx((w - [1, 2][sample["index"]]) * answer / 2, abs=1e-8)
    assert {sample["index"] for sample in explained["samples"]} == {0, 1}
    assert "Why l2 moves" in (tmp_path / "out" / "report.html").read_text()


def test_explain_reaches_the_steps_that_were_not_kept(bilevel, ridge, tmp_path):
    bilevel("run", ridge, "--out", "out")
    a = -1.0
    for step in range(4):
        explained = json.loads(bilevel("explain", "out", "--hyperparameter", "l2", "--step", step, "--json").stdout)
        assert explained["x"] == pytest.approx(a, abs=1e-8)
        assert explained["value"] == pytest.approx(closed_form(a)[2], abs=1e-8)
        a -= closed_form(a)[2]
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"Why l2 moves, at step {step}" in page for step in range(4))
    before = page
    bilevel("explain", "out", "--hyperparameter", "l2", "--step", "5", code=2)
    bilevel("explain", "out", "--hyperparameter", "l2[0]", code=2)
    done = bilevel("explain", "out", "--hyperparameter", "l1", code=2)
    assert "l2" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "report.html").read_text() == before


def test_explain_shows_the_images(bilevel, mlp, tmp_path):
    bilevel("run", mlp, "--out", "out", "--set", "outer.steps=1", "--set", "inner.steps=40")
    done = bilevel("explain", "out", "--hyperparameter", "l2[0]", "--top", "5")
    assert "By outer sample" in done.stdout and "█" in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    kept = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert [len(one["samples"]) for one in kept] == [5]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A finished reweighting job on the digits: its directory and its log."""
    from conftest import Bilevel
    folder = tmp_path_factory.mktemp("job")
    Bilevel(folder)("reweight", "--builtin", "digits", "--set", "reweight.signal=-1e9", "--out", "job")
    return folder / "job", [json.loads(line) for line in (folder / "job" / "log.jsonl").read_text().splitlines()]


def test_doctor_looks_at_the_problem_inside_a_job(bilevel, job, tmp_path):
    directory, log = job
    done = bilevel("doctor", directory / "config.toml", "--seconds", "20", "--html", "doctor.html", "--json")
    diagnosis = json.loads(done.stdout)
    reference = diagnosis["reference"]
    assert reference["differentiates"] == "F" and reference["trusted"]
    # The job's own estimate at x = 0, whose linear solves stop at a residual of 3 %.
    assert log[0]["hypergradient_norm"] == pytest.approx(reference["norm"], rel=0.01)
    assert reference["direct_norm"] == 0
    own = next(trial for trial in diagnosis["trials"] if trial["configured"])
    assert own["name"].startswith("implicit cg 8") and own["error"] < 0.05
    # Another ridge makes another problem of the same shape.
    other = json.loads(bilevel("doctor", directory / "config.toml", "--set", "reweight.ridge=0.3", "--seconds", "10", "--json").stdout)
    assert other["reference"]["norm"] < 0.5 * reference["norm"]
    # What the job has is no [hypergradient], so there is nothing to paste into it.
    assert diagnosis["recommendation"]["toml"] == "" and "To paste" not in (tmp_path / "doctor.html").read_text()
    assert "Scatter chart" in (tmp_path / "doctor.html").read_text()


def test_doctor_looks_at_a_job_after_some_outer_steps(bilevel, job):
    directory, log = job
    diagnosis = json.loads(bilevel("doctor", directory / "config.toml", "--after", "3", "--seconds", "10", "--json").stdout)
    assert log[3]["hypergradient_norm"] == pytest.approx(diagnosis["reference"]["norm"], rel=0.02)
    assert abs(log[3]["hypergradient_norm"] / log[0]["hypergradient_norm"] - 1) > 0.05


def test_plan_foresees_the_learning_of_trust(bilevel, job):
    directory, log = job
    plan = json.loads(bilevel("plan", directory / "config.toml", "--json").stdout)
    step = plan["configured"]["step"]
    assert plan["steps"] == 10 == log[-1]["step"] and plan["configured"]["measured"] and plan["configured"]["probes"] >= 2
    for kind in ("gradients", "hvps", "cross_products"):
        counts = [record["cost"][kind] for record in log[1:]]
        assert step[kind] == pytest.approx(sum(counts) / len(counts), rel=0.25), kind  # what plan promises
    assert step["cross_products"] > 0
    assert step["peak_bytes"] == pytest.approx(max(record["machine"]["peak_bytes"] for record in log), rel=0.25)
    assert "learning trust" in plan["advice"] and plan["choice"]["name"] == "as configured"


def test_a_job_without_trusted_samples_has_no_problem_to_examine(bilevel, tmp_path):
    (tmp_path / "labels.csv").write_text("u,v,source,kind\n" + "".join(f"{i % 7},{i % 5},{'ab'[i % 2]},{'xy'[i % 2]}\n" for i in range(40)))
    (tmp_path / "job.toml").write_text('[problem]\ntask = "reweight"\n[data.noisy]\nx = "labels.csv"\nlabel = "kind"\nsource = "source"\n')
    for command in ("doctor", "plan"):
        assert "no trusted samples" in bilevel(command, "job.toml", code=2).stderr


def test_explain_says_why_the_trust_in_a_source_moved(bilevel, job):
    directory, log = job
    before = (directory / "report.html").read_bytes()
    found = [json.loads(bilevel("explain", directory, "--hyperparameter", f"source_weight[{i}]", "--top", "200", "--json").stdout)
             for i in range(20)]
    norm = math.sqrt(sum(one["value"] ** 2 for one in found))
    # The job's own estimate, whose linear solves stop at a residual of 3 %; more of the components than one are needed to come near.
    assert norm == pytest.approx(log[-1]["hypergradient_norm"], rel=0.03)
    assert max(abs(one["value"]) for one in found) < 0.9 * norm
    for one in found:
        assert one["direct"] == 0 and len(one["samples"]) == 100
        assert sum(sample["value"] for sample in one["samples"]) == pytest.approx(one["value"], rel=1e-6, abs=1e-12)
    # The job's report is its own; what was explained stands beside it.
    assert (directory / "report.html").read_bytes() == before
    assert (directory / "explanations.html").read_text().count("source_weight[19]") > 0
    assert "its last point alone" in bilevel("explain", directory, "--hyperparameter", "source_weight[0]", "--step", "3", code=2).stderr
