"""The notebook of examples/ runs from its first cell to its last; what it ends with is what was trained."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

EXAMPLES = Path(__file__).parents[1] / "examples"
#: what the notebook says -> what a run of seconds says
SHORT = {
    "STEPS = 300 ": "STEPS = 10 ", "SAMPLES = 20_000 ": "SAMPLES = 160 ", "BATCH = 128": "BATCH = 16",
    "--val-samples 500": "--val-samples 40",
}


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_quickstart_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in {**SHORT, 'Path("quickstart")': f"Path({str(tmp_path)!r})"}.items():
        (cell,) = [cell for cell in code if old in cell.source]
        cell.source = cell.source.replace(old, new)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    pictures = [cell for cell in code if any("image/png" in o.get("data", {}) for o in cell.outputs)]
    assert len(pictures) == 3  # contact sheet, scores over epochs, scores with intervals
    (evaluated,) = [cell for cell in code if "triplet-evaluate run" in cell.source]
    assert "triplet: encoded" in printed(evaluated), printed(evaluated)
    for loss in ("clip", "triplet"):
        assert (tmp_path / "logs" / loss / "checkpoints" / "epoch_5.pt").is_file()
        assert (tmp_path / "results" / loss / "tripletdata.json").is_file()
    assert "tripletdata group" in printed(pictures[-1]), printed(pictures[-1])


def test_the_committed_outputs_are_small_and_whole():
    path = EXAMPLES / "quickstart.ipynb"
    assert path.stat().st_size < 400_000
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.outputs or "%cd" in cell.source for cell in code)
