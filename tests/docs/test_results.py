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

from copyscope.analyses.studies import OF_FORKS
from copyscope.analyses.studies.forked import SCHEMA
from copyscope.analyses.studies.study import write_forks

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


@pytest.mark.parametrize("folder", [".", "tasks"])
def test_the_page_is_what_the_tables_say(folder: str) -> None:
    assert (RESULTS / folder / "README.md").read_text() == script(f"{folder}/write_readme").write_readme()


def test_the_readme_repeats_the_page() -> None:
    """Each interval of the front page's table of claims stands on the page of results, behind the same number."""
    front = (RESULTS.parents[1] / "README.md").read_text().split("## Results")[1].split("\n## ")[0]
    shown = re.findall(r"\S?\d[\d.]* \[[^\]]+\](?!\()", front)
    page = (RESULTS / "README.md").read_text()
    assert len(shown) >= 3
    assert [one for one in shown if one not in page] == []
    count = r"\d+ runs and \d+ forks"
    assert re.search(rf"in ({count})", front)[1] == re.search(rf"({count}) in all", page)[1]  # type: ignore[index]


def test_the_readme_counts_the_runs_in_order() -> None:
    stages = ["previous-token head", "induction head", "copying"]
    tables = [pl.read_csv(path, infer_schema_length=None) for path in sorted(RESULTS.glob("*/runs.csv"))]
    numbers = [pl.col(stage).cast(pl.Float64) for stage in stages]
    runs = pl.concat([table.select("run_id", *numbers) for table in tables if "copying" in table.columns])
    formed = runs.unique("run_id").drop_nulls()
    assert (
        formed.filter(pl.col(stages[0]) < pl.col(stages[1]), pl.col(stages[1]) < pl.col(stages[2])).height
        == formed.height
    )
    assert f"in all {formed.height} runs that formed all three" in (RESULTS.parents[1] / "README.md").read_text()


def test_a_study_is_judged_by_the_present_rules(again: ModuleType, tmp_path: Path) -> None:
    folder = shutil.copytree(RESULTS / "seeds-short", tmp_path / "seeds-short")
    again.judge_again(folder)
    before, now = (pl.read_csv(place / "runs.csv") for place in (RESULTS / "seeds-short", folder))
    assert_frame_equal(now, before, rel_tol=1e-3)
    stored, judged = (json.loads((place / "verdicts.json").read_text()) for place in (RESULTS / "seeds-short", folder))
    assert [one["verdict"] for one in judged["claims"]] == [one["verdict"] for one in stored["claims"]]


@pytest.mark.parametrize("study", OF_FORKS)
def test_a_study_of_forks_is_judged_again_from_its_forks(again: ModuleType, tmp_path: Path, study: str) -> None:
    """What is not in the study's table, a fork that has not formed anything and why one failed, is left as it is."""
    rows = [
        {"parent": f"seed={seed}", "parent_id": str(seed), "run_id": f"{seed} {change} {share} {order}"}
        | {"change": change, "share": share, "at": round(1000 * share), "order": order, "state": "finished"}
        | {"step": step, "low": step, "high": step, "head": "L1H0", "last_step": 3000}
        for seed in range(3)
        for change, share, order, step in [
            ("parent", 0.0, 0, 1000.0),
            *(
                (change, share, order, (1000 + 300 * moved) * (1 + (order - 2) * (0.9 - share)))
                for change, moved in (("other order", 0), ("a change", 1))
                for share in (0.2, 0.8)
                for order in (1, 2, 3)
            ),
        ]
    ]
    rows[-1] |= {"step": None, "low": None, "high": None, "head": None}
    rows.append(rows[-2] | {"run_id": "lost", "order": 4, "state": "failed", "reason": "stopped, by itself"})
    folder = tmp_path / study
    lines = write_forks(study, pl.DataFrame(rows, schema=SCHEMA), folder).lines()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in ("verdicts.txt", "verdicts.json", "figure.png", f"{study}.csv"):
        (folder / name).unlink()
    assert again.judge_again(folder) == lines
    for name in ("runs.csv", "verdicts.txt", f"{study}.csv"):
        assert (folder / name).read_bytes() == before[name]
    assert (folder / "figure.png").is_file()
    assert json.loads((folder / "verdicts.json").read_text())["claims"]


def test_a_single_run_is_dated_by_the_present_rules(again: ModuleType, tmp_path: Path) -> None:
    folder = shutil.copytree(RESULTS / "three-layers", tmp_path / "three-layers")
    again.date_again(folder)
    stored, dated = (json.loads((place / "formation.json").read_text()) for place in (RESULTS / "three-layers", folder))
    for before, now in zip(stored["order"], dated["order"], strict=True):
        assert (now["stage"], now["step"]) == (before["stage"], before["step"])
        assert now["high"] == pytest.approx(before["high"], rel=1e-3)


def test_kept_files_do_not_say_where_on_a_disk_they_were_made() -> None:
    kept = [path for kind in ("html", "json", "csv", "toml", "txt") for path in RESULTS.parent.rglob(f"*.{kind}")]
    assert RESULTS.parent / "demo.html" in kept
    absolute = re.compile(r"(?<![\w.~<-])/(?:home|Users|root|work|tmp|private|mnt|scratch|opt)/[\w.-]+")
    found = {path.name: absolute.findall(path.read_text("utf-8")) for path in kept if "site" not in path.parts}
    assert {name: places for name, places in found.items() if places} == {}
