"""In-context tasks on the page: a curve a variant, those shown beside copying, and the table of the last step."""

from typing import Any

import polars as pl

from copyscope.analyses.page.numbers import finite
from copyscope.analyses.page.tables import step_words

TASK = "task:"
"""What the names of the curves begin with."""
BESIDE = {
    "recall": "pairs=8",
    "prefix": "order=2",
    "fuzzy": "changed=3",
    "labels": "shots=4",
    "identifiers": "strings whole",
}
"""The variant of each task that is shown beside copying: five, so that lines can be told apart."""


def task_curves(tasks: pl.DataFrame | None) -> dict[str, dict[str, list[Any] | None]]:
    """Choice accuracy over training by `task:TASK VARIANT`, with standard errors."""
    out: dict[str, dict[str, list[Any] | None]] = {}
    if tasks is None:
        return out
    for (task, variant), part in tasks.group_by("task", "variant", maintain_order=True):
        wide = part.pivot("measure", index="step", values="value").sort("step")
        out[f"{TASK}{task} {variant}"] = {
            "steps": wide["step"].to_list(),
            "values": finite(wide["choice_accuracy"]),
            "se": finite(wide["choice_accuracy_se"]),
        }
    return out


def beside_copying(tasks: pl.DataFrame | None) -> list[dict[str, Any]]:
    """A row a task: its name, the curve shown beside copying (null for none), and of all its curves the chance."""
    rows: dict[str, dict[str, Any]] = {}
    if tasks is None:
        return []
    last = tasks.filter((pl.col("measure") == "chance") & (pl.col("step") == pl.col("step").max()))
    for task, variant, chance in last.select("task", "variant", "value").iter_rows():
        row = rows.setdefault(task, {"task": task, "beside": None, "chance": {}})
        row["chance"][f"{TASK}{task} {variant}"] = chance
        if BESIDE.get(task) == variant:
            row["beside"] = f"{TASK}{task} {variant}"
    return list(rows.values())


def task_table(tasks: pl.DataFrame, formed: pl.DataFrame | None) -> pl.DataFrame:
    """A row a variant: accuracies at the last step beside control and chance, and when choice accuracy formed."""
    last = tasks.filter(pl.col("step") == pl.col("step").max())
    wide = last.pivot("measure", index=["task", "variant"], values="value")
    table = wide.select(
        "task",
        "variant",
        "accuracy",
        pl.col("choice_accuracy").alias("choice accuracy"),
        pl.col("choice_accuracy_se").alias("±"),
        pl.col("control_choice").alias("its control"),
        "chance",
        pl.col("gain").alias("over no context, nats"),
    )
    if formed is None:
        return table
    over = formed.filter(pl.col("over") == "chance")
    when = over.select("task", "variant", step_words(over).alias("formed at step (95 % interval)"))
    return table.join(when, on=["task", "variant"], how="left", maintain_order="left")
