"""What a checkpoint's line says of planted scores, how the time left is guessed, and scoring while training."""

from pathlib import Path

import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.scores import Scorer, score
from copyscope.analyses.tables.watch import Scored, TimeLeft, Watch, checkpoint_line
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.trainer import train


def scored(previous: float, induction: float, accuracy: float, p: float = 0.001) -> Scored:
    """Head L1H2 attends to the previous token so much, L2H1 matches prefixes so much; the others do neither."""
    rows = []
    for layer in range(3):
        for head in range(3):
            for measure, value in (
                ("previous_token", previous if (layer, head) == (1, 2) else 0.02),
                ("prefix_matching_sum", induction if (layer, head) == (2, 1) else 0.01),
            ):
                rows += [(layer, head, measure, value), (layer, head, f"{measure}_null", 0.02)]
                rows.append((layer, head, f"{measure}_p", p if value > 0.02 else 1.0))
    heads = pl.DataFrame(rows, schema=["layer", "head", "measure", "value"], orient="row")
    return Scored(heads, pl.DataFrame({"measure": ["copying_accuracy_token"], "value": [accuracy]}))


def test_a_line_names_what_has_formed_and_what_moved() -> None:
    assert checkpoint_line(1750, scored(0.93, 0.84, 0.31), scored(0.92, 0.35, 0.05)) == (
        "step 1,750: previous-token head L1H2 0.93; induction head L2H1 0.35 → 0.84; copying accuracy 0.05 → 0.31"
    )


def test_a_head_counts_only_if_strong_and_above_its_null() -> None:
    weak, unsure = scored(0.29, 0.05, 0.0), scored(0.9, 0.9, 0.0, p=0.2)
    assert "no previous-token head yet (L1H2 at 0.29)" in checkpoint_line(100, weak)
    assert "no induction head yet;" in checkpoint_line(100, weak)  # 0.05 is not on its way
    assert checkpoint_line(100, unsure).count("no ") == 2


def test_time_left_adds_updates_and_scorings_still_to_come() -> None:
    now = 0.0
    left = TimeLeft([0, 100, 200, 300], clock=lambda: now)
    for step in (0, 100):
        left.trained_to(step)
        now += 3  # seconds of scoring
        left.scored()
        now += 10  # of training 100 updates
    assert left.seconds() == pytest.approx(200 * 10 / 100 + 2 * 3)
    assert left.words() == "about 26 s left"
    left.trained_to(300)
    assert left.seconds() is None


def test_scoring_while_training_gives_the_same_tables_and_calls_on(tmp_path: Path) -> None:
    config = small_config(write_corpus(tmp_path / "text"), **{"checkpoints.every": 8})
    seen: list[int] = []
    watch = Watch(tmp_path / "live", config, lambda checkpoint: seen.append(checkpoint.step), samples=20, tasks=True)
    train(config, tmp_path / "live", on_checkpoint=watch)
    assert seen == checkpoint_steps(config)
    run = open_run(tmp_path / "live")
    assert all(Scorer(samples=20).is_stored(run, checkpoint) for checkpoint in run.series.checkpoints)
    asked = pl.read_parquet(tmp_path / "live" / "results" / "tasks" / "*.parquet")
    assert asked["step"].unique().sort().to_list() == checkpoint_steps(config)
    train(config, tmp_path / "heads=[[0,1]]*")  # a fork's folder is called so; no pattern of names
    after = score(tmp_path / "heads=[[0,1]]*", samples=20)
    stored = pl.read_parquet(tmp_path / "live" / "results" / "heads" / "*.parquet")
    assert stored.drop("run").sort(pl.all()).equals(after.heads.drop("run").sort(pl.all()))
