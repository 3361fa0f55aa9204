"""`bilevel tune`, as somebody with data of his own meets it."""
import csv
import json
import math
import random
import signal
import struct
import time

import pytest

FILES = {"config.toml", "log.jsonl", "summary.json", "x.npy", "y.npy", "layout.json", "strengths.csv", "model.safetensors",
         "report.html"}
SIGNAL, NOISE = [f"signal_{j}" for j in range(4)], [f"noise_{j}" for j in range(16)]


def make_rows(n, seed):
    """Three classes told apart by four columns; sixteen others say nothing."""
    draw = random.Random(seed)
    centres = [(0, 0, 1, 0), (2, 0, 0, -1), (0, 2, -1, 1)]
    rows = []
    for _ in range(n):
        label = draw.randrange(3)
        row = {name: f"{draw.gauss(centre, 1.2):.4f}" for name, centre in zip(SIGNAL, centres[label])}
        row |= {name: f"{draw.gauss(0, 3):.4f}" for name in NOISE}
        numbers = [float(row[name]) for name in SIGNAL]
        rows.append({**row, "price": f"{2 * numbers[0] - numbers[1] + draw.gauss(0, 1):.4f}", "kind": "abc"[label],
                     "big": "yes" if numbers[0] + numbers[1] + draw.gauss(0, 1) > 1 else "no"})
    return rows


def write(path, rows, label):
    columns = [*SIGNAL, *NOISE, label]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def npy(path, values, shape, code):
    descr = {"d": "<f8", "q": "<i8"}[code]
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(shape)!r}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack(f"<{len(values)}{code}", *values))


@pytest.fixture
def tables(tmp_path):
    train, test = make_rows(240, 0), make_rows(600, 1)
    for label in ("kind", "price", "big"):
        write(tmp_path / f"{label}.csv", train, label)
        write(tmp_path / f"{label}_test.csv", test, label)
    return tmp_path


def data(label):
    return ["--data", f"{label}.csv", "--label", label, "--test", f"{label}_test.csv"]


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def rows_of(summary):
    return {row["slug"]: row for row in summary["table"]}


def test_one_strength_and_everything_promised_is_there(bilevel, tables):
    done = bilevel("tune", *data("kind"), "--out", "out")
    out = tables / "out"
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in tables.iterdir() if "partial" in path.name] == []
    for words in ("cross-validated loss", "grid search", "random search", "report.html"):
        assert words in done.stdout
    summary = summary_of(out)
    rows = rows_of(summary)
    assert set(rows) == {"learned", "grid", "random"} and summary["status"] == "OK" and summary["warning"] is None
    learned = rows["learned"]
    for other in ("grid", "random"):
        assert learned["cv_loss"] < rows[other]["cv_loss"] + 1e-4
        assert rows[other]["oracle_calls"] >= learned["oracle_calls"]
    for row in rows.values():
        assert row["cv_loss_error"] > 0 and 0.5 < row["cv_accuracy"] < 1 and 0.5 < row["test_accuracy"] < 1
        assert 0 < row["test_loss"] < math.log(3) and row["strengths"][0] > 0
        assert row["machine"]["seconds"] > 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert log[-1]["metrics"]["cv_loss"] < log[0]["metrics"]["cv_loss"]
    strengths = read(out / "strengths.csv")
    assert [row["name"] for row in strengths] == ["all"]
    assert float(strengths[0]["strength"]) == pytest.approx(learned["strengths"][0], rel=1e-5)


def test_groups_of_columns_by_prefix_and_by_file(bilevel, tables):
    bilevel("tune", *data("kind"), "--per", "group", "--groups", "signal_,noise_", "--out", "prefix")
    first = summary_of(tables / "prefix")
    strength = {row["name"]: float(row["strength"]) for row in read(tables / "prefix" / "strengths.csv")}
    assert strength["noise_"] > 3 * strength["signal_"]
    rows = rows_of(first)
    assert rows["learned"]["cv_loss"] < rows["common"]["cv_loss"] and rows["learned"]["test_loss"] < rows["common"]["test_loss"]
    npy(tables / "g.npy", [0] * 4 + [1] * 16, (20,), "q")
    (tables / "g.csv").write_text("column,group\n" + "".join(f"{name},{name.split('_')[0]}\n" for name in SIGNAL + NOISE))
    for name in ("g.npy", "g.csv"):
        bilevel("tune", *data("kind"), "--per", "group", "--groups", name, "--out", f"by {name}")
        assert rows_of(summary_of(tables / f"by {name}"))["learned"]["strengths"] == rows["learned"]["strengths"]


def test_per_class_and_per_feature_with_its_guard(bilevel, tables):
    bilevel("tune", *data("kind"), "--per", "class", "--prior", "none", "--out", "class")
    assert [row["name"] for row in read(tables / "class" / "strengths.csv")] == ["a", "b", "c"]
    bilevel("tune", *data("kind"), "--per", "feature", "--out", "feature")
    summary = summary_of(tables / "feature")
    assert len(summary["widths"]) == 5 and summary["widths"][0]["width"] == 0
    assert summary["common_kept"] == (summary["prior_width"] is None)
    rows = rows_of(summary)
    bilevel("tune", *data("kind"), "--per", "feature", "--prior", "none", "--out", "free")
    free = rows_of(summary_of(tables / "free"))
    assert free["learned"]["cv_loss"] <= rows["learned"]["cv_loss"] + 1e-4
    assert summary_of(tables / "free")["widths"] == []


def test_many_strengths_draw_a_warning(bilevel, tables):
    train = make_rows(60, 3)
    write(tables / "few.csv", train, "kind")
    done = bilevel("tune", "--data", "few.csv", "--label", "kind", "--per", "feature", "--prior", "0.5", "--json")
    summary = json.loads(done.stdout)
    assert summary["status"] == "WARN" and "20 strengths" in summary["warning"] and summary["prior_width"] == 0.5


@pytest.mark.parametrize("loss, label", [("squared", "price"), ("logistic", "big")])
def test_other_losses_and_predict(bilevel, tables, loss, label):
    bilevel("tune", *data(label), "--loss", loss, "--out", "out")
    row = rows_of(summary_of(tables / "out"))["learned"]
    bilevel("predict", "out/model.safetensors", "--data", f"{label}_test.csv", "--out", "p.csv")
    predicted, given = read(tables / "p.csv"), read(tables / f"{label}_test.csv")
    if loss == "squared":
        error = sum((float(p["value0"]) - float(g["price"])) ** 2 for p, g in zip(predicted, given)) / len(given)
        assert error == pytest.approx(row["test_mse"], rel=1e-3)
        assert row["test_loss"] == pytest.approx(error / 2, rel=1e-3)
    else:
        right = sum(p["label"] == g["big"] for p, g in zip(predicted, given)) / len(given)
        assert right == pytest.approx(row["test_accuracy"], abs=1e-9)


def test_the_written_configuration_repeats_the_run(bilevel, tables):
    bilevel("tune", *data("kind"), "--per", "class", "--seed", "3", "--out", "first")
    bilevel("run", "first/config.toml", "--out", "second")
    for name in ("x.npy", "y.npy", "strengths.csv", "config.toml", "model.safetensors"):
        assert (tables / "first" / name).read_bytes() == (tables / "second" / name).read_bytes(), name
    done = bilevel("resume", "second")
    assert "ended already" in done.stderr
    assert bilevel("report", "second").stdout


def test_a_step_size_is_learned(bilevel, tables):
    bilevel("tune", *data("kind"), "--step-size", "--set", "tune.updates=30", "--set", "tune.steps=8", "--out", "out")
    rows = rows_of(summary_of(tables / "out"))
    assert rows["learned"]["step_size"] > 0
    log = [json.loads(line) for line in (tables / "out" / "log.jsonl").read_text().splitlines()]
    assert rows["learned"]["cv_loss"] < log[0]["metrics"]["cv_loss"] - 0.02
    assert read(tables / "out" / "strengths.csv")[-1]["name"] == "(step size)"


def test_a_network_with_a_strength_per_layer(bilevel, tables):
    bilevel("tune", *data("kind"), "--model", "mlp", "--per", "layer", "--set", "problem.hidden=[8]", "--set", "tune.updates=60",
            "--set", "tune.steps=4", "--set", "tune.lr=0.01", "--out", "out")
    rows = rows_of(summary_of(tables / "out"))
    assert len(rows["learned"]["strengths"]) == 2 and rows["learned"]["test_accuracy"] > 0.6
    bilevel("predict", "out/model.safetensors", "--data", "kind_test.csv", "--out", "p.csv")


def test_arrays_with_folds_of_their_own(bilevel, tables):
    rows = make_rows(120, 0)
    npy(tables / "x.npy", [float(row[name]) for row in rows for name in SIGNAL + NOISE], (120, 20), "d")
    npy(tables / "y.npy", ["abc".index(row["kind"]) for row in rows], (120,), "q")
    npy(tables / "folds.npy", [i // 40 for i in range(120)], (120,), "q")
    bilevel("tune", "--data", "x.npy", "--y", "y.npy", "--folds", "folds.npy", "--out", "out")
    assert 'folds = "' in (tables / "out" / "config.toml").read_text()
    npy(tables / "short.npy", [0, 1], (2,), "q")
    done = bilevel("tune", "--data", "x.npy", "--y", "y.npy", "--folds", "short.npy", "--out", "no", code=2)
    assert "folds of 2 samples" in done.stderr and not (tables / "no").exists()


@pytest.mark.parametrize("arguments, words", [
    (["--per", "group"], "needs the groups"),
    (["--per", "group", "--groups", "signal_,nose_"], 'no column begins with "nose_"'),
    (["--groups", "signal_"], "serve per"),
    (["--folds", "1"], "folds = 1"),
    (["--folds", "200"], "too few for 200 folds"),
    (["--prior", "wide"], 'prior = "wide"'),
    (["--loss", "logistic"], "two classes"),
    (["--model", "mlp", "--per", "class"], 'needs model = "linear"'),
    (["--set", "tune.fold=3"], "fold"),
    (["--builtin", "digits"], "demonstration"),
])
def test_misuse_exits_with_2_and_leaves_nothing(bilevel, tables, arguments, words):
    done = bilevel("tune", *data("kind"), *arguments, "--out", "out", code=2)
    assert words in done.stderr, done.stderr
    assert done.stdout == "" and not (tables / "out").exists()


def test_labels_are_asked_for(bilevel, tables):
    done = bilevel("tune", "--data", "kind.csv", "--out", "out", code=2)
    assert "the name of the label column" in done.stderr


def test_a_directory_in_use_is_refused(bilevel, tables):
    (tables / "out").mkdir()
    (tables / "out" / "mine").write_text("x")
    done = bilevel("tune", *data("kind"), "--out", "out", code=2)
    assert "out" in done.stderr and (tables / "out" / "mine").read_text() == "x"


def test_one_bilevel_problem_is_what_doctor_examines(bilevel, tables):
    (tables / "job.toml").write_text('[problem]\ntask = "tune"\n[data]\nbuiltin = "digits"\n')
    assert 'task = "tune"' in bilevel("doctor", "job.toml", code=2).stderr


def test_the_demonstration_can_be_interrupted_and_leaves_nothing(bilevel, tmp_path):
    process = bilevel.start("tune", "--builtin", "digits", "--per", "feature", "--out", "out")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode in (0, 130)  # 0: it was done before
    assert (tmp_path / "out").exists() == (process.returncode == 0), said
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
