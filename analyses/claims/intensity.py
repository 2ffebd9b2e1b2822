"""Optimization intensity: does copying form when the learning rates, added up over updates, pass a threshold?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from copyscope.analyses.statistics.intervals import t_interval

POWERS = {
    "summed learning rate": 1.0,
    "updates": 0.0,
    "summed root of the learning rate": 0.5,
    "summed square of the learning rate": 2.0,
}
CLAIMED = "summed learning rate"
RIVAL_SCHEMA = {
    "rival": pl.String,
    "threshold": pl.Float64,
    "error": pl.Float64,
    "worse": pl.Float64,
    "worse_low": pl.Float64,
    "worse_high": pl.Float64,
}


class Intensity(NamedTuple):
    """Leave-one-run-out prediction error of each rule for when copying forms."""

    best: str | None
    """The rule that predicts left-out runs better than every other, beyond chance; None if none does."""
    reason: str
    rivals: pl.DataFrame
    """A row a rule: threshold (in its own unit), error (typical |ln predicted − ln seen| of a run left out), worse (how
    much larger its error is than the summed learning rate's, mean over runs) with its 95 % interval."""
    n_runs: int


def intensity(
    rates: Sequence[Float[np.ndarray, " _update"]],
    steps: Float[np.ndarray, " run"],
    tokens_per_step: Float[np.ndarray, " run"],
) -> Intensity:
    """Which sum over updates is most alike in all runs when copying forms?

    `rates`: learning rate of every update of each run, up to its formation step at least; `steps`: formation step of
    each run (> 0). Each rule (sum of lr^p, p in `POWERS`, or tokens) has a threshold, the geometric mean over runs of
    its sum at formation. Each run is left out in turn and predicted from the others' threshold; where its rates end
    first, the last one is taken to go on. A rule is best if the 95 % interval (Student's, over runs) of every other's
    extra error lies above 0. Cannot tell: rules it was not given; with one learning rate and batch size all are alike.
    """
    totals = {name: [np.cumsum(rate**power) for rate in rates] for name, power in POWERS.items()}
    totals["tokens"] = [np.arange(1, len(rate) + 1) * per for rate, per in zip(rates, tokens_per_step, strict=True)]
    errors, thresholds = {}, {}
    for name, sums in totals.items():
        seen = np.log([_at(one, step) for one, step in zip(sums, steps, strict=True)])
        thresholds[name] = float(np.exp(seen.mean()))
        left_out = [np.exp(np.delete(seen, i).mean()) if len(seen) > 1 else np.nan for i in range(len(seen))]
        predicted = [_when(one, total) for one, total in zip(sums, left_out, strict=True)]
        errors[name] = np.abs(np.log(predicted) - np.log(steps))
    rows = []
    for name, error in errors.items():
        extra = error - errors[CLAIMED]
        rows.append((name, thresholds[name], float(error.mean()), float(extra.mean()), *t_interval(extra)))
    table = pl.DataFrame(rows, schema=RIVAL_SCHEMA, orient="row")
    best, reason = _best(errors)
    return Intensity(best, reason, table.sort("error"), len(steps))


def _at(total: Float[np.ndarray, " update"], step: float) -> float:
    """The sum after `step` updates, between whole ones on a straight line."""
    return float(np.interp(step, np.arange(1, len(total) + 1), total))


def _when(total: Float[np.ndarray, " update"], wanted: float) -> float:
    """The step at which the sum is `wanted`; beyond the last update it goes on as it did there."""
    if np.isnan(wanted):
        return float("nan")
    if wanted > total[-1]:
        last = total[-1] - (total[-2] if len(total) > 1 else 0.0)
        return float(len(total) + (wanted - total[-1]) / max(last, 1e-30))
    return float(np.interp(wanted, total, np.arange(1, len(total) + 1)))


def _best(errors: dict[str, np.ndarray]) -> tuple[str | None, str]:
    runs = len(next(iter(errors.values())))
    if runs < 3:
        return None, f"{runs} runs; it takes three to predict one from the others"
    order = sorted(errors, key=lambda name: float(errors[name].mean()))
    first = order[0]
    for other in order[1:]:
        low, _ = t_interval(errors[other] - errors[first])
        if not low > 0:
            return None, f"{first} predicts best, but not clearly better than {other}"
    return first, f"{first} predicts left-out runs better than every other rule"
