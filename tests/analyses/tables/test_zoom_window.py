"""The steps to zoom into come from what formed."""

import json
from pathlib import Path

import pytest

from copyscope.analyses.tables.zoom_window import steps_around
from copyscope.training.errors import InputError


def row(low: int | None, step: int | None, layer: int | None = None, head: int | None = None, stage: str = "") -> dict:
    return {"bracket_low": low, "step": step, "layer": layer, "head": head, "stage": stage}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    formation = {
        "heads": {
            "previous_token": [row(80, 100, 1, 0), row(300, 400, 2, 1), row(None, None, 0, 0)],
            "prefix_matching_sum": [row(200, 250, 2, 1), row(None, None, 1, 0), row(None, None, 0, 0)],
        },
        "order": [
            row(80, 100, stage="previous-token head"),
            row(200, 250, stage="induction head"),
            row(250, 320, stage="copying (loss)"),
            row(None, None, stage="copying (accuracy)"),
        ],
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "formation.json").write_text(json.dumps(formation))
    return tmp_path


def test_brackets_of_stages_and_heads(run: Path) -> None:
    wanted = {
        "formation": (80, 320),
        "previous-token": (80, 100),
        "induction": (200, 250),
        "copying": (250, 320),
        "L1H0": (80, 100),
        "L2H1": (200, 250),
    }
    assert {what: steps_around(run, what) for what in wanted} == wanted


@pytest.mark.parametrize(
    ("what", "says"), [("L0H0", "did not form"), ("L9H0", "no such head"), ("grokking", "give formation")]
)
def test_what_cannot_be_zoomed_into_is_one_clear_line(run: Path, what: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        steps_around(run, what)


def test_a_missing_or_damaged_map_is_named(run: Path) -> None:
    path = run / "results" / "formation.json"
    path.write_text("{")
    with pytest.raises(InputError, match=r"formation\.json: damaged"):
        steps_around(run, "copying")
    path.unlink()
    with pytest.raises(InputError, match="copyscope map"):
        steps_around(run, "copying")
