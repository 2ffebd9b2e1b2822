"""Intervals over runs: of a mean, of a difference between two groups, of a slope. Small pure functions on arrays."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """second − first, in the unit of the values."""

    difference: float
    low: float
    high: float
    """Interval; NaN where a group has fewer than two values."""


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Least-squares line through points (x, y)."""

    slope: float
    low: float
    high: float
    """95 % interval; NaN with fewer than three points."""
    intercept: float
    scatter: float
    """Root mean square of the residuals, in the unit of y."""


def t_interval(values: Float[np.ndarray, " run"], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of the mean by Student's t; (NaN, NaN) for fewer than two values.

    A bootstrap over three or four seeds would be far too narrow. It takes the values as roughly normal: give logs of
    steps. Cannot tell: anything about other recipes than the one whose seeds these are.
    """
    if len(values) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def prediction_interval(
    values: Float[np.ndarray, " run"], confidence: float = CONFIDENCE, error: float = 0.0
) -> tuple[float, float]:
    """Where one more value like these falls, by Student's t; (NaN, NaN) for fewer than two values.

    `error`: standard error of a single value, where known: values are taken to scatter by no less. It takes the values
    as roughly normal: give logs of steps. With few values it is wide, since their scatter itself is
    hardly known: 3 values give 4.97 standard deviations to either side, 9 give 2.43.
    """
    if len(values) < 2:
        return math.nan, math.nan
    count, centre = len(values), float(values.mean())
    scatter = max(float(values.std(ddof=1)), error)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * scatter * math.sqrt(1 + 1 / count)
    return centre - half, centre + half


def over_runs(
    steps: Float[np.ndarray, " run"], low: Float[np.ndarray, " run"], high: Float[np.ndarray, " run"]
) -> tuple[float, float, float]:
    """Geometric mean of formation steps (or of ratios of steps) over seeds, with its 95 % interval; all > 0.

    Student's interval of the mean of ln step, but to either side no narrower than the runs' own intervals (median of
    `low` and `high` against the step): checkpoints as far apart in every run hide the same in all. A single run keeps
    its own. Cannot tell: anything about another recipe.
    """
    logs = np.log(steps)
    centre = float(logs.mean())
    down = float(np.median(logs - np.log(low)))
    up = float(np.median(np.log(high) - logs))
    between = t_interval(logs)
    if len(steps) > 1:
        down, up = max(down, centre - between[0]), max(up, between[1] - centre)
    return math.exp(centre), math.exp(centre - down), math.exp(centre + up)


def difference(
    first: Float[np.ndarray, " run"],
    second: Float[np.ndarray, " other"],
    confidence: float = CONFIDENCE,
    error: float = 0.0,
) -> Difference:
    """Mean of `second` minus mean of `first` with Welch's interval (the groups may scatter differently).

    `error`: standard error of a single value, where known: runs are taken to scatter by no less. Groups without any
    scatter at all give no interval: two equal numbers do not show that a third would be equal too.
    """
    centre = float(np.mean(second) - np.mean(first))
    if min(len(first), len(second)) < 2:
        return Difference(centre, math.nan, math.nan)
    parts = [max(float(np.var(group, ddof=1)), error**2) / len(group) for group in (first, second)]
    total = sum(parts)
    if total == 0:
        return Difference(centre, math.nan, math.nan)
    free = total**2 / sum(p**2 / (len(g) - 1) for p, g in zip(parts, (first, second), strict=True))
    half = float(stats.t.ppf((1 + confidence) / 2, free)) * math.sqrt(total)
    return Difference(centre, centre - half, centre + half)


def slope(
    x: Float[np.ndarray, " run"], y: Float[np.ndarray, " run"], errors: Float[np.ndarray, " run"] | None = None
) -> Slope:
    """The line y = intercept + slope · x by least squares, with Student's 95 % interval of the slope.

    `errors`: standard errors of `y` (half the width of a 95 % interval / 1.96). The scatter about the line is taken to
    be no smaller than these: three points that happen to lie on a line are not known that well. `x` must not be
    constant. Cannot tell: whether a line is right.
    """
    line: Any = stats.linregress(x, y)
    centre, intercept = float(line.slope), float(line.intercept)
    half = math.nan
    if len(x) >= 3:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * line.stderr)
        half = half if errors is None else max(half, half_from_errors(x, errors))
    scatter = float(np.sqrt(((y - intercept - centre * x) ** 2).mean()))
    return Slope(slope=centre, low=centre - half, high=centre + half, intercept=intercept, scatter=scatter)


def half_from_errors(x: Float[np.ndarray, " run"], errors: Float[np.ndarray, " run"]) -> float:
    """Half the 95 % interval of a least-squares slope over `x` that the standard `errors` of the points alone give."""
    centred = x - x.mean()
    return 1.96 * math.sqrt(float((centred**2 * errors**2).sum())) / float((centred**2).sum())
