"""`tasks` over a series: the table, what is stored and when it is computed again, the command."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import polars as pl
import pytest
import torch
from handmade import induction_model
from run_command import copyscope
from tiny_series import add_checkpoint

from copyscope.analyses.statistics.grades import GRADES
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_failed
from copyscope.analyses.tables.stored import computed_with
from copyscope.analyses.tables.task_heads import graded
from copyscope.analyses.tables.tasks import TaskAsker, tasks
from copyscope.interp.tasks.answers import TaskResult
from copyscope.interp.tasks.questions import Source
from copyscope.interp.tasks.registry import draw_tasks


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    for step in (1, 8, 64, 512):
        add_checkpoint(folder, step)
    return folder


def path(series: Path, step: int) -> Path:
    return series / f"results/tasks/step{step:08}.parquet"


def test_the_table_and_what_is_computed_again(series: Path) -> None:
    table = tasks(series, ["recall", "prefix"], prompts=8)
    assert table.columns == ["run", "step", "tokens", "task", "variant", "measure", "value"]
    assert table["step"].unique().sort().to_list() == [1, 8, 64, 512]
    variants = table.select("task", "variant").unique().sort("task", "variant").rows()
    assert variants == [*(("prefix", f"order={n}") for n in (1, 2, 3)), ("recall", "pairs=16"),
                        ("recall", "pairs=4"), ("recall", "pairs=8")]  # fmt: skip
    assert set(table["measure"]) == {
        f.name for f in fields(TaskResult) if f.name not in ("task", "variant") and "kl_" not in f.name
    }
    facts = computed_with(path(series, 8))
    assert facts["tasks"] == ["recall", "prefix"]
    assert facts["prompts"] == 8
    before = {step: path(series, step).stat().st_ino for step in (1, 8, 64, 512)}
    assert tasks(series, ["recall", "prefix"], prompts=8).equals(table)
    assert {step: path(series, step).stat().st_ino for step in before} == before
    path(series, 64).unlink()
    assert tasks(series, ["recall", "prefix"], prompts=8).equals(table)  # the same prompts
    assert path(series, 8).stat().st_ino == before[8]
    other = tasks(series, ["recall", "prefix"], [8], prompts=9)
    assert path(series, 8).stat().st_ino != before[8]
    assert not other.filter(step=8).equals(table.filter(step=8))


def test_a_worker_asks_the_same() -> None:
    asker = TaskAsker(["recall"], seeds=[3], prompts=16)
    assert TaskAsker.from_json(json.loads(json.dumps(asker.arguments))).arguments == asker.arguments


def test_the_command(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--tasks", "recall,labels", "--prompts", "8", "--quiet")
    assert copyscope(monkeypatch, "tasks", str(series), *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == [
        "recall pairs=4", "recall pairs=8", "recall pairs=16", "labels shots=1",
    ]  # fmt: skip
    assert all("formed" in line or "began" in line or "start" in line for line in lines[:-1])
    assert copyscope(monkeypatch, "tasks", str(series), *options, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {row["step"] for row in printed["tasks"]} == {512}
    assert len(printed["formation"]) == 4
    shutil.copytree(series, tmp_path / "bad")
    (tmp_path / "bad/step8/model.safetensors").unlink()
    assert copyscope(monkeypatch, "tasks", str(tmp_path / "bad"), "--tasks", "recall", "--prompts", "9", "--quiet") == 1
    assert list(read_failed(open_run(tmp_path / "bad"), "tasks")) == [8]


@pytest.mark.parametrize(
    ("option", "says"),
    [("recal", "did you mean 'recall'?"), ("markov", "task markov: needs 98 positions, and n_ctx is 64")],
)
def test_bad_input_is_one_line(
    series: Path, option: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copyscope(monkeypatch, "tasks", str(series), "--tasks", option, "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_an_induction_head_is_primary_for_what_it_does() -> None:
    source = Source(vocab=torch.arange(1, 400), n_ctx=128, bos_id=0, n_prompts=32)
    drawn = [group for some in draw_tasks(source, ["recall", "prefix"]).values() for group in some]
    controls = {"layer": [[(1, 1)]], "random": [[(1, 1)], [(0, 1)]]}
    table = graded(induction_model(), drawn, [(1, 0)], controls)
    grades = dict(table.select("variant", "grade").iter_rows())
    assert {name: grades[name] for name in ("pairs=4", "order=1", "order=2")} == {
        "pairs=4": "primary", "order=1": "primary", "order=2": "nothing to see",
    }  # fmt: skip
    assert table["heads"].unique().to_list() == ["L1H0"]


def test_grades_are_stored(series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("tasks", str(series), "--heads", "--tasks", "recall", "--prompts", "8", "--quiet")
    assert copyscope(monkeypatch, *command) == 2  # no head of these is strong
    (line,) = capsys.readouterr().err.splitlines()
    assert "step 512 has no strong induction head" in line
    monkeypatch.setattr(
        "copyscope.analyses.tables.task_heads.strong",
        lambda *_: pl.DataFrame({"layer": [0, 1], "head": [1, 0], "value": [0.9, 0.8]}),
    )
    assert copyscope(monkeypatch, *command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "L0H1, L1H0" in lines[0]
    assert len(lines) == 5
    stored = series / "results/tasks/heads/step00000512.parquet"
    table, before = pl.read_parquet(stored), stored.stat().st_ino
    assert table.columns[:7] == ["run", "step", "tokens", "task", "variant", "chance", "heads"]
    assert set(table["grade"]) <= set(GRADES)
    assert copyscope(monkeypatch, *command, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["grades"]) == 3
    assert stored.stat().st_ino == before
