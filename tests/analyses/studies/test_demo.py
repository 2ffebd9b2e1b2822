"""The whole path on a small run: every table complete and right, nothing computed twice, resumes after a kill."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses.claims.judge import claims
from copyscope.analyses.notebook import curves
from copyscope.analyses.page.entry import run_entry
from copyscope.analyses.studies.demo import DemoResult, demo
from copyscope.analyses.tables.averages import AVERAGED, averaged
from copyscope.analyses.tables.measure_names import DEFAULT_MEASURES
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_metrics
from copyscope.analyses.tables.run_prompts import run_prompts
from copyscope.analyses.tables.scores import score
from copyscope.analyses.tables.summary import summary_lines
from copyscope.interp.measures.behavior import copying_accuracy
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.hooked import load_hooked, model_vocabulary
from copyscope.training.checkpoints.series import CheckpointSeries, step_folder
from copyscope.training.checkpoints.verify import verify
from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError

STEPS = [0, 1, 2, 4, 8, 12, 16]
MEANS = {"checkpoints.mean_every": 1}
"""As the preset of the demo has it: checkpoints hold the mean of the weights since the one before."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return demo(tmp_path_factory.mktemp("runs") / "small", small_config(corpus, **MEANS))


def parquet(run: Path, kind: str) -> pl.DataFrame:
    return pl.read_parquet(run / "results" / kind / "*.parquet")


def test_every_head_has_every_measure_at_every_step(done: DemoResult) -> None:
    heads = parquet(done.run, "heads")
    assert heads.columns == ["run", "step", "tokens", "layer", "head", "measure", "value"]
    assert sorted(heads["step"].unique()) == STEPS
    cells = heads.select("step", "layer", "head", "measure")
    assert cells.height == cells.unique().height == len(STEPS) * 4 * len(DEFAULT_MEASURES)
    assert (heads["tokens"] == heads["step"] * 2 * 64).all()


def test_model_table_has_every_measure(done: DemoResult) -> None:
    model = parquet(done.run, "model")
    wanted = {"copying_accuracy_exact", "copying_accuracy_token", "copying_loss_first", "copying_loss_second"}
    wanted |= {"copying_loss_difference", "icl_score", "natural_loss", "copying_subsequences", "copying_samples"}
    wanted |= {"natural_loss_predictable", "natural_loss_other", "natural_predictable_share"}
    wanted |= {"copying_accuracy_greedy", "copying_greedy_samples", "copying_loss_shuffled"}
    wanted |= {"copying_mean_rank", "natural_loss_copy_rule"}
    errors = (
        "copying_mean_rank",
        "natural_loss_copy_rule",
        "copying_accuracy_exact",
        "copying_accuracy_token",
        "copying_accuracy_greedy",
        "copying_loss_shuffled",
        "copying_loss_difference",
        "icl_score",
        "natural_loss",
    )
    wanted |= {f"{name}_se" for name in errors}
    for _, part in model.group_by("step"):
        assert set(part["measure"]) == wanted
    wide = model.pivot("measure", index="step", values="value")
    difference = wide["copying_loss_second"] - wide["copying_loss_first"]
    assert difference.to_list() == pytest.approx(wide["copying_loss_difference"].to_list())


def test_the_means_of_its_weights_stand_beside_it(done: DemoResult, tmp_path: Path) -> None:
    model = parquet(done.run / "average", "model")
    assert set(model["step"]) == {12, 16}  # the later half of the steps
    value = dict(model.filter(step=16).select("measure", "value").iter_rows())
    accuracies = model.filter(measure="copying_accuracy_token").sort("step")["value"].to_list()
    accuracy = accuracies[-1]
    assert value["natural_loss"] != parquet(done.run, "model").filter(step=16, measure="natural_loss")["value"][0]
    assert f"{accuracy:.3f}" in done.summary[0]
    lines: Any = curves(done.run).data
    (drawn,) = [trace for trace in lines if trace.name == "per token, mean of weights"]
    assert [y for y in drawn.y if y == y] == accuracies
    shown = run_entry(open_run(done.run), 0).fields["curves"][AVERAGED]
    assert (shown["steps"], shown["values"]) == ([12, 16], pytest.approx(accuracies, abs=1e-6))

    with pytest.raises(InputError, match="which are no run of their own"):
        claims([done.run / "average"])

    # Means scored at other steps than theirs are one clear line, not a traceback.
    shutil.copytree(done.run, tmp_path / "shifted")
    shutil.copytree(done.run.parent / "tokens", tmp_path / "tokens")
    for path in (tmp_path / "shifted" / "average" / "results" / "model").glob("*.parquet"):
        pl.read_parquet(path).with_columns(pl.col("step") + 1).write_parquet(path)
    said = summary_lines(open_run(tmp_path / "shifted"))
    assert sum("shifted/average: the stored scores are of other steps" in line for line in said) == 1

    # Means of other checkpoints than these are not this run's.
    shutil.copytree(done.run, tmp_path / "small")
    manifest = tmp_path / "small" / "checkpoints" / step_folder(16) / "MANIFEST.json"
    manifest.write_text(manifest.read_text() + " ")
    assert averaged(open_run(tmp_path / "small")) is None
    assert averaged(open_run(done.run)) is not None


def test_losses_by_position_and_kind_add_up(done: DemoResult) -> None:
    model, positions = parquet(done.run, "model"), parquet(done.run, "positions")
    assert sorted(positions["step"].unique()) == STEPS
    for step in STEPS:
        value = dict(model.filter(step=step).select("measure", "value").iter_rows())
        here = positions.filter(step=step)
        total = np.average(here["loss"], weights=here["count"])
        assert total == pytest.approx(value["natural_loss"], abs=1e-4)
        share = np.average(here["kind"] == "predictable", weights=here["count"])
        assert share == pytest.approx(value["natural_predictable_share"])


def test_pairs_of_heads(done: DemoResult) -> None:
    pairs, heads = parquet(done.run, "pairs"), parquet(done.run, "heads")
    assert sorted(pairs["step"].unique()) == STEPS
    assert (pairs["source_layer"] < pairs["layer"]).all()
    wide = pairs.pivot("measure", index=["step", "source_layer", "source_head", "layer", "head"], values="value")
    row = wide.row(-1, named=True)

    def score(measure: str, layer: int, head: int) -> float:
        return heads.filter(step=row["step"], layer=layer, head=head, measure=measure)["value"].item()

    before = score("previous_token", row["source_layer"], row["source_head"])
    after = score("induction_attention", row["layer"], row["head"])
    assert row["path_score"] == pytest.approx(before * row["k_composition"] * after)


@pytest.mark.parametrize("step", [0, 16])
def test_stored_scores_are_those_of_the_checkpoint_they_are_labelled_with(done: DemoResult, step: int) -> None:
    run = open_run(done.run)
    model = load_hooked(done.run / "checkpoints" / step_folder(step))
    prompts = run_prompts(run, model.cfg.n_ctx, model_vocabulary(model))
    fresh = score_heads(model, ["previous_token", "induction_score"], prompts.seed, vocab=prompts.vocab, bos_id=0)
    stored = parquet(done.run, "heads").filter(pl.col("step") == step)
    both = fresh.join(stored, on=["layer", "head", "measure"], suffix="_stored")
    assert both.height == fresh.height == 8
    assert both["value"].to_list() == pytest.approx(both["value_stored"].to_list(), abs=1e-5)
    accuracy = parquet(done.run, "model").filter(
        (pl.col("step") == step) & (pl.col("measure") == "copying_accuracy_token")
    )
    assert accuracy["value"].item() == pytest.approx(copying_accuracy(model, prompts.test).token, abs=2e-3)


def test_prompts_begin_with_the_models_own_bos_and_draw_no_special_token(done: DemoResult) -> None:
    model = load_hooked(done.run / "checkpoints" / step_folder(16))
    prompts = run_prompts(open_run(done.run), model.cfg.n_ctx, model_vocabulary(model))
    assert prompts.bos_id == 0
    assert (prompts.test.tokens[:, 0] == 0).all()
    assert 0 not in prompts.vocab
    assert prompts.natural is not None
    assert prompts.natural.shape[1] == model.cfg.n_ctx


def test_ablations_cover_every_head_at_the_last_step(done: DemoResult) -> None:
    table = parquet(done.run, "ablations")
    assert table["step"].unique().to_list() == [16]
    assert table.select("layer", "head").unique().height == 4
    assert set(table["method"]) == {"zero", "frozen_patterns"}
    assert {"copying_accuracy_token", "copying_loss", "natural_loss", "copying_loss_control"} <= set(table["measure"])


def test_formation_and_report_are_written(done: DemoResult) -> None:
    formation = json.loads((done.run / "results" / "formation.json").read_text())
    assert {"heads", "copying", "emergence"} <= formation.keys()
    assert done.report.read_text().startswith("<!DOCTYPE html>")
    assert 5 <= len(done.summary) <= 10
    read = json.loads((done.run / "results" / "text.json").read_text())
    assert (read["step"], read["tokens"]) == (16, 16 * 2 * 64)
    assert (done.run / "figures" / "formation_previous_token.html").is_file()


def test_validation_loss_is_logged_at_every_checkpoint_once(done: DemoResult) -> None:
    metrics = read_metrics(open_run(done.run))
    assert metrics["step"].is_unique().all()
    assert set(STEPS) <= set(metrics.drop_nulls("validation_loss")["step"])


def test_what_is_done_is_not_done_again(done: DemoResult, corpus: Path) -> None:
    files = [*(done.run / "results").rglob("*.parquet"), *(done.run / "checkpoints").rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    calls: list[Any] = []
    again = demo(
        done.run,
        small_config(corpus, **MEANS),
        on_scored=calls.append,
        progress=lambda what, number, total, note="": calls.append(what),
    )
    assert not calls
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert again.summary == done.summary


def test_only_a_missing_or_outdated_result_is_computed_again(done: DemoResult, tmp_path: Path) -> None:
    shutil.copytree(done.run.parent, tmp_path / "runs")
    run = tmp_path / "runs" / done.run.name
    wanted = score(run)
    (run / "results" / "heads" / f"{step_folder(4)}.parquet").unlink()
    (run / "results" / "model" / f"{step_folder(8)}.parquet").write_bytes(b"PAR1 cut off")
    calls: list[int] = []
    again = score(run, progress=lambda what, number, total, note="": calls.append(total))
    assert calls == [2, 2]
    assert again.heads.equals(wanted.heads)
    assert again.model.equals(wanted.model)


def test_a_result_of_other_weights_is_not_reused(done: DemoResult, tmp_path: Path) -> None:
    shutil.copytree(done.run.parent, tmp_path / "runs")
    run = tmp_path / "runs" / done.run.name
    manifest = run / "checkpoints" / step_folder(8) / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"tokens"', '"tokens" '))
    calls: list[int] = []
    score(run, progress=lambda what, number, total, note="": calls.append(total))
    assert calls == [1]


def test_a_folder_of_models_without_a_run_is_scored_too(done: DemoResult, tmp_path: Path) -> None:
    for step in (0, 16):
        shutil.copytree(done.run / "checkpoints" / step_folder(step), tmp_path / "theirs" / f"checkpoint-{step}")
        (tmp_path / "theirs" / f"checkpoint-{step}" / "MANIFEST.json").unlink()
    result = score(tmp_path / "theirs", ["previous_token"])
    assert sorted(result.heads["step"].unique()) == [0, 16]
    assert "natural_loss" not in result.model["measure"]


def test_wrong_steps_and_measures_are_named(done: DemoResult) -> None:
    with pytest.raises(InputError, match="no checkpoint at step 5; the nearest is 4"):
        score(done.run, steps=[5])
    with pytest.raises(InputError, match="prefix_matching_sum"):
        score(done.run, ["prefix_matching_summ"])


def test_a_context_too_short_is_refused_before_training(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="55"):
        demo(tmp_path / "run", small_config(corpus, **{"model.n_ctx": 32}))
    assert not (tmp_path / "run").exists()


def test_a_killed_demo_resumes_and_ends_the_same(done: DemoResult, corpus: Path, tmp_path: Path) -> None:
    """SIGKILL at three moments: while training, while scoring, while ablating."""
    config = tmp_path / "config.toml"
    config.write_text(small_config(corpus, **MEANS).to_toml())
    out = tmp_path / "runs" / "small"
    command = [sys.executable, "-m", "copyscope.analyses.cli", "demo", "--preset", str(config), "--out", str(out)]
    heads = "results/heads/step000000"
    for mark in ("checkpoints/step00000004", f"{heads}02.parquet", f"{heads}16.parquet"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (out / mark).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = demo(out, RunConfig.load(config))
    assert verify(CheckpointSeries.open(result.run)) == []
    assert parquet(result.run, "heads").sort(pl.all()).equals(parquet(done.run, "heads").sort(pl.all()))
    assert parquet(result.run, "model").sort(pl.all()).equals(parquet(done.run, "model").sort(pl.all()))
