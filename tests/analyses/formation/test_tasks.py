"""Formation steps of tasks, on curves with known answers."""

import numpy as np
import polars as pl
import pytest
from synthetic_run import checkpoint_steps, model_table, rise

from copyscope.analyses.formation.tasks import task_formation
from copyscope.analyses.tables.task_text import task_lines
from copyscope.training.errors import InputError

STEPS = checkpoint_steps(40)
AT = np.array(STEPS, dtype=float)


def table(variant: str, choice: np.ndarray, chance: float, uniform: float | None = None) -> pl.DataFrame:
    flat = np.ones(len(AT))
    curves = {
        "accuracy": 0.1 * choice,
        "accuracy_se": 0.01 * flat,
        "choice_accuracy": choice,
        "choice_accuracy_se": 0.01 * flat,
        "mean_rank": 100 * flat,
        "gain": 2 * flat,
        "control": 0 * flat,
        "control_choice": chance * flat,
        "chance": chance * flat,
        "chance_uniform": (uniform or chance) * flat,
        "prompts": 256 * flat,
    }
    named = model_table(curves, STEPS).with_columns(task=pl.lit("recall"), variant=pl.lit(variant))
    return named.select("run", "step", "tokens", "task", "variant", "measure", "value")


def test_the_step_at_which_a_task_rises_above_its_chance() -> None:
    rng = np.random.default_rng(0)
    rises = table("pairs=4", 0.25 + 0.7 * rise(AT, 2000, 0.1), 0.25)
    flat = table("pairs=8", 0.125 + 0.01 * rng.normal(size=len(AT)), 0.125)
    both = pl.concat([rises, flat])
    formed = task_formation(both)
    rows = {row["variant"]: row for row in formed.iter_rows(named=True)}
    assert rows["pairs=4"]["status"] == "formed"
    assert rows["pairs=4"]["estimate"] == pytest.approx(2000, rel=0.1)
    assert rows["pairs=8"]["status"] == "not yet"
    first, second = task_lines(both, formed)
    assert first.startswith("recall pairs=4: accuracy 0.09 ± 0.01")
    assert "; formed 2," in first or "; formed 1," in first
    assert second.endswith("; not formed")
    assert "formed" not in "".join(task_lines(both, None))


def test_a_rise_that_ends_at_a_better_rule_of_chance_is_dated_over_the_even_guess() -> None:
    rises = table("states=8", 0.125 + 0.17 * rise(AT, 500, 0.1), 0.3, 0.125)
    formed = task_formation(rises)
    assert formed.select("over", "chance", "formed").rows() == [("chance", 0.3, False), ("uniform", 0.125, True)]
    assert formed["estimate"][1] == pytest.approx(500, rel=0.1)
    (line,) = task_lines(rises, formed)
    assert "(control 0.30, chance 0.30, uniform 0.12)" in line
    assert "; not formed; over uniform: formed " in line


def test_too_few_checkpoints_and_no_tasks() -> None:
    few = table("pairs=4", np.full(len(AT), 0.3), 0.25).filter(pl.col("step") < 2)
    with pytest.raises(InputError, match="2 checkpoints"):
        task_formation(few)
    with pytest.raises(InputError, match="'task' is missing"):
        task_formation(few.drop("task"))
