"""Lines and differences where some values are only known to lie above a bound: runs not formed by their end."""

import math
from collections.abc import Callable
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
    x_all = np.concatenate([x, x_open])
    shift, scale = float(x_all.mean()), float(y.std() or 1.0)
    known, bound = (x - shift, y / scale), (x_open - shift, y_open / scale)

    def best(trial: float) -> _Best:
        return _best(trial, known, bound)

    line, spread = slope(*known), float(x.std()) * math.sqrt(len(x))
    bracket = (line.slope, line.slope + max(line.left, 1e-6) / spread)
    found = float(cast(Any, minimize_scalar(lambda trial: -best(trial).likelihood, bracket=bracket)).x)
    greatest, height, left = best(found)
    drop, step = _drop(len(x), len(x) - 2, CONFIDENCE), max(2 * left / spread, 1e-9)
    low, high = (scale * _end(best, greatest - drop, found, sign * step) for sign in (-1, 1))
    if errors is not None:
        half = half_from_errors(x, errors)
        low, high = min(low, found * scale - half), max(high, found * scale + half)
    return Slope(found * scale, low, high, height * scale - found * scale * shift, left * scale)


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
    count = len(first) + len(second)
    free = count - bool(len(first)) - bool(len(second))
    rest = np.concatenate([group - group.mean() for group in (first, second) if len(group)] or [np.empty(0)])
    scale = max(float(np.sqrt((rest**2).sum() / max(free, 1))), error)
    if free < 1 or scale == 0:
        return Difference(math.nan, math.nan, math.nan)
    centre = float(np.concatenate([first, second]).mean())
    known = np.repeat([0.0, 1.0], [len(first), len(second)]), (np.concatenate([first, second]) - centre) / scale
    bound = (np.repeat([0.0, 1.0], [len(first_open), len(second_open)]),
             (np.concatenate([first_open, second_open]) - centre) / scale)  # fmt: skip

    def best(trial: float) -> _Best:
        return _best(trial, known, bound, error / scale)

    drop = _drop(count, free, confidence)
    if len(first) and len(second):
        found = float(cast(Any, minimize_scalar(lambda trial: -best(trial).likelihood, bracket=(-1.0, 1.0))).x)
        ends = [_end(best, best(found).likelihood - drop, found, sign * 2.0) for sign in (-1, 1)]
        return Difference(found * scale, ends[0] * scale, ends[1] * scale)
    group = 0.0 if len(first) else 1.0  # the one with known values
    sign = 1.0 if len(first) else -1.0
    own = bound[0] == group
    greatest = _best(0.0, known, (bound[0][own], bound[1][own]), error / scale).likelihood  # the other is far off
    far = sign * (np.ptp(np.concatenate([known[1], bound[1]])) + 10)
    end = _end(best, greatest - drop, far, -sign * 2.0) * scale
    return Difference(sign * math.inf, *((end, math.inf) if sign > 0 else (-math.inf, end)))


class _Best(NamedTuple):
    """The likeliest model with a given slope."""

    likelihood: float
    """Its logarithm."""
    height: float
    """Of the line at x = 0."""
    left: float
    """Scatter about the line."""


def _best(
    trial: float,
    known: tuple[Float[np.ndarray, " run"], Float[np.ndarray, " run"]],
    bound: tuple[Float[np.ndarray, " open_run"], Float[np.ndarray, " open_run"]],
    least: float = 0.0,
) -> _Best:
    """The likeliest line of slope `trial` through `known` points and above `bound` ones; its scatter at `least`."""
    level, open_level = known[1] - trial * known[0], bound[1] - trial * bound[0]

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        # Olsen's parameters, 1/scatter (here its logarithm) and height/scatter: one greatest value.
        inverse = math.exp(p[0])
        rest, above = inverse * level - p[1], inverse * open_level - p[1]
        beyond = log_ndtr(-above)
        hazard = np.exp(-0.5 * above**2 - beyond) / math.sqrt(2 * math.pi)
        value = len(level) * p[0] - 0.5 * float(rest @ rest) + float(beyond.sum())
        return -value, -np.array([
            len(level) - inverse * float(rest @ level + hazard @ open_level), float(rest.sum() + hazard.sum())
        ])  # fmt: skip

    start = max(float(level.std()), least, 1e-6)
    begin = np.array([-math.log(start), float(level.mean()) / start])
    if least:
        found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=[(None, -math.log(least)), (None, None)])
    else:
        found = minimize(loss, begin, jac=True, method="BFGS")
    return _Best(-float(found.fun), float(found.x[1] / math.exp(found.x[0])), math.exp(-found.x[0]))


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
