"""Which heads score above chance, and which are strong: their value against the random-target null of the same
checkpoint."""

import polars as pl

from copyscope.analyses.formation.step_rule import MIN_LEVEL
from copyscope.analyses.words.glossary import describe

LEVEL = 0.05
"""Corrected p-value at which a head counts as above its null."""


def above_null(heads: pl.DataFrame, level: float = LEVEL) -> pl.DataFrame:
    """At the last step of a table of scores: which heads exceed the null, measure by measure, best first.

    Columns measure, layer, head, value, null, p (corrected for the number of heads), strong; `p` at most `level`. A
    head is strong if its value is also above the null by `MIN_LEVEL` = 0.3 of the room from there to 1, the level that
    formation steps ask for: many prompts make a difference of 0.02 significant, which makes no head of any kind. Of a
    measure without an upper limit, as in logits, no head is called strong.
    """
    last = heads.filter(pl.col("step") == pl.col("step").max()) if "step" in heads.columns else heads
    wide = last.select("layer", "head", "measure", "value")
    keys = ["measure", "layer", "head"]
    for kind in ("null", "p"):
        of_kind = wide.filter(pl.col("measure").str.ends_with(f"_{kind}")).select(
            pl.col("measure").str.strip_suffix(f"_{kind}"), "layer", "head", pl.col("value").alias(kind)
        )
        wide = wide.join(of_kind, on=keys, how="left")
    above = wide.filter(pl.col("p") <= level).select(*keys, "value", "null", "p")
    is_strong = pl.col("value") - pl.col("null") >= MIN_LEVEL * (1 - pl.col("null"))
    limited = [name for name in above["measure"].unique() if describe(name).high is not None]
    return above.with_columns(strong=is_strong & pl.col("measure").is_in(limited)).sort(
        "measure", "value", descending=[False, True]
    )


def strong(heads: pl.DataFrame, measure: str) -> pl.DataFrame:
    """The strong heads of `measure` at the last step: layer, head, value, best first; empty where there is none.

    Where the table has no p-values (other samples than the usual ones) the level alone decides, over the null or 0.
    """
    last = heads.filter(pl.col("step") == pl.col("step").max()) if "step" in heads.columns else heads
    if (last["measure"] == f"{measure}_p").any():
        rows = above_null(last).filter((pl.col("measure") == measure) & pl.col("strong"))
    else:
        null = last.filter(pl.col("measure") == f"{measure}_null").select("layer", "head", null="value")
        rows = last.filter(pl.col("measure") == measure).join(null, on=["layer", "head"], how="left")
        floor = pl.col("null").fill_null(0.0)
        rows = rows.filter(pl.col("value") - floor >= MIN_LEVEL * (1 - floor)).sort("value", descending=True)
    return rows.select("layer", "head", "value")
