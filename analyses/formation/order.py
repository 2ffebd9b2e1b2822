"""In what order: stage after stage within a run, and which head carries a function when."""

from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.formation.step_rule import CONFIRM, MIN_LEVEL
from copyscope.analyses.formation.table_checks import measure_rows

ORDER_SCHEMA = {
    "stage": pl.String,
    "measure": pl.String,
    "layer": pl.Int64,
    "head": pl.Int64,
    "status": pl.String,
    "formed": pl.Boolean,
    "step": pl.Int64,
    "bracket_low": pl.Int64,
    "bracket_high": pl.Int64,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "began_earlier": pl.Boolean,
    "stages": pl.Int64,
    "first_stage": pl.Float64,
    "second_stage": pl.Float64,
    "provisional": pl.Boolean,
    "since_previous": pl.String,
}
CARRIER_SCHEMA = {
    "measure": pl.String,
    "layer": pl.Int64,
    "head": pl.Int64,
    "from_step": pl.Int64,
    "to_step": pl.Int64,
    "value": pl.Float64,
}


def ordered(events: list[dict[str, Any]]) -> pl.DataFrame:
    """Stages with, for each, whether it came later than the last one before it that formed."""
    out, before = [], None
    for row in events:
        since = None
        if row.get("step") is not None:
            if before is not None:
                if row["bracket_low"] >= before["step"]:
                    since = "later"
                elif row["step"] <= before["bracket_low"]:
                    since = "earlier"
                else:
                    since = "same bracket"
            before = row
        out.append({name: row.get(name) for name in ORDER_SCHEMA} | {"since_previous": since})
    return pl.DataFrame(out, schema=ORDER_SCHEMA)


def carriers(heads: pl.DataFrame, measure: str, least: float = MIN_LEVEL, confirm: int = CONFIRM) -> pl.DataFrame:
    """Which head does most of what `measure` says, from which checkpoint to which; a row a stretch, in order of steps.

    A stretch begins where a head scores highest of all, at `least` or more, and keeps the lead for `confirm`
    checkpoints; it ends where another head's begins, or where the leader falls below half of `least`. Columns: measure,
    layer, head, from_step, to_step, value (the leader's mean score over the stretch). Empty if no head gets there.
    Raises InputError as `formation_steps` does. Cannot tell: whether two heads share the work.
    """
    rows = measure_rows(heads, "heads", measure, ("layer", "head"))
    wide = rows.pivot(["layer", "head"], index="step", values="value").sort("step")
    names = rows.select("layer", "head").unique(maintain_order=True).rows()
    steps = wide["step"].to_list()
    values = np.nan_to_num(wide.drop("step").to_numpy().astype(float), nan=-np.inf)
    best = values.argmax(axis=1)
    stretches: list[list[int]] = []  # head, first index, last index
    for i in range(len(steps)):
        leads = best[i : i + confirm]
        taking_over = len(leads) == confirm and bool((leads == best[i]).all())
        strong = bool((values[i : i + confirm, best[i]] >= least).all())
        if stretches and stretches[-1][2] == i - 1 and values[i, stretches[-1][0]] >= least / 2:
            stretches[-1][2] = i
        if taking_over and strong and not (stretches and stretches[-1][2] == i and stretches[-1][0] == best[i]):
            if stretches and stretches[-1][2] == i:
                stretches[-1][2] = i - 1
            stretches.append([int(best[i]), i, i])
    out = [
        (measure, *names[head], steps[a], steps[b], float(values[a : b + 1, head].mean())) for head, a, b in stretches
    ]
    return pl.DataFrame(out, schema=CARRIER_SCHEMA, orient="row")
