"""Lines and differences where some values are only known to lie above a bound: runs not formed by their end."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import log_ndtr

from copyscope.analyses.statistics.intervals import CONFIDENCE, Difference, Slope, difference, half_from_errors, slope

WIDEST = 64
"""How many starting widths away an end of the interval is looked for; beyond it there is none."""


def censored_slope(
    x: Float[np.ndarray, " run"],
    y: Float[np.ndarray, " run"],
    x_open: Float[np.ndarray, " other"],
    y_open: Float[np.ndarray, " other"],
    errors: Float[np.ndarray, " run"] | None = None,
) -> Slope:
    """The likeliest line when `y_open` are lower bounds: normal scatter, right-censored (Tobin 1958).

    To leave such runs out pulls the slope towards 0, since it is the late ones that are missing. The 95 % interval is
    where the profile likelihood lies above the bound that gives exactly Student's interval when nothing is censored;
    an end is infinite where the open runs leave it open. `errors` as in `intervals.slope`, for `y`, which
    must lie at two values of `x` or more. With fewer than three known points the open ones are left out, and without
    any open ones this is that function. Cannot tell: whether a line is right, or the scatter even.
    """
    if not len(x_open) or len(x) < 3:
        return slope(x, y, errors)
    shift, scale = float(np.concatenate([x, x_open]).mean()), float(y.std() or 1.0)
    points = _Points(x - shift, y / scale, x_open - shift, y_open / scale)

    def best(trial: float) -> _Best:
        return _best(trial, points)

    line, spread = slope(points.x, points.y), float(x.std()) * math.sqrt(len(x))
    centre = _likeliest(best, (line.slope, line.slope + max(line.scatter, 1e-6) / spread))
    top = best(centre)
    bound, step = top.likelihood - _drop(len(x), len(x) - 2, CONFIDENCE), max(2 * top.scatter / spread, 1e-9)
    low, high = (scale * _end(best, bound, centre, sign * step) for sign in (-1, 1))
    centre *= scale
    if errors is not None:
        half = half_from_errors(x, errors)
        low, high = min(low, centre - half), max(high, centre + half)
    intercept = top.height * scale - centre * shift
    return Slope(slope=centre, low=low, high=high, intercept=intercept, scatter=top.scatter * scale)


def censored_difference(
    first: Float[np.ndarray, " run"],
    second: Float[np.ndarray, " other"],
    first_open: Float[np.ndarray, " open_run"],
    second_open: Float[np.ndarray, " open_other"],
    confidence: float = CONFIDENCE,
    error: float = 0.0,
) -> Difference:
    """Likeliest mean of the second group minus that of the first, where `_open` values are lower bounds.

    Normal with one scatter for both, right-censored, by profile likelihood as in `censored_slope`; at `confidence`. A
    group of lower bounds alone lies infinitely far off at best, and the interval has one end. `error`: standard error
    of a single value, which the scatter is taken to be no smaller than. NaN ends with fewer than two known values
    beyond one a group, or no scatter at all. Without lower bounds it is `difference`. Cannot tell: whether a run would
    have formed later, or never.
    """
    if not len(first_open) and not len(second_open):
        return difference(first, second, confidence, error)
    known = np.concatenate([first, second])
    free = len(known) - bool(len(first)) - bool(len(second))
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in (first, second) if len(group))
    scale = max(math.sqrt(squares / max(free, 1)), error)
    if free < 1 or scale == 0:
        return Difference(math.nan, math.nan, math.nan)
    if not len(first):  # the same the other way round
        swapped = censored_difference(second, first, second_open, first_open, confidence, error)
        return Difference(-swapped.difference, -swapped.high, -swapped.low)
    bounds = np.concatenate([first_open, second_open])
    points = _Points(  # a difference is the slope between x = 0 and x = 1
        np.repeat([0.0, 1.0], [len(first), len(second)]),
        (known - known.mean()) / scale,
        np.repeat([0.0, 1.0], [len(first_open), len(second_open)]),
        (bounds - known.mean()) / scale,
    )

    def best(trial: float) -> _Best:
        return _best(trial, points, error / scale)

    drop = _drop(len(known), free, confidence)
    if len(second):
        centre = _likeliest(best, (-1.0, 1.0))
        low, high = (_end(best, best(centre).likelihood - drop, centre, step) for step in (-2.0, 2.0))
        return Difference(centre * scale, low * scale, high * scale)
    # The likeliest second group is infinitely late: the first alone gives the greatest likelihood.
    count = len(first_open)
    alone = _Points(points.x, points.y, points.x_open[:count], points.y_open[:count])
    greatest = _best(0.0, alone, error / scale).likelihood
    far = float(np.ptp(np.concatenate([points.y, points.y_open]))) + 10
    return Difference(math.inf, _end(best, greatest - drop, far, -2.0) * scale, math.inf)


@dataclass(frozen=True)
class _Points:
    """Points that are known, and points that are only known to lie above `y_open`."""

    x: Float[np.ndarray, " run"]
    y: Float[np.ndarray, " run"]
    x_open: Float[np.ndarray, " open_run"]
    y_open: Float[np.ndarray, " open_run"]


class _Best(NamedTuple):
    """The likeliest model with a given slope."""

    likelihood: float
    """Its logarithm."""
    height: float
    """Of the line at x = 0."""
    scatter: float
    """About the line."""


def _best(trial: float, points: _Points, least: float = 0.0) -> _Best:
    """The likeliest line of slope `trial` through the known points and above the open ones; its scatter >= `least`."""
    level, open_level = points.y - trial * points.x, points.y_open - trial * points.x_open

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        # Olsen's parameters, 1/scatter (here its logarithm) and height/scatter: one greatest value.
        inverse = math.exp(p[0])
        residuals, above = inverse * level - p[1], inverse * open_level - p[1]
        beyond = log_ndtr(-above)
        hazard = np.exp(-0.5 * above**2 - beyond) / math.sqrt(2 * math.pi)
        value = len(level) * p[0] - 0.5 * float(residuals @ residuals) + float(beyond.sum())
        along_scatter = len(level) - inverse * float(residuals @ level + hazard @ open_level)
        return -value, -np.array([along_scatter, float(residuals.sum() + hazard.sum())])

    start = max(float(level.std()), least, 1e-6)
    begin = np.array([-math.log(start), float(level.mean()) / start])
    if least:
        fit = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=[(None, -math.log(least)), (None, None)])
    else:
        fit = minimize(loss, begin, jac=True, method="BFGS")
    return _Best(-float(fit.fun), float(fit.x[1] / math.exp(fit.x[0])), math.exp(-fit.x[0]))


def _likeliest(best: Callable[[float], _Best], bracket: tuple[float, float]) -> float:
    """The slope of greatest profile likelihood, looked for from `bracket` outwards."""
    return float(cast(Any, minimize_scalar(lambda trial: -best(trial).likelihood, bracket=bracket)).x)


def _drop(count: int, free: int, confidence: float) -> float:
    """How far the log-likelihood falls at the ends of an interval: Student's, were nothing censored."""
    return 0.5 * count * math.log1p(float(stats.t.ppf((1 + confidence) / 2, free)) ** 2 / free)


def _end(best: Callable[[float], _Best], level: float, start: float, step: float) -> float:
    """Where the profile likelihood falls to `level`, on the side that `step` points to; infinite if it does not."""
    tried = (start + step * 2.0**k for k in range(WIDEST.bit_length()))
    far = next((end for end in tried if best(end).likelihood < level), None)
    if far is None:
        return math.copysign(math.inf, step)
    return cast(float, brentq(lambda trial: level - best(trial).likelihood, start, far, xtol=1e-6))
