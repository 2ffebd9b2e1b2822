"""What docs/results says is what the present rules make of the tables that are kept there."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from polars.testing import assert_frame_equal

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def again() -> ModuleType:
    spec = importlib.util.spec_from_file_location("judge_again", RESULTS / "judge_again.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_study_is_judged_by_the_present_rules(again: ModuleType, tmp_path: Path) -> None:
    folder = shutil.copytree(RESULTS / "seeds-short", tmp_path / "seeds-short")
    again.judge_again(folder)
    before, now = (pl.read_csv(place / "runs.csv") for place in (RESULTS / "seeds-short", folder))
    assert_frame_equal(now, before, rel_tol=1e-3)
    stored, judged = (json.loads((place / "verdicts.json").read_text()) for place in (RESULTS / "seeds-short", folder))
    assert [one["verdict"] for one in judged["claims"]] == [one["verdict"] for one in stored["claims"]]


def test_a_single_run_is_dated_by_the_present_rules(again: ModuleType, tmp_path: Path) -> None:
    folder = shutil.copytree(RESULTS / "three-layers", tmp_path / "three-layers")
    again.date_again(folder)
    stored, dated = (json.loads((place / "formation.json").read_text()) for place in (RESULTS / "three-layers", folder))
    for before, now in zip(stored["order"], dated["order"], strict=True):
        assert (now["stage"], now["step"]) == (before["stage"], before["step"])
        assert now["high"] == pytest.approx(before["high"], rel=1e-3)
