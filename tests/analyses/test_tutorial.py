"""The tutorial notebook runs from top to bottom, and is committed as it came out: executed, and small."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat and nbclient; install copyscope[dev]")
nbclient = pytest.importorskip("nbclient", reason="needs nbformat and nbclient; install copyscope[dev]")

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def test_it_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPYSCOPE_TUTORIAL_STEPS", "12")
    book = nbformat.read(TUTORIAL, as_version=4)
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()  # raises where a cell does
    printed = "".join(out.get("text", "") for cell in book.cells for out in cell.get("outputs", []))
    assert "checkpoints; the last has 3 layers of 4 heads" in printed
    assert "guessing" in printed
    shown = "".join(out.get("data", {}).get("text/plain", "") for cell in book.cells for out in cell.get("outputs", []))
    assert "948.716" in shown  # the step at which L3H2 of the demo's run formed, from the committed tables


def test_its_saved_outputs_are_there_and_small() -> None:
    book = nbformat.read(TUTORIAL, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]
    assert not [out for out in outputs if "application/vnd.jupyter.widget-view+json" in out.get("data", {})]  # bars
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert TUTORIAL.stat().st_size < 200_000
