"""Bars, tables and pictures: with the packages that draw them, and without."""

import sys

import pytest
import torch

import bilevel
from problems import Logistic

OPTIONS = {"steps": 3, "inner": {"lr": 0.1, "steps": 5}}


def run(**more):
    p = Logistic()
    return bilevel.minimize(p.inner, p.outer, p.x, p.y, metrics=lambda x, y: {"norm": y.norm()}, **OPTIONS, **more)


@pytest.fixture
def without(monkeypatch):
    def block(package):
        for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    return block


def test_the_history_is_a_data_frame():
    pandas = pytest.importorskip("pandas")
    history = run(progress=False).history
    assert isinstance(history, pandas.DataFrame) and len(history) == 4
    assert list(history["step"]) == [0, 1, 2, 3]
    assert (history[["norm", "outer_loss", "hypergradient_norm", "seconds"]].iloc[1:] > 0).all().all()
    assert history["outer_loss"].is_monotonic_decreasing


def test_without_pandas_the_history_is_a_list(without):
    without("pandas")
    history = run(progress=False).history
    assert [row["step"] for row in history] == [0, 1, 2, 3] and all(row["norm"] >= 0 for row in history)


def test_pictures():
    pytest.importorskip("matplotlib").use("Agg")
    losses, norms = run(progress=False).plot().axes
    assert [len(line.get_xdata()) for line in losses.lines] == [4, 4] and norms.get_yscale() == "log"


def test_without_matplotlib_a_picture_is_refused_in_words(without):
    done = run(progress=False)
    without("matplotlib")
    with pytest.raises(ImportError, match=r"Run\.plot draws with matplotlib.*pip install matplotlib"):
        done.plot()


def test_a_bar_goes_to_the_end(monkeypatch):
    tqdm = pytest.importorskip("tqdm.auto")
    bars = []

    class Watched(tqdm.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "delay": 0})
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Watched)
    run()
    p = Logistic()
    bilevel.plan(p.inner, p.outer, p.x, p.y, **OPTIONS)
    whole, stages = bars
    assert (whole.n, whole.total) == (3, 3) and "norm" in whole.postfix
    assert stages.desc.startswith("plan: as configured") and stages.total == 1
    assert whole.disable and stages.disable  # closed


def test_without_tqdm_there_is_no_bar(without, capsys):
    without("tqdm")
    assert run().outcome == "done"
    assert capsys.readouterr() == ("", "")


def test_in_a_notebook(tmp_path):
    """The bar is shown, and nobody is asked to install anything for it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("tqdm")
    code = """
import time, torch, bilevel
slow = lambda record: time.sleep(0.3)
inner, outer = lambda x, y: (y - 1).square().sum() + x.exp() * y.square().sum(), lambda x, y: (y - 0.5).square().sum()
run = bilevel.minimize(inner, outer, torch.zeros(1), torch.zeros(2), steps=12, callback=slow)
run.history
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = notebook.cells[0].outputs
    shown = "".join(str(output) for output in outputs)
    assert "bilevel" in shown and "12" in shown and "Warning" not in shown
    assert any("text/html" in output.get("data", {}) for output in outputs) or "outer_loss" in shown  # the table


def test_a_saved_run_shows_itself_too(tmp_path):
    run(progress=False, out=tmp_path / "run")
    saved = bilevel.load_run(tmp_path / "run")
    assert len(saved.history) == 4
    assert torch.equal(saved.x["x"], saved.x["x"].double())
