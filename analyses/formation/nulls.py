"""Which heads score above chance: their value against the random-target null of the same checkpoint."""

import polars as pl


def above_null(heads: pl.DataFrame, level: float = 0.05) -> pl.DataFrame:
    """At the last step of a table of scores: which heads exceed the null, measure by measure, best first.

    Columns measure, layer, head, value, null, p (corrected for the number of heads); `p` at most `level`.
    """
    last = heads.filter(pl.col("step") == pl.col("step").max())
    wide = last.select("layer", "head", "measure", "value")
    keys = ["measure", "layer", "head"]
    for kind in ("null", "p"):
        of_kind = wide.filter(pl.col("measure").str.ends_with(f"_{kind}")).select(
            pl.col("measure").str.strip_suffix(f"_{kind}"), "layer", "head", pl.col("value").alias(kind)
        )
        wide = wide.join(of_kind, on=keys, how="left")
    found = wide.filter(pl.col("p") <= level).select(*keys, "value", "null", "p")
    return found.sort("measure", "value", descending=[False, True])
