"""Sweeps that train: a scored run resumed is the run undisturbed, what is left of it, what it costs; the commands."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from small_demo import small_config, write_corpus
from written_run import config as written_config
from written_run import write_run

from copyscope.analyses import cli
from copyscope.analyses.studies import sweep as sweeps
from copyscope.analyses.studies.cost import cost_of, operations, scored_tokens
from copyscope.analyses.studies.scored_run import arguments, scored_run, scored_steps, work
from copyscope.analyses.studies.sweep import outcome_table, sweep
from copyscope.analyses.tables import scores, watch
from copyscope.analyses.tables.measure_names import DEFAULT_MEASURES
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import score_tables
from copyscope.analyses.tables.stored import SCORES_VERSION, computed_with, store_table
from copyscope.training.config import RunConfig
from copyscope.training.engines.locks import Busy, held
from copyscope.training.errors import InputError, Stopped
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.sweeps.driver import Outcome
from copyscope.training.sweeps.plan import parse_sweep
from copyscope.training.sweeps.worker import FINISHED, Status, execute, read_status, write_status

MEASURES = ("heads", "model", "pairs", "positions")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sweep")
    write_corpus(root / "texts")
    return root


def config(root: Path, **values: Any) -> RunConfig:
    return small_config(root / "texts", **{"checkpoints.keep": "none", "train.steps": 8, **values})


def begin(root: Path, name: str, settings: RunConfig) -> Path:
    (root / name).mkdir()
    (root / name / "config.toml").write_text(settings.to_toml())
    return root / name


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    return {
        kind: pl.concat([pl.read_parquet(path) for path in sorted((folder / "results" / kind).glob("*.parquet"))])
        for kind in MEASURES
    }


def test_a_run_broken_off_while_it_was_scored_goes_on_to_the_same_tables(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(root)
    whole = begin(root, "whole", settings)
    assert execute(whole, work(10, *arguments(10, "auto", "float32", with_tasks=True)[1:])).state == FINISHED
    assert scored_steps(whole, "tasks") == scored_steps(whole) == set(checkpoint_steps(settings))
    assert sorted(path.name for path in whole.iterdir()) == [
        "checkpoints",
        "config.toml",
        "counts.bin",
        "data.json",
        "environment.json",
        "lock",
        "metrics.jsonl",
        "results",
        "status.json",
    ]
    assert not list((whole / "checkpoints").iterdir())
    assert sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) < 400_000

    facts = [computed_with(path) for kind in MEASURES for path in (whole / "results" / kind).glob("*.parquet")]
    wanted = {
        "version": SCORES_VERSION,
        "measures": list(DEFAULT_MEASURES),
        "seeds": [settings.seeds.eval],
        "copying_samples": 10,
        "copyscope": version("copyscope"),
        "torch": version("torch"),
    }
    assert all(wanted.items() <= fact.items() for fact in facts)

    last = begin(root, "last", settings)
    assert execute(last, work(10, *arguments(10, "auto", "float32", with_tasks="last")[1:])).state == FINISHED
    assert scored_steps(last) == scored_steps(whole)
    assert scored_steps(last, "tasks") == {settings.train.steps}
    both = [
        pl.read_parquet(next((one / "results" / "tasks").glob("step00000008.*"))).drop("run") for one in (last, whole)
    ]
    assert both[0].equals(both[1])

    broken = begin(root, "broken", settings)
    plain, calls = scores.score_heads, 0

    def third_time(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise MemoryError("no room")
        return plain(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(scores, "score_heads", third_time)
        status = execute(broken, work(10))
    assert (status.state, status.reason) == ("failed", f"MemoryError: no room; see {broken / 'log.txt'}")
    assert execute(broken, work(10)).state == FINISHED
    for kind, table in tables(whole).items():
        assert tables(broken)[kind].drop("run").equals(table.drop("run")), kind
    assert set(tables(broken)["heads"]["step"]) == set(checkpoint_steps(settings))


def test_scores_by_older_definitions_that_cannot_be_computed_again_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path / "run", written_config(), copies_at=2_000)
    assert len(score_tables(open_run(folder)).heads)
    table = next((folder / "results" / "heads").glob("*.parquet"))
    store_table(pl.read_parquet(table), table, "key", {"version": SCORES_VERSION + 1})
    with pytest.raises(InputError, match=rf"{table}: scored by other definitions .* delete {folder} and train"):
        score_tables(open_run(folder))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    folder = begin(tmp_path, "run", RunConfig())
    done: list[Path] = []

    def count(settings: RunConfig, where: Path) -> None:
        done.append(where)

    def stop(settings: RunConfig, where: Path) -> None:
        raise Stopped("stopped at step 3 of 8")

    def diverge(settings: RunConfig, where: Path) -> None:
        (where / "diverged.json").write_text("{}")
        raise InputError("loss is not finite")

    def refuse(settings: RunConfig, where: Path) -> None:
        raise InputError("corpus x: no such file")

    def state_and_reason(status: Status) -> tuple[str, str]:
        return status.state, status.reason

    assert state_and_reason(execute(folder, refuse)) == ("failed", "corpus x: no such file")
    assert state_and_reason(execute(folder, stop)) == ("stopped", "stopped at step 3 of 8")
    assert execute(folder, count).state == FINISHED
    assert execute(folder, count).state == FINISHED
    assert done == [folder]
    other = begin(tmp_path, "other", RunConfig())
    assert state_and_reason(execute(other, diverge)) == ("diverged", "loss is not finite")
    assert execute(other, count).state == "diverged"  # it would diverge again
    third = begin(tmp_path, "third", RunConfig())
    with held(third / "lock", lambda: None), pytest.raises(Busy):
        execute(third, count)
    assert read_status(third) == Status()
    (third / "status.json").write_text("{")
    assert execute(third, count).state == FINISHED


def test_scores_that_are_missing_are_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(root, **{"train.steps": 2, "checkpoints.every": 2})
    folder = begin(root, "unscored", settings)
    monkeypatch.setattr(scores, "score", lambda *arguments, **more: None)
    monkeypatch.setattr(watch, "Watch", lambda *arguments, **more: None)
    with pytest.raises(InputError, match="step 0 was trained without scores; delete the folder"):
        scored_run(settings, folder, 10)


def test_a_corpus_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "run_sweep", lambda *arguments, **more: [])
    lost = parse_sweep({"base": "quickstart", "values": {"data.corpus": "lost.txt"}}, Path())
    with pytest.raises(InputError, match=r"corpus lost\.txt: no such file or folder"):
        sweep(lost, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    begun = tmp_path / "out" / lost.runs[0].run_id / "data.json"
    begun.parent.mkdir(parents=True)
    begun.write_text("{}")  # it has its tokens, and needs the corpus no more
    assert sweep(lost, tmp_path / "out") == []


def test_a_context_too_short_for_the_copying_test_is_refused_before_training(tmp_path: Path) -> None:
    planned = parse_sweep({"base": "quickstart", "score": True, "values": {"model.n_ctx": 40}}, Path())
    with pytest.raises(InputError, match=r"model.n_ctx: .*55"):
        sweep(planned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_table_of_outcomes(tmp_path: Path) -> None:
    runs = parse_sweep({"base": "quickstart", "grid": {"seed": [0, 1]}}, tmp_path).runs
    failed = Status(state="failed", reason="x", seconds=2.0)
    table = outcome_table([Outcome(run=run, folder=tmp_path / run.run_id, status=failed) for run in runs])
    assert table["run"].to_list() == ["base seed=0", "base seed=1"]
    assert table["state"].to_list() == ["failed", "failed"]


def test_cost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from copyscope.analyses.studies import cost as study_cost

    monkeypatch.setattr(study_cost, "SECONDS", 0.05)
    one = config(root)
    m = one.model
    by_hand = m.n_layers * (4 * m.d_model**2 + 3 * m.d_model * m.d_mlp + m.n_ctx * m.d_model) + m.d_model * 320
    assert operations(one) == by_hand
    assert scored_tokens(one, 100) > scored_tokens(one, 10) > 64 * m.n_ctx
    cost = cost_of([one] * 6, 10, 2)
    assert (cost.runs, cost.updates, cost.tokens) == (6, 48, 48 * 2 * 64)
    assert cost.hours >= 6 * study_cost.START / 2 / 3600
    monkeypatch.setattr(study_cost, "update_seconds", lambda settings, threads: 1.0)
    double = one.with_values({"train.steps": 1600})
    trained = (cost_of([double], 10, 1).hours - cost_of([one.with_values({"train.steps": 800})], 10, 1).hours) * 3600
    scored = (len(checkpoint_steps(double)) - len(checkpoint_steps(one.with_values({"train.steps": 800})))) * (
        scored_tokens(one, 10) * study_cost.SCORING / 128
    )
    assert trained - scored == pytest.approx(800)
    more = cost_of([double], 10, 1, tasks=True).hours - cost_of([double], 10, 1).hours
    asked = len(checkpoint_steps(double)) * study_cost.TASK_TOKENS * study_cost.SCORING / 128
    assert more * 3600 == pytest.approx(asked)
    once = cost_of([double], 10, 1, tasks="last").hours - cost_of([double], 10, 1).hours
    assert once * 3600 == pytest.approx(asked / len(checkpoint_steps(double)))
    assert cost_of([], 10, 2).hours == 0


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["copyscope", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_a_sweep_of_runs_that_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text('base = "quickstart"\n[grid]\nseed = [0, 1, 2]')
    out = tmp_path / "out"
    states = [("finished", ""), ("diverged", "loss is not finite"), ("finished", "")]
    sweep = parse_sweep({"base": "quickstart", "grid": {"seed": [0, 1, 2]}}, tmp_path)
    for run, (state, reason) in zip(sweep.runs, states, strict=True):
        write_status(out / run.run_id, Status(state=state, reason=reason, seconds=3.0))
    assert command(monkeypatch, "sweep", str(tmp_path / "small.toml"), "--out", str(out)) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[1] == f"diverged base seed=1 {out / sweep.runs[1].run_id} 3 s: loss is not finite"
    assert "3 of 3 runs are done already" in said.err
    assert "\x1b" not in said.err
    assert command(monkeypatch, "sweep", str(tmp_path / "small.toml"), "--out", str(out), "--json", "--quiet") == 0
    said = capsys.readouterr()
    assert [run["state"] for run in json.loads(said.out)["runs"]] == [state for state, _ in states]
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sweep", "nothing.toml"], "nothing.toml: no such file"),
        (["sweep", "bad.toml", "--out", "out"], "no field 'train.stepz'; did you mean 'train.steps'?"),
        (["sweep", "good.toml", "--out", "out", "--set", "train.stepz=3"], "did you mean 'train.steps'?"),
        (["sweep", "good.toml", "--out", "out", "--engine", "cloud"], "--engine cloud: no such engine"),
        (["sweep", "good.toml", "--out", "out", "--option", "gpus"], "--option gpus: write it as name=value"),
        (["sweep", "good.toml", "--out", "out", "--option", "gpus=1"], "the engine local has no options"),
        (["sweep", "good.toml", "--out", "out", "--jobs", "0"], "--jobs 0: give at least 1"),
        (["sweep", "good.toml", "--out", "other"], "holds a sweep of other runs"),
        (["study", "batchsize"], "no study 'batchsize'"),
        (["study", "seeds", "--size", "huge"], "--size huge"),
        (["study", "corpus", "--corpus", "python"], "give two corpora or more"),
        (["study", "seeds", "--out", "empty", "--analyse-only"], "no run of this study is finished"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.toml").write_text('base = "quickstart"')
    Path("bad.toml").write_text('base = "quickstart"\n[grid]\ntrain.stepz = [1]')
    Path("other").mkdir()
    Path("other/sweep.json").write_text('{"runs": [{"run_id": "a", "label": "a", "values": {}}]}')
    assert command(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
    assert not Path("out").exists()  # nothing was begun
