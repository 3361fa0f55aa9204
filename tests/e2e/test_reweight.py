"""`bilevel reweight` and `predict`, as somebody with data of his own meets them."""
import csv
import json
import os
import random
import re
import resource
import signal
import struct
import time

import pytest

NAMES = ["ash", "birch", "cedar"]
FEATURES = ["a", "b", "c", "d", "colour"]
SOURCES = [f"observer {s}" for s in range(5)]


def make_rows(n, seed, noisy=True, random_labels=False):
    """Three clouds in four numbers of very different scales and a colour; observer 4 calls most samples by the next name."""
    draw = random.Random(seed)
    centres = [(0, 0, 0, 0), (2.2, 0, 1, -1), (0, 2.2, -1, 1)]
    rows = []
    for i in range(n):
        label = draw.randrange(3)
        numbers = [f"{draw.gauss(mean, 1) * 10 ** k:.4f}" for k, mean in enumerate(centres[label])]
        colours = ["red", "green", "blue"]
        colour = colours[label] if draw.random() < 0.6 else draw.choice(colours)
        source = i % 5
        given = label
        if random_labels:
            given = draw.randrange(3)
        elif noisy and draw.random() < [0.05, 0.1, 0.1, 0.2, 0.85][source]:
            given = (label + 1) % 3 if source == 4 else draw.randrange(3)
        rows.append({**dict(zip(FEATURES, [*numbers, colour])), "observer": SOURCES[source], "species": NAMES[given]})
    return rows


def write(path, rows, columns=(*FEATURES, "observer", "species")):
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


DATA = ["--data", "noisy.csv", "--label", "species", "--source", "observer"]
TRUSTED = ["--trusted", "trusted.csv"]
FILES = {"config.toml", "log.jsonl", "summary.json", "x.npy", "y.npy", "layout.json", "sources.csv", "cleaned.csv",
         "model.safetensors", "report.html"}


@pytest.fixture
def tables(tmp_path):
    write(tmp_path / "noisy.csv", make_rows(600, 0))
    plain = [*FEATURES, "species"]
    write(tmp_path / "trusted.csv", make_rows(60, 1, noisy=False), plain)
    write(tmp_path / "test.csv", make_rows(500, 2, noisy=False), plain)
    return tmp_path


def summary_of(directory):
    return json.loads((directory / "summary.json").read_text())


def accuracy_of(summary):
    return {row["slug"]: row["accuracy"] for row in summary["table"]}


def test_the_bad_source_is_found_and_everything_promised_is_there(bilevel, tables):
    done = bilevel("reweight", *DATA, *TRUSTED, "--test", "test.csv", "--out", "out")
    out = tables / "out"
    assert {path.name for path in out.iterdir()} == FILES
    assert [path.name for path in tables.iterdir() if "partial" in path.name] == []
    for words in ("learned", "Trust", "observer 4", "report.html"):
        assert words in done.stdout
    assert "learning how far to trust each source" in done.stderr

    summary = summary_of(out)
    accuracy = accuracy_of(summary)
    assert accuracy["learned"] > accuracy["all"] + 0.01 and accuracy["learned"] > accuracy["trusted"]
    assert summary["recommended"] == "learned" and summary["warning"] is None and summary["status"] == "OK"
    assert summary["measured_on"] == "test"
    assert {"all", "trusted", "filtered", "agreement", "learned"} <= set(accuracy) and "oracle" not in accuracy
    assert all(row["standard_error"] is None and row["stationarity"] <= 1e-3 for row in summary["table"])
    assert summary["cost"]["hvps"] > 0 and summary["machine"]["seconds"] > 0 and summary["machine"]["peak_bytes"] > 0

    sources = read(out / "sources.csv")
    assert list(sources[0]) == ["source", "weight", "spread", "final_weight", "samples", "error_rate", "true_error_rate"]
    assert [row["source"] for row in sources] == SOURCES
    weight = {row["source"]: float(row["weight"]) for row in sources}
    assert all(weight["observer 4"] < weight[other] / 3 for other in SOURCES[:4])
    error = {row["source"]: float(row["error_rate"]) for row in sources}
    assert error["observer 4"] > 0.7 and all(error[other] < 0.3 for other in SOURCES[:4])
    assert all(row["samples"] == "120" and row["true_error_rate"] == "" and float(row["spread"]) > 0 for row in sources)

    given, cleaned = read(tables / "noisy.csv"), read(out / "cleaned.csv")
    assert list(cleaned[0]) == [*given[0], "weight", "suspicion", "suggested_label"]
    assert [{key: row[key] for key in given[0]} for row in cleaned] == given, "the input, row by row, in its order"
    assert all(0 <= float(row["suspicion"]) <= 1 and float(row["weight"]) >= 0 for row in cleaned)
    mean = {s: sum(float(r["weight"]) for r in cleaned if r["observer"] == s) / 120 for s in SOURCES}
    assert all(abs(mean[row["source"]] - float(row["final_weight"])) < 1e-4 for row in sources)

    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == list(range(len(log))) and len(log) == summary["steps"] + 1
    assert log[-1]["outer_loss"] < log[0]["outer_loss"]
    layout = json.loads((out / "layout.json").read_text())
    assert layout["x"]["size"] == 5 and layout["y"]["size"] == 3 * 7 + 3  # 4 numbers and 3 colours
    assert (out / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_suggested_labels_are_mostly_the_true_ones(bilevel, tables):
    bilevel("reweight", *DATA, *TRUSTED, "--out", "out")
    rows = read(tables / "out" / "cleaned.csv")
    honest = [row for row in rows if row["observer"] == "observer 0"]
    assert sum(row["suggested_label"] == row["species"] for row in honest) > 0.85 * len(honest)
    bad = [row for row in rows if row["observer"] == "observer 4"]
    back = {NAMES[(k + 1) % 3]: NAMES[k] for k in range(3)}
    assert sum(row["suggested_label"] == back[row["species"]] for row in bad) > 0.6 * len(bad)


def test_the_written_configuration_repeats_the_run(bilevel, tables):
    bilevel("reweight", *DATA, *TRUSTED, "--test", "test.csv", "--seed", "4", "--set", "reweight.steps=6", "--out", "a")
    elsewhere = tables / "elsewhere"
    elsewhere.mkdir()
    bilevel("run", tables / "a" / "config.toml", "--out", elsewhere / "b")
    for name in ("sources.csv", "cleaned.csv", "x.npy", "y.npy", "config.toml", "model.safetensors"):
        assert (tables / "a" / name).read_bytes() == (elsewhere / "b" / name).read_bytes(), name
    a, b = summary_of(tables / "a"), summary_of(elsewhere / "b")
    assert a["table"] == b["table"] and a["recommended"] == b["recommended"] and a["steps"] == b["steps"] <= 6
    assert "seed = 4" in (tables / "a" / "config.toml").read_text()


def test_json_prints_the_summary_and_nothing_else(bilevel, tables):
    done = bilevel("reweight", *DATA, *TRUSTED, "--json", "--out", "out/")  # a slash at the end names the same directory
    assert json.loads(done.stdout) == summary_of(tables / "out")
    assert summary_of(tables / "out")["measured_on"] == "held-back trusted samples"


def test_seeds_give_standard_errors(bilevel, tables):
    write(tables / "all.csv", make_rows(600, 0))
    done = bilevel("reweight", "--data", "all.csv", "--label", "species", "--source", "observer", "--trusted-fraction", "0.15", "--test",
                   "test.csv", "--seeds", "2", "--out", "out")
    summary = summary_of(tables / "out")
    assert summary["seeds"] == 2 and all(row["standard_error"] >= 0 for row in summary["table"])
    assert any(row["standard_error"] > 0 for row in summary["table"])
    assert "±" in done.stdout and "seed 1 (2 of 2)" in done.stderr


def test_a_trusted_fraction_is_taken_from_the_rows(bilevel, tables):
    bilevel("reweight", *DATA, "--trusted-fraction", "0.2", "--test", "test.csv", "--out", "out")
    rows = read(tables / "out" / "cleaned.csv")
    given = read(tables / "noisy.csv")
    assert [{key: row[key] for key in given[0]} for row in rows] == given
    vouched = [row for row in rows if row["suspicion"] == "0.000000" and row["suggested_label"] == row["species"]]
    assert len(vouched) >= 120
    assert len({row["weight"] for row in vouched}) < len(vouched) / 2, "all the trusted rows have one weight"
    assert sum(int(row["samples"]) for row in read(tables / "out" / "sources.csv")) == 480
    assert 'trusted_fraction = 0.2' in (tables / "out" / "config.toml").read_text()


def test_by_sample(bilevel, tables):
    bilevel("reweight", "--data", "noisy.csv", "--label", "species", "--source", "observer", *TRUSTED, "--test", "test.csv", "--by", "sample",
            "--out", "out")
    summary = summary_of(tables / "out")
    accuracy = accuracy_of(summary)
    assert accuracy["learned"] > accuracy["all"]
    assert json.loads((tables / "out" / "layout.json").read_text())["x"]["size"] == 600
    rows = read(tables / "out" / "cleaned.csv")
    doubted = sorted(rows, key=lambda row: -float(row["suspicion"]))[:60]
    assert sum(row["observer"] == "observer 4" for row in doubted) > 30


def test_by_sample_needs_no_source(bilevel, tables):
    columns = [*FEATURES, "species"]
    write(tables / "bare.csv", make_rows(300, 0), columns)
    bilevel("reweight", "--data", "bare.csv", "--label", "species", *TRUSTED, "--by", "sample", "--out", "out")
    assert [row["source"] for row in read(tables / "out" / "sources.csv")] == ["all"]


def test_a_network(bilevel, tables):
    done = bilevel("reweight", *DATA, *TRUSTED, "--test", "test.csv", "--model", "mlp", "--set", "problem.hidden=[32]", "--out", "out")
    summary = summary_of(tables / "out")
    assert accuracy_of(summary)["learned"] > 0.85
    weight = {row["source"]: float(row["weight"]) for row in read(tables / "out" / "sources.csv")}
    assert min(weight, key=weight.get) == "observer 4" and "model mlp" in done.stdout
    predicted = bilevel("predict", "out/model.safetensors", "--data", "test.csv", "--label", "species")
    assert float(re.search(r"accuracy ([\d.]+)", predicted.stderr).group(1)) > 0.85


def test_arrays(bilevel, tables):
    def arrays(stem, rows):
        npy(tables / f"{stem}_x.npy", [float(row[c]) / 10 ** k for row in rows for k, c in enumerate(FEATURES[:4])], (len(rows), 4), "d")
        npy(tables / f"{stem}_y.npy", [NAMES.index(row["species"]) for row in rows], (len(rows),), "q")

    rows = make_rows(500, 0)
    arrays("noisy", rows)
    npy(tables / "source.npy", [SOURCES.index(row["observer"]) for row in rows], (500,), "q")
    arrays("trusted", make_rows(60, 1, noisy=False))
    arrays("test", make_rows(300, 2, noisy=False))
    bilevel("reweight", "--data", "noisy_x.npy", "--y", "noisy_y.npy", "--source", "source.npy", "--trusted", "trusted_x.npy", "--trusted-y",
            "trusted_y.npy", "--test", "test_x.npy", "--test-y", "test_y.npy", "--out", "out")
    accuracy = accuracy_of(summary_of(tables / "out"))
    assert accuracy["learned"] > accuracy["all"]
    weight = {row["source"]: float(row["weight"]) for row in read(tables / "out" / "sources.csv")}
    assert min(weight, key=weight.get) == "4"
    cleaned = read(tables / "out" / "cleaned.csv")
    assert list(cleaned[0]) == ["row", "source", "label", "weight", "suspicion", "suggested_label"]
    assert [(row["row"], row["source"], row["label"]) for row in cleaned] == [
        (str(i), str(SOURCES.index(row["observer"])), str(NAMES.index(row["species"]))) for i, row in enumerate(rows)]
    predicted = bilevel("predict", "out/model.safetensors", "--data", "test_x.npy", "--y", "test_y.npy", "--out", "p.csv")
    assert abs(float(re.search(r"accuracy ([\d.]+)", predicted.stderr).group(1)) - accuracy["learned"]) < 1e-3
    assert [row["row"] for row in read(tables / "p.csv")] == [str(i) for i in range(300)]
    # A random part of arrays: the rows keep their places, the trusted ones too.
    bilevel("reweight", "--data", "noisy_x.npy", "--y", "noisy_y.npy", "--source", "source.npy", "--trusted-fraction", "0.1", "--out", "part")
    assert [row["row"] for row in read(tables / "part" / "cleaned.csv")] == [str(i) for i in range(500)]


def test_a_folder_of_one_file_per_source(bilevel, tables):
    folder = tables / "vendors"
    folder.mkdir()
    rows = make_rows(600, 0)
    for source in SOURCES:
        write(folder / f"{source}.csv", [row for row in rows if row["observer"] == source], [*FEATURES, "species"])
    bilevel("reweight", "--data", "vendors", "--label", "species", *TRUSTED, "--out", "out")
    sources = read(tables / "out" / "sources.csv")
    assert [row["source"] for row in sources] == SOURCES
    assert min(sources, key=lambda row: float(row["weight"]))["source"] == "observer 4"
    assert len(read(tables / "out" / "cleaned.csv")) == 600


def test_random_labels_give_a_warning_and_the_trusted_model(bilevel, tables):
    write(tables / "noisy.csv", make_rows(600, 3, random_labels=True))
    for by in ("source", "sample"):
        done = bilevel("reweight", *DATA, *TRUSTED, "--test", "test.csv", "--by", by, "--out", by)
        summary = summary_of(tables / by)
        assert summary["recommended"] == "trusted" and summary["status"] == "WARN", by
        assert "does not beat the trusted samples alone" in summary["warning"]
        assert "WARN" in done.stdout and "▶ trusted only" in done.stdout
        # The model that was saved is that of the recommended row.
        predicted = bilevel("predict", f"{by}/model.safetensors", "--data", "test.csv", "--label", "species")
        assert f"accuracy {accuracy_of(summary)['trusted']:.4f}" in predicted.stderr


@pytest.fixture
def saturated(tmp_path):
    """Two clouds so far apart that every probability is 0 or 1, no ridge to speak of, and one trusted label that is wrong: the inner
    Hessian is zero, and the linear solve has nothing to go by."""
    draw = random.Random(1)

    def arrays(stem, n, wrong=()):
        labels = [i % 2 for i in range(n)]
        npy(tmp_path / f"{stem}_x.npy", [(2 * label - 1) * 1e4 + draw.gauss(0, 1) for label in labels for _ in range(2)], (n, 2), "d")
        npy(tmp_path / f"{stem}_y.npy", [1 - label if i in wrong else label for i, label in enumerate(labels)], (n,), "q")

    arrays("noisy", 200)
    arrays("trusted", 20, wrong=[3])
    npy(tmp_path / "source.npy", [i // 2 % 2 for i in range(200)], (200,), "q")
    return ["--data", "noisy_x.npy", "--y", "noisy_y.npy", "--source", "source.npy", "--trusted", "trusted_x.npy", "--trusted-y",
            "trusted_y.npy", "--set", "reweight.ridge=1e-60"]


def test_strict_ends_the_job_with_the_first_bad_hypergradient(bilevel, tmp_path, saturated):
    before = sorted(path.name for path in tmp_path.iterdir())
    done = bilevel("reweight", *saturated, "--strict", "--out", "out", code=1)
    assert re.search("Stopped at step 0 of learning trust, because --strict was given: The linear solve .cg. met negative curvature", done.stderr)
    assert done.stdout == "" and sorted(path.name for path in tmp_path.iterdir()) == before
    # The same without --strict comes to its end, and says that it is BAD.
    done = bilevel("reweight", *saturated, "--json", "--out", "out", code=1)
    summary = json.loads(done.stdout)
    assert summary["status"] == "BAD" and "step 0 of learning trust is BAD" in summary["message"]
    assert json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])["status"] == "BAD"
    # `run` on the configuration is the same job.
    assert "because --strict was given" in bilevel("run", "out/config.toml", "--strict", "--out", "again", code=1).stderr
    assert not (tmp_path / "again").exists()


def test_strict_does_not_stop_a_job_that_is_good(bilevel, tables):
    bilevel("reweight", *DATA, *TRUSTED, "--strict", "--out", "out")
    assert summary_of(tables / "out")["status"] == "OK"


def test_without_trusted_rows_it_says_which_to_label(bilevel, tables):
    before = {path.name for path in tables.iterdir()}
    done = bilevel("reweight", *DATA, "--out", "out", code=1)
    assert done.stdout == ""
    assert re.search(r"200 rows in out.to_label.csv", done.stderr) and "--trusted" in done.stderr
    assert {path.name for path in tables.iterdir()} == before | {"out.to_label.csv"}
    asked, given = read(tables / "out.to_label.csv"), read(tables / "noisy.csv")
    assert list(asked[0]) == ["row", "source", "label", "doubt", "reason"] and len(asked) == 200
    for row in asked:
        original = given[int(row["row"])]
        assert (row["source"], row["label"]) == (original["observer"], original["species"])
    assert len({row["row"] for row in asked}) == 200
    for source in SOURCES:
        reasons = [row["reason"] for row in asked if row["source"] == source]
        assert reasons.count("doubted") == 20 and reasons.count("random") == 20
    (tables / "out.to_label.csv").unlink()
    done = bilevel("reweight", *DATA, "--json", code=1)
    message = json.loads(done.stdout)
    assert message["rows_to_label"] == 200 and (tables / message["file"]).exists()


def test_a_directory_in_use_is_refused_and_an_empty_one_taken(bilevel, tables):
    (tables / "empty").mkdir()
    bilevel("reweight", *DATA, *TRUSTED, "--out", "empty")
    assert {path.name for path in (tables / "empty").iterdir()} == FILES
    before = {path.name: path.read_bytes() for path in (tables / "empty").iterdir()}
    assert "holds another run" in bilevel("reweight", *DATA, *TRUSTED, "--out", "empty", code=2).stderr
    assert "has ended already" in bilevel("resume", "empty").stderr
    assert {path.name: path.read_bytes() for path in (tables / "empty").iterdir()} == before
    (tables / "mine").mkdir()
    (tables / "mine" / "thesis.tex").write_text("precious")
    assert "not empty" in bilevel("reweight", *DATA, *TRUSTED, "--out", "mine", code=2).stderr
    assert os.listdir(tables / "mine") == ["thesis.tex"]
    done = bilevel("reweight", *DATA, *TRUSTED, "--out", "/proc/nowhere/out", code=2)
    assert "/proc/nowhere/out" in done.stderr and "training" not in done.stderr, "said before the work, not after it"


def test_a_full_disk_leaves_nothing(bilevel, tables):
    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    before = sorted(path.name for path in tables.iterdir())
    done = bilevel("reweight", *DATA, *TRUSTED, "--out", "out", code=1, preexec_fn=small_files)
    assert "could not be written" in done.stderr and "too large" in done.stderr
    assert sorted(path.name for path in tables.iterdir()) == before


def test_report_shows_the_table(bilevel, tables):
    bilevel("reweight", *DATA, *TRUSTED, "--out", "out")
    page = (tables / "out" / "report.html").read_bytes()
    assert "agreement" in bilevel("report", "out").stdout
    assert (tables / "out" / "report.html").read_bytes() == page


def break_rows(change):
    def make(tables):
        rows = make_rows(600, 0)
        change(rows)
        write(tables / "noisy.csv", rows)
    return make


def replace_text(name, before, after):
    def make(tables):
        text = (tables / name).read_text()
        assert before in text
        (tables / name).write_text(text.replace(before, after, 1))
    return make


def keep_lines(name, count):
    def make(tables):
        (tables / name).write_text("".join((tables / name).read_text().splitlines(keepends=True)[:count]))
    return make


def set_all(column, value):
    def change(rows):
        for row in rows:
            row[column] = value
    return change


def nothing(_):
    pass


BAD = {
    "missing file": (nothing, ["--data", "none.csv", "--label", "species", "--source", "observer", *TRUSTED], "none.csv.*No such file"),
    "missing trusted file": (nothing, [*DATA, "--trusted", "none.csv"], "none.csv.*No such file"),
    "missing test file": (nothing, [*DATA, *TRUSTED, "--test", "none.csv"], "none.csv.*No such file"),
    "NaN": (break_rows(lambda rows: rows[7].update(b="nan")), [*DATA, *TRUSTED], r"noisy.csv:9: column \"b\""),
    "infinite": (break_rows(lambda rows: rows[7].update(b="inf")), [*DATA, *TRUSTED], r"noisy.csv:9: column \"b\""),
    "missing value": (break_rows(lambda rows: rows[7].update(b="")), [*DATA, *TRUSTED], r"noisy.csv:9: column \"b\".*missing"),
    "missing label": (break_rows(lambda rows: rows[7].update(species="")), [*DATA, *TRUSTED], r"noisy.csv:9: column \"species\" is empty"),
    "missing source": (break_rows(lambda rows: rows[7].update(observer="")), [*DATA, *TRUSTED], r"noisy.csv:9: column \"observer\" is empty"),
    "text among the trusted numbers": (lambda tables: write(tables / "trusted.csv", [{**row, "b": "tall"} for row in make_rows(60, 1)]),
                                       [*DATA, *TRUSTED], r'trusted.csv:2: column "b" should be a number.*tall'),
    "ragged csv": (replace_text("noisy.csv", "\n", "\n1,2,3\n"), [*DATA, *TRUSTED], "noisy.csv:2"),
    "no rows": (keep_lines("noisy.csv", 1), [*DATA, *TRUSTED], "noisy.csv.*no rows|noisy.csv has no samples"),
    "an empty file": (keep_lines("noisy.csv", 0), [*DATA, *TRUSTED], "noisy.csv"),
    "unknown label column": (nothing, ["--data", "noisy.csv", "--label", "specie", "--source", "observer", *TRUSTED], 'Did you mean "species"'),
    "unknown source column": (nothing, ["--data", "noisy.csv", "--label", "species", "--source", "observr", *TRUSTED], 'Did you mean "observer"'),
    "no label column": (nothing, ["--data", "noisy.csv", "--source", "observer", *TRUSTED], "label: missing"),
    "no source": (nothing, ["--data", "noisy.csv", "--label", "species", *TRUSTED], "--source.*--by sample"),
    "label and source alike": (nothing, ["--data", "noisy.csv", "--label", "species", "--source", "species", *TRUSTED], "same column"),
    "a trusted label that is not known": (replace_text("trusted.csv", "cedar", "cedr"), [*DATA, *TRUSTED], 'cedr.*Did you mean "cedar"'),
    "a trusted column that is missing": (replace_text("trusted.csv", "colour", "color"), [*DATA, *TRUSTED], 'trusted.csv has no column "colour"'),
    "a trusted file without labels": (replace_text("trusted.csv", "species", "kind"), [*DATA, *TRUSTED], 'no column "species"'),
    "too few trusted": (keep_lines("trusted.csv", 10), [*DATA, *TRUSTED], "9 trusted samples are too few: 10"),
    "fraction 0": (nothing, [*DATA, "--trusted-fraction", "0"], "between 0 and 1"),
    "fraction 1": (nothing, [*DATA, "--trusted-fraction", "1"], "between 0 and 1"),
    "negative fraction": (nothing, [*DATA, "--trusted-fraction", "-0.1"], "between 0 and 1"),
    "fraction nan": (nothing, [*DATA, "--trusted-fraction", "nan"], "between 0 and 1"),
    "no number as fraction": (nothing, [*DATA, "--trusted-fraction", "some"], "expected a number"),
    "too small a fraction": (nothing, [*DATA, "--trusted-fraction", "0.01"], "6 trusted samples are too few"),
    "too large a fraction": (nothing, [*DATA, "--trusted-fraction", "0.999"], "nothing is left"),
    "fraction and file": (nothing, [*DATA, *TRUSTED, "--trusted-fraction", "0.1"], "give one of the two"),
    "a single class": (lambda tables: [break_rows(set_all("species", "ash"))(tables),
                                       write(tables / "trusted.csv", [{**row, "species": "ash"} for row in make_rows(60, 1)])],
                       [*DATA, *TRUSTED], "one class"),
    "an identifier as a feature": (break_rows(lambda rows: [row.update(colour=f"id{i}") for i, row in enumerate(rows)]), [*DATA, *TRUSTED],
                                   'column "colour".*identifiers'),
    "unknown model": (nothing, [*DATA, *TRUSTED, "--model", "tree"], "tree"),
    "a cnn on a table": (nothing, [*DATA, *TRUSTED, "--model", "cnn"], "needs images"),
    "unknown by": (nothing, [*DATA, *TRUSTED, "--by", "column"], "column"),
    "unknown key": (nothing, [*DATA, *TRUSTED, "--set", "reweight.stepz=3"], 'Did you mean "steps"'),
    "unknown table": (nothing, [*DATA, *TRUSTED, "--set", "rewight.steps=3"], 'Did you mean "reweight"'),
    "wrong type": (nothing, [*DATA, *TRUSTED, "--set", "reweight.steps=many"], "steps.*whole number"),
    "no steps": (nothing, [*DATA, *TRUSTED, "--set", "reweight.steps=0"], "steps = 0"),
    "negative learning rate": (nothing, [*DATA, *TRUSTED, "--set", "reweight.lr=-1"], "lr = -1"),
    "no seeds": (nothing, [*DATA, *TRUSTED, "--seeds", "0"], "seeds"),
    "half a seed": (nothing, [*DATA, *TRUSTED, "--seeds", "1.5"], "seeds.*whole number"),
    "negative seed": (nothing, [*DATA, *TRUSTED, "--seed", "-1"], "seed"),
    "no threads": (nothing, [*DATA, *TRUSTED, "--threads", "0"], "threads"),
    "options without data": (nothing, ["--label", "species"], "--data, which is missing"),
    "a simulation of given data": (nothing, [*DATA, *TRUSTED, "--simulate", "mixed"], "--simulate"),
    "labels of arrays for a table": (nothing, [*DATA, *TRUSTED, "--y", "y.npy"], "unknown key|y is for arrays"),
    "an empty folder": (lambda tables: (tables / "vendors").mkdir(), ["--data", "vendors", "--label", "species", *TRUSTED], "no .csv files"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_exits_with_2_and_leaves_nothing(bilevel, tables, name):
    make, arguments, message = BAD[name]
    make(tables)
    before = sorted(path.name for path in tables.iterdir())
    done = bilevel("reweight", *arguments, "--out", "out", code=2)
    assert re.search(message, done.stderr, re.S), done.stderr
    assert done.stdout == "" and "what():" not in done.stderr
    assert sorted(path.name for path in tables.iterdir()) == before


def test_bad_arrays(bilevel, tables):
    npy(tables / "x.npy", [0.1 * k for k in range(80)], (40, 2), "d")
    npy(tables / "y.npy", [k % 2 for k in range(40)], (40,), "q")
    npy(tables / "s.npy", [k % 4 for k in range(40)], (40,), "q")
    npy(tables / "gap.npy", [(k % 2) * 2 for k in range(40)], (40,), "q")
    npy(tables / "short.npy", [0] * 39, (39,), "q")
    npy(tables / "negative.npy", [-1] + [0] * 39, (40,), "q")
    npy(tables / "nan.npy", [float("nan")] + [0.5] * 79, (40, 2), "d")
    arrays = {"--data": "x.npy", "--y": "y.npy", "--source": "s.npy", "--trusted-fraction": "0.5"}
    for change, message in [({"--y": "short.npy"}, "short.npy has 39 labels.*40"), ({"--source": "short.npy"}, "39 sources"),
                            ({"--source": "gap.npy"}, "source 1 has no samples"), ({"--y": "negative.npy"}, "label -1 is out of range"),
                            ({"--data": "nan.npy"}, "row 0, column 0 is NaN"), ({"--y": "none.npy"}, "none.npy"), ({"--y": ""}, "y: missing")]:
        arguments = [word for pair in {**arrays, **change}.items() if pair[1] for word in pair]
        done = bilevel("reweight", *arguments, "--out", "out", code=2)
        assert re.search(message, done.stderr), done.stderr
        assert not (tables / "out").exists()


@pytest.fixture
def model(bilevel, tables):
    bilevel("reweight", *DATA, *TRUSTED, "--test", "test.csv", "--out", "out")
    return tables / "out" / "model.safetensors"


def test_predict(bilevel, tables, model):
    done = bilevel("predict", model, "--data", "test.csv", "--label", "species")
    learned = accuracy_of(summary_of(tables / "out"))["learned"]
    assert f"accuracy {learned:.4f}" in done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert list(rows[0]) == ["row", "label", "p(ash)", "p(birch)", "p(cedar)"] and len(rows) == 500
    right = 0
    for i, (row, truth) in enumerate(zip(rows, read(tables / "test.csv"))):
        probabilities = {name: float(row[f"p({name})"]) for name in NAMES}
        assert row["row"] == str(i) and abs(sum(probabilities.values()) - 1) < 1e-4
        assert row["label"] == max(probabilities, key=probabilities.get)
        right += row["label"] == truth["species"]
    assert abs(right / 500 - learned) < 1e-6


def test_predict_does_not_mind_the_order_of_columns_nor_more_of_them(bilevel, tables, model):
    straight = bilevel("predict", model, "--data", "test.csv").stdout
    rows = [{**row, "note": "n/a"} for row in read(tables / "test.csv")]
    write(tables / "turned.csv", rows, ["note", "species", *reversed(FEATURES)])
    assert bilevel("predict", model, "--data", "turned.csv").stdout == straight
    done = bilevel("predict", model, "--data", "turned.csv", "--out", "p.csv")
    assert done.stdout == "" and "500 predictions in p.csv" in done.stderr
    assert (tables / "p.csv").read_text() == straight


def test_predict_takes_a_category_that_training_lacked(bilevel, tables, model):
    rows = read(tables / "test.csv")
    rows[3]["colour"] = "violet"
    write(tables / "new.csv", rows, FEATURES)
    done = bilevel("predict", model, "--data", "new.csv")
    assert re.search(r'"colour".*1 of 500 rows.*violet', done.stderr)
    before = bilevel("predict", model, "--data", "test.csv").stdout.splitlines()
    after = done.stdout.splitlines()
    assert [i for i in range(len(before)) if before[i] != after[i]] == [4]


def test_predict_refuses_what_does_not_fit(bilevel, tables, model):
    rows = read(tables / "test.csv")
    write(tables / "less.csv", rows, ["a", "b", "d", "colour"])
    assert 'less.csv has no column "c"' in bilevel("predict", model, "--data", "less.csv", "--out", "p.csv", code=2).stderr
    write(tables / "text.csv", [{**row, "b": "tall"} for row in rows], FEATURES)
    assert re.search(r'text.csv:2: column "b".*number.*tall', bilevel("predict", model, "--data", "text.csv", code=2).stderr)
    assert "none.csv" in bilevel("predict", model, "--data", "none.csv", code=2).stderr
    assert "test.csv" in bilevel("predict", "test.csv", "--data", "test.csv", code=2).stderr  # no model
    assert "no column" in bilevel("predict", model, "--data", "test.csv", "--label", "kind", code=2).stderr
    npy(tables / "x.npy", [0.0] * 8, (2, 4), "d")
    assert "table" in bilevel("predict", model, "--data", "x.npy", code=2).stderr
    before = (tables / "test.csv").read_bytes()
    assert "overwrite" in bilevel("predict", model, "--data", "test.csv", "--out", "test.csv", code=2).stderr
    assert (tables / "test.csv").read_bytes() == before and not (tables / "p.csv").exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_job_leaves_nothing(bilevel, tables, kind):
    # Small moments of a long job: the demonstration on digits with many seeds.
    draw = random.Random(int(kind))
    for _ in range(3):
        process = bilevel.start("reweight", "--builtin", "digits", "--seeds", "50", "--out", "out", start_new_session=True)
        for line in process.stderr:  # it works
            if "learning" in line:
                break
        time.sleep(draw.uniform(0.0, 1.0))
        assert process.poll() is None
        process.send_signal(kind)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == (-9 if kind == signal.SIGKILL else 130), errors
        if kind != signal.SIGKILL:
            assert "nothing was written" in errors
        assert not (tables / "out").exists() and not [path for path in tables.iterdir() if "partial" in path.name]
