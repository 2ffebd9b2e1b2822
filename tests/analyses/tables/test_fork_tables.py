"""What was measured of a run is read, not measured again, for each fork of it."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses.claims.judge import claims
from copyscope.analyses.cli import app
from copyscope.analyses.figures.maps import map as formation_map
from copyscope.analyses.page.report import report
from copyscope.analyses.tables.as_trained import held
from copyscope.analyses.tables.info import info, info_lines
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_metrics, read_tables
from copyscope.analyses.tables.scores import score
from copyscope.analyses.tables.text_measured import measure_text
from copyscope.analyses.tables.watch import Watch
from copyscope.training.errors import InputError
from copyscope.training.fork import fork
from copyscope.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("parent")
    run = train(small_config(write_corpus(place / "text")), place / "run")
    score(run, samples=4)
    return run


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_fork_is_measured_from_its_step_on_and_read_through_before(run: Path, tmp_path: Path) -> None:
    before = files(run)
    values = {"optimizer.lr": 5e-3, "intervention.heads": [[1, 0]]}
    (one,) = fork(run, 8, values, tmp_path / "forks" / "held")
    with pytest.raises(InputError, match="no results/heads yet"):
        read_tables(open_run(one.folder), "heads")
    tables = score(one.folder, samples=4)
    steps = [0, 1, 2, 4, 8, 12, 16]
    stored = sorted(path.name for path in (one.folder / "results" / "heads").iterdir())
    assert stored == ["step00000012.parquet", "step00000016.parquet"]
    parent = open_run(run)
    for kind in ("heads", "model", "pairs", "positions", "copying"):
        table = read_tables(open_run(one.folder), kind)
        assert table["step"].unique().sort().to_list() == steps
        assert table["run"].unique().to_list() == ["held"]
        first, same = (rows.filter(pl.col("step") <= 8).drop("run") for rows in (table, read_tables(parent, kind)))
        assert first.sort(first.columns).equals(same.sort(first.columns))
    late, there = (rows.filter(pl.col("step") > 8).drop("run") for rows in (tables.heads, parent.heads))
    assert not late.equals(there)
    forked = open_run(one.folder)
    metrics = read_metrics(forked)
    assert metrics["step"].to_list() == read_metrics(parent)["step"].to_list()
    assert metrics.filter(pl.col("step") <= 8).equals(read_metrics(parent).filter(pl.col("step") <= 8))
    assert [bool(held(forked, checkpoint)) for checkpoint in forked.series.checkpoints] == [False] * 5 + [True] * 2
    assert forked.steps["scored"].to_list() == [True] * 7

    about = info(one.folder)
    assert (about.checkpoints, about.scored, about.trained_to) == (7, 7, 16)
    assert any("optimizer.lr 0.001 → 0.005" in line for line in info_lines(one.folder))
    formation_map(one.folder)
    assert report(one.folder, tmp_path / "report.html").is_file()
    assert files(run) == before

    judged = claims([run, one.folder])
    assert judged.runs["fork"].unique().len() == 2  # no two seeds of one recipe


def test_scores_on_other_prompts_are_not_mixed(run: Path, tmp_path: Path) -> None:
    (one,) = fork(run, 12, out=tmp_path / "fork")
    with pytest.raises(InputError, match="copying_samples 4 and 5") as error:
        score(one.folder, samples=5)
    assert "\n" not in str(error.value)
    assert score(one.folder, samples=4).heads["step"].max() == 16


def test_a_fork_of_a_fork_that_was_not_scored_reads_what_is_above_it(run: Path, tmp_path: Path) -> None:
    (middle,) = fork(run, 8, {"optimizer.lr": 5e-3}, tmp_path / "middle")
    (last,) = fork(middle.folder, 12, {"optimizer.lr": 1e-3}, tmp_path / "last")
    assert score(last.folder, samples=4).heads["step"].unique().to_list() == [0, 1, 2, 4, 8, 16]
    score(middle.folder, samples=4)
    assert open_run(last.folder).heads["step"].unique().to_list() == [0, 1, 2, 4, 8, 12, 16]


def test_what_was_read_of_other_text_is_of_that_text(run: Path, tmp_path: Path) -> None:
    other = write_corpus(tmp_path / "other", documents=100)
    (one,) = fork(run, 8, {"data.corpus": str(other)}, tmp_path / "other-text")
    (two,) = fork(one.folder, 12, out=tmp_path / "two")
    (wide,) = fork(run, 8, {"data.repeat_choice": 2}, tmp_path / "wide")
    assert two.differs == []
    config = open_run(one.folder).config
    assert config is not None
    for folder in (one.folder, two.folder):
        read = measure_text(open_run(folder))
        assert read is not None
        assert read.tokens == 8 * config.train.batch_size * config.model.n_ctx
        assert read.loss_training_text is not None
    assert measure_text(open_run(wide.folder)) is None


def test_forks_without_their_parent(run: Path, tmp_path: Path, logged: list[str]) -> None:
    shutil.copytree(run.parent / "tokens", tmp_path / "tokens")
    shutil.copytree(run, tmp_path / "run")
    (one,) = fork(tmp_path / "run", 12, out=tmp_path / "fork")
    shutil.rmtree(tmp_path / "run")
    heads = score(one.folder, samples=4).heads
    assert heads["step"].unique().to_list() == [16]
    assert any("not there any more" in line for line in logged)


def test_tables_of_a_fork_that_kept_no_checkpoints_outlive_its_parent(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "tokens", tmp_path / "tokens")
    shutil.copytree(run, tmp_path / "run")
    kept = {"checkpoints.keep": "none"}
    (one,) = fork(
        tmp_path / "run", 12, kept, tmp_path / "fork", watch=lambda folder, config: Watch(folder, config, samples=4)
    )
    shutil.rmtree(tmp_path / "run")
    assert open_run(one.folder).heads["step"].unique().to_list() == [16]


def test_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app(["fork", str(run), "--at", "12", "--out", "null", "--quiet"], standalone_mode=False) in (0, None)
    assert "bit for bit at all 1 steps" in capsys.readouterr().out
    many = ["--at", "13", "--set", "optimizer.lr=1e-2", "--set", "optimizer.lr=2e-2", "--placebo", "1", "--out", "many"]
    assert app(["fork", str(run), *many, "--quiet"], standalone_mode=False) in (0, None)
    assert sorted(path.name for path in Path("many").glob("*/")) == [".trunk", "lr=0.01", "lr=0.02", "placebo1"]
    with pytest.raises(InputError, match="give a step"):
        app(["fork", str(run), "--at", "1.5"], standalone_mode=False)
