"""Updates or tokens: how the step at which copying forms scales with the batch size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from copyscope.analyses.statistics.censored import censored_slope

LAWS = {0.0: "updates only", -0.5: "square root", -1.0: "tokens only"}
"""steps ∝ batch size ^ exponent: the same number of updates (2409.09281), the square-root law (2511.16893), the same
number of tokens."""
NONE = np.empty(0)
MIN_SPAN = 4.0
"""Largest over smallest batch size, at least: over less the laws lie too close together."""


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """steps ∝ batch size ^ exponent, with the law that it leaves."""

    exponent: float = np.nan
    low: float = np.nan
    high: float = np.nan
    """95 % interval; NaN with fewer than three runs."""
    law: str | None = None
    """The one of `LAWS` that the interval leaves; None if it leaves several or none."""
    reason: str
    enough: bool = False
    """Three batch sizes, the largest four times the smallest: enough to name a law, or to rule one out."""
    n_runs: int


def batch_exponent(
    batch_size: Float[np.ndarray, " run"],
    step: Float[np.ndarray, " run"],
    low: Float[np.ndarray, " run"],
    high: Float[np.ndarray, " run"],
    open_size: Float[np.ndarray, " other"] = NONE,
    open_step: Float[np.ndarray, " other"] = NONE,
) -> Exponent:
    """Least squares of ln step on ln batch size, over runs (all > 0); `low`, `high`: 95 % interval of each step.

    `open_size`, `open_step`: batch sizes and last steps of runs that had not formed by then; they count as later
    (`analyses.statistics.censored`).

    The interval of the exponent is Student's, but no narrower than the steps' own intervals make it. A law is named if
    it is the only one of three inside. It takes three batch sizes, the largest four times the smallest. Cannot tell:
    whether one exponent holds over the whole range, or beyond it.
    """
    sizes = np.unique(batch_size)
    if len(sizes) < 2:
        return Exponent(reason="all runs have one batch size", n_runs=len(step))
    error = (np.log(high) - np.log(np.maximum(low, 0.5))) / (2 * 1.96)
    line = censored_slope(np.log(batch_size), np.log(step), np.log(open_size), np.log(open_step), error)
    estimate: Any = {"exponent": line.slope, "low": line.low, "high": line.high, "n_runs": len(step)}
    if len(sizes) < 3 or sizes[-1] < MIN_SPAN * sizes[0]:
        few = f"{len(sizes)} batch sizes from {sizes[0]:g} to {sizes[-1]:g}"
        return Exponent(**estimate, reason=f"{few}; it takes three that span a factor of {MIN_SPAN:g}")
    inside = [name for law, name in LAWS.items() if line.low <= law <= line.high]
    reason = f"the interval holds {' and '.join(inside)}" if inside else "the interval holds none of the three laws"
    if len(inside) == 1:
        reason = "the only one of the three laws inside the interval"
    return Exponent(**estimate, law=inside[0] if len(inside) == 1 else None, reason=reason, enough=True)
