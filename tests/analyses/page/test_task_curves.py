"""Tasks on the page: curves, those beside copying, and the table."""

import numpy as np
import polars as pl
from synthetic_run import checkpoint_steps, model_table, rise

from copyscope.analyses.formation.tasks import task_formation
from copyscope.analyses.page.task_curves import BESIDE, beside_copying, task_curves, task_table
from copyscope.interp.tasks.registry import TASKS

STEPS = checkpoint_steps(16)


def asked(task: str, variant: str, chance: float) -> pl.DataFrame:
    flat = np.ones(len(STEPS))
    choice = chance + 0.5 * rise(np.array(STEPS, dtype=float), 300, 0.1)
    columns = {"accuracy": 0.1, "choice_accuracy_se": 0.02, "control_choice": chance, "gain": 2.0, "prompts": 256}
    curves = {"choice_accuracy": choice, "chance": chance * flat, "chance_uniform": chance * flat}
    table = model_table(curves | {name: value * flat for name, value in columns.items()}, STEPS)
    return table.with_columns(task=pl.lit(task), variant=pl.lit(variant))


def test_a_curve_a_variant_and_a_row_a_variant() -> None:
    table = pl.concat(
        [asked("recall", "pairs=4", 0.25), asked("recall", "pairs=8", 0.125), asked("words", "last", 0.25)]
    )
    found = task_curves(table)
    assert list(found) == ["task:recall pairs=4", "task:recall pairs=8", "task:words last"]
    assert found["task:recall pairs=8"]["steps"] == STEPS
    assert (found["task:recall pairs=8"]["values"] or [0])[-1] == 0.625
    assert found["task:recall pairs=8"]["se"] == [0.02] * len(STEPS)
    recall, words = beside_copying(table)
    assert (recall["beside"], words["beside"]) == ("task:recall pairs=8", None)
    assert recall["chance"] == {"task:recall pairs=4": 0.25, "task:recall pairs=8": 0.125}
    rows = task_table(table, task_formation(table)).to_dicts()
    assert [row["variant"] for row in rows] == ["pairs=4", "pairs=8", "last"]
    assert all(row["formed at step (95 % interval)"] for row in rows)
    assert "formed at step (95 % interval)" not in task_table(table, None).columns
    assert (task_curves(None), beside_copying(None)) == ({}, [])


def test_the_variants_beside_copying_are_of_tasks() -> None:
    assert set(BESIDE) <= set(TASKS)
