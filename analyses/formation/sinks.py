"""How many heads rest on the first token."""

import polars as pl

from copyscope.training.errors import InputError

SINK_LEVEL = 0.3
"""Mean attention to the first token above which a head counts as a sink (arXiv 2410.10781)."""


def sink_fraction(heads: pl.DataFrame, level: float = SINK_LEVEL) -> pl.DataFrame:
    """Share of heads whose attention to the first token (`bos_sink`) exceeds `level`, at each step: step, tokens,
    sinks, heads, value (sinks/heads, in [0, 1]); by step.

    `heads`: scores of one run. After arXiv 2410.10781, on our prompts of random tokens instead of text. Cannot tell
    whether a head rests there or reads something. Raises InputError if `bos_sink` was not scored or `level` is not in
    [0, 1].
    """
    if not 0 <= level <= 1:
        raise InputError(f"level={level}: a share of attention, from 0 to 1")
    rows = heads.filter(pl.col("measure") == "bos_sink")
    if rows.is_empty():
        raise InputError("heads table: no bos_sink; score the series with that measure")
    counted = rows.group_by("step", "tokens").agg(sinks=(pl.col("value") > level).sum(), heads=pl.len())
    return counted.with_columns(value=pl.col("sinks") / pl.col("heads")).sort("step")
