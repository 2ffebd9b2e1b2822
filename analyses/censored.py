"""A line through points of which some are only known to lie above a value: runs that had not formed by their end."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import log_ndtr

from analyses.bootstrap import CONFIDENCE, Slope, half_from_errors, slope

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
    an end is infinite where the open runs leave it open. `errors` as in `analyses.bootstrap.slope`, for `y`, which
    must lie at two values of `x` or more. With fewer than three known points the open ones are left out, and without
    any open ones this is that function. Cannot tell: whether a line is right, or the scatter even.
    """
    if not len(x_open) or len(x) < 3:
        return slope(x, y, errors)
    x_all = np.concatenate([x, x_open])
    shift, scale = float(x_all.mean()), float(y.std() or 1.0)
    known, bound = (x - shift, y / scale), (x_open - shift, y_open / scale)

    def best(trial: float) -> tuple[float, float, float]:
        """Greatest log-likelihood with this slope, and the line's height at the middle and scatter there."""
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

        start = max(float(level.std()), 1e-6)
        found = minimize(loss, np.array([-math.log(start), float(level.mean()) / start]), jac=True, method="BFGS")
        return -float(found.fun), float(found.x[1] / math.exp(found.x[0])), math.exp(-found.x[0])

    line, spread = slope(*known), float(x.std()) * math.sqrt(len(x))
    bracket = (line.slope, line.slope + max(line.left, 1e-6) / spread)
    found = float(cast(Any, minimize_scalar(lambda trial: -best(trial)[0], bracket=bracket)).x)
    greatest, height, left = best(found)
    free = len(x) - 2
    drop = 0.5 * len(x) * math.log1p(float(stats.t.ppf((1 + CONFIDENCE) / 2, free)) ** 2 / free)
    step = max(2 * left / spread, 1e-9)
    ends = []
    for sign in (-1, 1):
        tried = (found + sign * step * 2.0**k for k in range(WIDEST.bit_length()))
        far = next((end for end in tried if greatest - best(end)[0] > drop), None)
        ends.append(sign * math.inf if far is None else _root(lambda s: greatest - best(s)[0] - drop, found, far))
    low, high = (end * scale for end in ends)
    if errors is not None:
        half = half_from_errors(x, errors)
        low, high = min(low, found * scale - half), max(high, found * scale + half)
    return Slope(found * scale, low, high, height * scale - found * scale * shift, left * scale)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return cast(float, brentq(function, low, high, xtol=1e-6))
