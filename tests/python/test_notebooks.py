"""The notebooks of docs/ run from beginning to end, on a copy; what they claim is asserted in their last cells."""

import pathlib

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])), "no picture"
    assert all(cell["execution_count"] for cell in notebook.cells if cell.cell_type == "code"), "stored without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


def test_all_are_listed():
    page = (FOLDER.parent / "notebooks.md").read_text()
    assert len(NOTEBOOKS) >= 6
    for path in NOTEBOOKS:
        assert f"(notebooks/{path.name})" in page
