"""Earlier or stronger? A setting's runs against those without it, in copying and in the model as a whole."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from copyscope.analyses.claims.verdict import number
from copyscope.analyses.statistics.censored import censored_difference

ALPHA = 0.05
"""Share of settings without any effect that may get a verdict: split evenly over the intervals that decide."""
CONTRAST_SCHEMA = {
    "value": pl.String,
    "baseline": pl.String,
    "quantity": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "runs": pl.Int64,
    "baseline_runs": pl.Int64,
    "helps": pl.Boolean,
}
QUANTITIES = {"log_step": -1, "copying_accuracy_token": 1, "natural_loss": -1, "icl_score": -1}
"""What is compared, and which sign is better: ln formation step, final accuracy, final loss and ICL score in nats."""
INTERVALS = (
    "Welch's intervals of ln step (where a run has not formed: by likelihood, as later than its last step) and of "
    "final accuracy"
)
"""What verdicts on settings rest on, in words."""
NONE = np.empty(0)
DECIDING = ("log_step", "copying_accuracy_token")


class Contrast(NamedTuple):
    """How runs with other values of one setting differ from those with the baseline's."""

    verdict: str
    """`helps`, `harms`, `mixed` or `open`."""
    reason: str
    table: pl.DataFrame
    """A row for each value of the setting and quantity: difference to the baseline's mean with its interval; helps:
    True or False where the interval does not hold 0, else null."""


def contrast(values: Sequence[Any], outcomes: Sequence[Mapping[str, float | None]], settings: int = 1) -> Contrast:
    """Runs by the value of a setting, each value against the smallest (the baseline).

    `outcomes`: per run, `QUANTITIES` by name (None or missing where not known), `log_step_error`, the standard error of
    that step, and where copying has not formed `log_last_step`, which its step is later than. The verdict looks at
    copying alone: `helps` if it forms earlier or ends more accurate for some value and is neither later nor worse for
    any. Intervals are Welch's, at 95 % for all together (each at 97.5 % for one value: earlier, stronger; `settings`:
    how many settings are asked about at once); a group needs two runs. Where a run has not formed, the steps are
    compared by `censored_difference`, and an end that is open is null. Cannot tell: whether such a run would have
    formed at all.
    """
    levels = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    rows: list[dict[str, Any]] = []
    confidence = 1 - ALPHA / (len(DECIDING) * max(len(levels) - 1, 1) * settings)
    errors = [error for outcome in outcomes if (error := outcome.get("log_step_error")) is not None]
    for level in levels[1:]:
        for quantity, sign in QUANTITIES.items():
            base, other = (_known(values, outcomes, at, quantity) for at in (levels[0], level))
            base_open, other_open, error = NONE, NONE, 0.0
            if quantity == "log_step":
                base_open, other_open = (_known(values, outcomes, at, "log_last_step") for at in (levels[0], level))
                error = float(np.median(errors)) if errors else 0.0
            baseline_runs, runs = len(base) + len(base_open), len(other) + len(other_open)
            if not baseline_runs or not runs or not len(base) + len(other):
                continue
            effect = censored_difference(base, other, base_open, other_open, confidence, error)
            clear = effect.low > 0 or effect.high < 0
            rows.append(
                {
                    "value": str(level),
                    "baseline": str(levels[0]),
                    "quantity": quantity,
                    "difference": number(effect.difference),
                    "low": number(effect.low),
                    "high": number(effect.high),
                    "runs": runs,
                    "baseline_runs": baseline_runs,
                    "helps": bool(np.sign(effect.difference) == sign) if clear else None,
                }
            )
    table = pl.DataFrame(rows, schema=CONTRAST_SCHEMA)
    decided = table.filter(pl.col("quantity").is_in(DECIDING))["helps"].drop_nulls().to_list()
    if not decided:
        few = table.filter(pl.min_horizontal("runs", "baseline_runs") >= 2).is_empty()
        return Contrast("open", "fewer than two runs of a value" if few else "every interval holds 0", table)
    if len(set(decided)) > 1:
        return Contrast("mixed", "it helps in one respect and harms in another", table)
    return Contrast(
        "helps" if decided[0] else "harms",
        "copying forms earlier or ends more accurate" if decided[0] else "copying forms later or ends less accurate",
        table,
    )


def step_effect(table: pl.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Relative change of the formation step and its interval, of the last value in a contrast's table; None for what is
    not known or open."""
    rows = table.filter(pl.col("quantity") == "log_step").select("difference", "low", "high").rows()
    value, low, high = ((None if x is None else math.exp(x) - 1) for x in (rows[-1] if rows else (None,) * 3))
    return value, low, high


def _known(
    values: Sequence[Any], outcomes: Sequence[Mapping[str, float | None]], level: Any, quantity: str
) -> np.ndarray:
    measured = [o.get(quantity) for value, o in zip(values, outcomes, strict=True) if value == level]
    return np.array([value for value in measured if value is not None and np.isfinite(value)], dtype=float)
