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
    "value": pl.String, "baseline": pl.String, "quantity": pl.String, "difference": pl.Float64, "low": pl.Float64,
    "high": pl.Float64, "runs": pl.Int64, "baseline_runs": pl.Int64, "helps": pl.Boolean,
}  # fmt: skip
QUANTITIES = {"log_step": -1, "copying_accuracy_token": 1, "natural_loss": -1, "icl_score": -1}
"""What is compared, and which sign is better: ln formation step, final accuracy, final loss and ICL score in nats."""
INTERVALS = (
    "Welch's intervals of ln step (where a run has not formed: by likelihood, as later than its last step) and of "
    "final accuracy"
)
"""What verdicts on settings rest on, in words."""
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
    rows: list[tuple[Any, ...]] = []
    confidence = 1 - ALPHA / (len(DECIDING) * max(len(levels) - 1, 1) * settings)
    errors = [error for error in (one.get("log_step_error") for one in outcomes) if error is not None]
    for level in levels[1:]:
        for quantity, sign in QUANTITIES.items():
            base, own = (_known(values, outcomes, one, quantity) for one in (levels[0], level))
            late = [_known(values, outcomes, one, "log_last_step")[: None if quantity == "log_step" else 0]
                    for one in (levels[0], level)]  # fmt: skip
            if not len(base) + len(own) or not len(base) + len(late[0]) or not len(own) + len(late[1]):
                continue
            error = float(np.median(errors)) if errors and quantity == "log_step" else 0.0
            found = censored_difference(base, own, late[0], late[1], confidence, error)
            clear = not np.isnan(found.low) and (found.low > 0 or found.high < 0)
            helps = bool(np.sign(found.difference) == sign) if clear else None
            rows.append((str(level), str(levels[0]), quantity, *map(number, found), len(own) + len(late[1]),
                         len(base) + len(late[0]), helps))  # fmt: skip
    table = pl.DataFrame(rows, schema=CONTRAST_SCHEMA, orient="row")
    decided = table.filter(pl.col("quantity").is_in(DECIDING))["helps"].drop_nulls().to_list()
    if not decided:
        few = len(levels) < 2 or all(row[6] < 2 or row[7] < 2 for row in rows)
        return Contrast("open", "fewer than two runs of a value" if few else "every interval holds 0", table)
    if len(set(decided)) > 1:
        return Contrast("mixed", "it helps in one respect and harms in another", table)
    return Contrast("helps" if decided[0] else "harms", "copying forms earlier or ends more accurate"
                    if decided[0] else "copying forms later or ends less accurate", table)  # fmt: skip


def step_effect(table: pl.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Relative change of the formation step and its interval, of the last value in a contrast's table; None for what is
    not known or open."""
    rows = table.filter(pl.col("quantity") == "log_step").select("difference", "low", "high").rows()
    value, low, high = ((None if x is None else math.exp(x) - 1) for x in (rows[-1] if rows else (None,) * 3))
    return value, low, high


def _known(
    values: Sequence[Any], outcomes: Sequence[Mapping[str, float | None]], level: Any, quantity: str
) -> np.ndarray:
    found = [o.get(quantity) for value, o in zip(values, outcomes, strict=True) if value == level]
    return np.array([value for value in found if value is not None and np.isfinite(value)], dtype=float)
