"""The page's tables: polars frames in words."""

import polars as pl

from copyscope.analyses.formation.step_text import step_number, step_text
from copyscope.analyses.words.glossary import MEASURES, describe

MAX_ROWS = 20
LEVEL = 0.05
"""Corrected p up to which a head is above its null."""
STATES = {"never": "not formed", "weak": "weak rise"}
"""What a reader is told instead of the table's own words."""
TIDY_STEPS = ("formation_step", "formation_low", "formation_high")
REMOVED = {
    "copying_accuracy_token": "accuracy",
    "copying_loss": "copying loss, nats",
    "copying_loss_matched": "the same, heads of like attention entropy",
    "copying_loss_control": "the same, other heads of the layer",
    "natural_loss": "natural loss, nats",
}
"""What removing a head does, beside its controls, and their columns."""


def _last(table: pl.DataFrame, measure: str, name: str, keys: list[str]) -> pl.DataFrame:
    """The value of one measure at its last step, as a column `name`."""
    rows = table.filter(pl.col("measure") == measure)
    rows = rows.filter(pl.col("step") == pl.col("step").max())
    return rows.select(*keys, pl.col("value").alias(name))


def head_table(
    heads: pl.DataFrame, measure: str, formation: pl.DataFrame | None, ablations: pl.DataFrame | None
) -> pl.DataFrame:
    """A row a head, highest final score first, 20 at most: score, null and whether the score is above it (p at most
    0.05, corrected for the number of heads), selectivity, formation and ablation effects."""
    table = _head_rows(heads, measure, formation, ablations).drop(TIDY_STEPS, strict=False)
    table = table.select(pl.format("L{}H{}", "layer", "head").alias("head"), pl.exclude("layer", "head"))
    return table.select(column for column in table.columns if table[column].null_count() < table.height)


def tidy_heads(
    heads: pl.DataFrame, measure: str, formation: pl.DataFrame | None, ablations: pl.DataFrame | None
) -> pl.DataFrame:
    """The rows of `head_table` for a file: layer, head and the formation step with its interval as numbers."""
    table = _head_rows(heads, measure, formation, ablations).drop("formed at step (95 % interval)", strict=False)
    return table.select(pl.lit(measure).alias("measure"), pl.all())


def tidy_steps(events: pl.DataFrame, *names: str) -> pl.DataFrame:
    """Rows of `copying_formation` or `order_of_appearance` for a file: columns `names`, then the step and its 95 %
    interval as numbers (null where nothing formed)."""
    return events.select(*names, *_tidy_step(events))


def _head_rows(
    heads: pl.DataFrame, measure: str, formation: pl.DataFrame | None, ablations: pl.DataFrame | None
) -> pl.DataFrame:
    keys = ["layer", "head"]
    table = _last(heads, measure, "final score", keys)
    for suffix, name in (("_null", "random target"), ("_selectivity", "× uniform"), ("_p", "p")):
        table = table.join(_last(heads, measure + suffix, name, keys), on=keys, how="left")
    above = pl.when(pl.col("p").is_null()).then(None).when(pl.col("p") <= LEVEL).then(pl.lit("yes"))
    table = table.with_columns(above.otherwise(pl.lit("no")).alias("above chance"))
    table = table.join(_last(heads, "previous_token", "previous-token", keys), on=keys, how="left")
    if formation is not None:
        steps = step_words(formation).alias("formed at step (95 % interval)")
        known = formation.select(*keys, pl.col("status").replace(STATES)).with_columns(steps, *_tidy_step(formation))
        table = table.join(known, on=keys, how="left")
    if ablations is not None and not ablations.is_empty():
        method = ablations["method"][0]
        first = ablations.filter(pl.col("method") == method)
        for name, short in REMOVED.items():
            table = table.join(_last(first, name, f"removed ({method}): {short}", keys), on=keys, how="left")
    return table.sort("final score", descending=True).head(MAX_ROWS)


def _tidy_step(events: pl.DataFrame) -> list[pl.Series]:
    """The step of each event and its interval, rounded to whole steps; null for what has not happened."""
    rows = list(events.iter_rows(named=True))
    steps = [None if row["step"] is None else step_number(row) for row in rows]
    whole = [[None if row[end] is None else round(row[end]) for row in rows] for end in ("low", "high")]
    return [pl.Series(name, values, dtype=pl.Int64) for name, values in zip(TIDY_STEPS, [steps, *whole], strict=True)]


def step_words(events: pl.DataFrame) -> pl.Series:
    """When each event was, as `step_text` says it; null for what has not happened."""
    rows = events.iter_rows(named=True)
    said = [None if row["step"] is None else step_text(row) for row in rows]
    return pl.Series("step", said, dtype=pl.String)


def copying_table(copying: pl.DataFrame) -> pl.DataFrame:
    """`copying_formation` in words."""
    return copying.select(
        pl.col("measure").map_elements(lambda measure: describe(measure).title, return_dtype=pl.String),
        "status",
        pl.col("onset").alias("clear of chance from step"),
        step_words(copying).alias("half-way at step (95 % interval)"),
        pl.col("baseline").alias("first"),
        "final",
        pl.col("peak").alias("best"),
    )


def order_table(order: pl.DataFrame) -> pl.DataFrame:
    """`order_of_appearance` in words."""
    return order.select(
        "stage",
        pl.format("L{}H{}", "layer", "head").alias("first head"),
        "status",
        step_words(order).alias("at step (95 % interval)"),
        pl.col("since_previous").alias("compared with the stage before"),
    )


def carrier_table(led: pl.DataFrame) -> pl.DataFrame:
    """`carriers` in words: which head led, from which checkpoint to which."""
    return led.select(
        pl.col("measure").map_elements(lambda measure: describe(measure).title, return_dtype=pl.String),
        pl.format("L{}H{}", "layer", "head").alias("head"),
        pl.format("{} – {}", "from_step", "to_step").alias("leads at steps"),
        pl.col("value").alias("mean score"),
    )


def definition_table(heads: pl.DataFrame, model: pl.DataFrame) -> pl.DataFrame:
    """What each measure of the tables means, where it comes from, and what it cannot tell."""
    present = {*heads["measure"].to_list(), *model["measure"].to_list()}
    rows = [(w.title, w.scale, w.meaning, w.cannot_tell, w.source) for m, w in MEASURES.items() if m in present]
    return pl.DataFrame(rows, schema=["measure", "range", "meaning", "cannot tell", "source"], orient="row")


def checkpoint_table(heads: pl.DataFrame, model: pl.DataFrame, ablations: pl.DataFrame | None) -> pl.DataFrame:
    """How many checkpoints each table holds, and which."""
    rows = []
    for name, table in (("head scores", heads), ("model measures", model), ("ablations", ablations)):
        steps = [] if table is None or table.is_empty() else sorted(set(table["step"].to_list()))
        shown = [*steps[:12], "…", steps[-1]] if len(steps) > 14 else steps
        rows.append((name, len(steps), ", ".join(map(str, shown)) or "none"))
    return pl.DataFrame(rows, schema=["table", "checkpoints", "steps"], orient="row")
