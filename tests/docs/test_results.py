"""What docs/results says is what the present rules make of the tables that are kept there."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from polars.testing import assert_frame_equal

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RESULTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def again() -> ModuleType:
    return script("judge_again")


def test_the_page_is_what_the_tables_say() -> None:
    assert (RESULTS / "README.md").read_text() == script("write_readme").write_readme()


def test_the_readme_repeats_the_page() -> None:
    """Each interval of the front page's table of claims stands on the page of results, behind the same number."""
    front = (RESULTS.parents[1] / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    shown = re.findall(r"\S?\d[\d.]* \[[^\]]+\](?!\()", front)
    page = (RESULTS / "README.md").read_text()
    assert len(shown) >= 3
    assert [one for one in shown if one not in page] == []
    assert re.search(r"in (\d+) runs", front)[1] == re.search(r"(\d+) runs in all", page)[1]  # type: ignore[index]


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
