"""A change point on the log-step axis: when half of a rise is done, with a 95 % interval that allows for its noise.

The model is value = low + (high − low) · shape((x − centre) / width) + noise, x = ln(1 + step). Three shapes (a
logistic, one that is faster at its beginning, one that is faster at its end) are half-way up at their centre; a rise in
two stages is the sum of two logistics. The noise is normal. Its size is fitted, but taken to be no smaller than the
standard errors over prompts; neighbouring checkpoints correlate by 0 to 0.95, and the noise may grow with the rise.
All combinations on a grid are weighted by their likelihood, with the levels in closed form, and the interval holds
95 % of the weight. No optimiser can fail to converge.

Alternatives that were weighed: a bootstrap over prompts alone, whose intervals miss the truth where checkpoints jump
about by more than prompts explain, as they do in training; a segmentation into constant pieces (as `ruptures` offers),
which knows positions in the list of checkpoints only, cuts a rise over several checkpoints into several changes, and
gives neither a width nor an interval.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from copyscope.analyses.statistics.rises import Curves, shapes, two_stages

FINEST, MAX_PARTS = 0.04, 16
"""Every gap between checkpoints is cut into parts of 4 % of the step, sixteen at most."""
WIDTHS = (0.03, 0.08, 0.15, 0.3, 0.6, 1.0)
"""In ln(1 + step): from 10 to 90 % of a logistic takes a factor exp(4.39 · width), 1.1 to 80, in steps."""
TEN_TO_NINETY = 2 * np.log(9.0)
"""Width of 10–90 % of a logistic, in units of its scale."""
CORRELATIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
"""Of the noise of neighbouring checkpoints, all as likely beforehand."""
GROWTHS = (1.0, 5.0)
"""Noise at the top of the rise over noise at its foot."""
NEAR = 200.0
"""How many variances more than the best a curve may leave and still be tried with correlated noise."""
BEFORE = 1.5
"""How far before the first checkpoint a rise may have its centre, in ln(1 + step), where that is not step 0."""
MAX_CURVES = 600
"""Where noise leaves more curves than this as likely, so many of them are drawn."""
WILD = 0.1
"""Jitter of checkpoints, as a share of the rise, from which intervals are widened."""
LEAST_TAIL = 0.004
"""Weight that is left off at either end of an interval, at least: less would leave off nothing."""
MISFIT = 0.02
"""No rise follows any of these curves better than by this share of its height (standard deviation)."""


@dataclass(frozen=True)
class ChangePoint:
    """One fitted rise. Positions in ln(1 + step)."""

    centre: float
    """Half-way up: the mean over all combinations, weighted by their likelihood."""
    interval: tuple[float, float]
    """95 % interval of the centre."""
    width: float
    """Logistic scale of the likeliest curve; within one gap between checkpoints it is not known."""
    low: float
    high: float
    begun: float
    """Probability that a tenth of the rise or more was done at the first checkpoint; 0 if that is step 0."""
    fitted: Float[np.ndarray, " step"]
    """The likeliest curve at the checkpoints."""
    two_stages: float
    """Probability that the rise has two stages with a plateau between them."""
    stages: tuple[float, float] | None
    """Where the stages of the likeliest such curve are half-way up; None if none is likely at all."""


def log_steps(steps: Int[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
    """ln(1 + step), so that step 0 has a place."""
    return np.log1p(steps.astype(float))


@lru_cache(maxsize=128)
def _curves(places: tuple[float, ...]) -> Curves:
    """Rises in one stage."""
    x = np.array(places)
    edges = x if x[0] == 0 else np.concatenate([[x[0] - min(BEFORE, x[0])], x])
    gaps = np.diff(edges)
    parts = np.clip(np.ceil(gaps / FINEST), 1, MAX_PARTS).astype(int)
    at = np.concatenate([a + gap * (np.arange(n) + 0.5) / n for a, gap, n in zip(edges, gaps, parts, strict=False)])
    centres, widths = np.repeat(at, len(WIDTHS)), np.tile(WIDTHS, len(at))
    weights = np.repeat(np.repeat(gaps / parts, parts), len(WIDTHS))
    values = np.concatenate(shapes((x - centres[:, None]) / widths[:, None]))
    centres, widths, weights = (np.tile(part, 3) for part in (centres, widths, weights))
    # A rise of which the checkpoints show only the beginning would be fitted with a top that nobody saw. A foot that
    # nobody saw is possible only where the series begins after the training.
    seen = (values[:, -1] >= 0.75) & (values[:, 0] <= (0.25 if x[0] == 0 else 0.75))
    seen &= np.ptp(values, axis=1) > 0.2
    return Curves(centres, widths, weights, values, np.full((len(centres), 2), np.nan)).where(seen)


def fit_change(
    steps: Int[np.ndarray, " step"],
    values: Float[np.ndarray, " step"],
    errors: Float[np.ndarray, " step"] | None = None,
) -> ChangePoint:
    """The rise in `values` (any unit), and when it was half-way up; at least two ascending steps.

    `errors`: standard errors of the values over prompts, in their unit: the noise is taken to be no smaller. What
    it is beyond that (checkpoints jump about by more than other prompts would explain) the residuals say. Cannot tell:
    whether there is a rise at all (a constant curve gets one of height 0); falls; what another seed of training gives.
    """
    curves = _curves(tuple(log_steps(steps)))
    centred = curves.values - curves.values.mean(axis=1, keepdims=True)
    norms = (centred**2).sum(axis=1)
    deviations = values - values.mean()
    total = float(deviations @ deviations)
    residual = total - np.maximum(centred @ deviations, 0) ** 2 / norms
    free = max(len(values) - 4, 1)
    height = float(np.max(deviations) - np.min(deviations))
    smallest = (MISFIT * height) ** 2 + 1e-30
    if errors is not None:
        smallest = max(smallest, float((errors**2).mean()))
    near = residual - residual.min() <= NEAR * max(float(residual.min()) / free, smallest)
    prior = float(curves.weights.sum())
    best = curves.values[int(np.argmin(residual))]
    if near.sum() > MAX_CURVES:
        keep = np.random.default_rng(0).choice(np.nonzero(near)[0], MAX_CURVES, replace=False)
        near = np.zeros_like(near)
        near[keep] = True
        near[int(np.argmin(residual))] = True
    curves = curves.where(near)
    curves += two_stages(tuple(log_steps(steps)), deviations, float(residual.min()), prior)
    weights = _weights(curves, values, best, smallest)
    likeliest = int(np.argmax(weights / curves.weights))
    curve = curves.values[likeliest]
    unit = curve - curve.mean()
    height = max(float(unit @ values) / float(unit @ unit), 0.0)
    low = float(values.mean() - height * curve.mean())
    begun = float(weights[curves.values[:, 0] > 0.1].sum()) if steps[0] > 0 else 0.0
    staged = np.where(np.isnan(curves.stages[:, 0]), 0.0, weights)
    first, second = curves.stages[int(np.argmax(staged))].tolist()
    stages = (first, second) if staged.any() else None
    return ChangePoint(
        centre=float(curves.centres @ weights),
        interval=_quantiles(curves.centres, weights, _tail(residual.min() / free, height)),
        width=float(curves.widths[likeliest]),
        low=low,
        high=low + height,
        begun=begun,
        fitted=low + height * curve,
        two_stages=float(staged.sum()),
        stages=stages,
    )


def _weights(
    curves: Curves, values: Float[np.ndarray, " step"], best: Float[np.ndarray, " step"], smallest: float
) -> Float[np.ndarray, " curve"]:
    """Likelihood of every curve over all kinds of noise, added up to 1; falling curves count as flat ones.

    `smallest`: least variance of the noise. Levels and the noise's size are those that fit best (with the restricted
    likelihood's correction, without which correlated noise would pass for a better fit).
    """
    count = len(values)
    free = max(count - 2, 1)
    norms = ((curves.values - curves.values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    logs = []
    for growth in GROWTHS:
        size = 1 + (growth - 1) * np.clip(best, 0, 1)
        size /= np.exp(np.log(size).mean())
        for correlation in CORRELATIONS:
            level, value, rises = (_white(part / size, correlation) for part in (np.ones(count), values, curves.values))
            squared = level @ level
            rises = rises - np.outer(rises @ level, level / squared)
            value = value - (value @ level) / squared * level
            squares = (rises**2).sum(axis=1)
            residual = np.maximum(value @ value - np.maximum(rises @ value, 0) ** 2 / squares, 1e-30)
            ample = residual > free * smallest
            fit = np.where(ample, np.log(residual / free) + 1, np.log(smallest) + residual / (free * smallest))
            restricted = np.log(squared / count) + np.log(squares / norms)
            logs.append(-0.5 * (free * fit + restricted + (count - 1) * np.log1p(-(correlation**2))))
    table = np.array(logs)
    weights = (np.exp(table - table.max())).sum(axis=0) * curves.weights
    return weights / weights.sum()


def _white(values: Float[np.ndarray, "... step"], correlation: float) -> Float[np.ndarray, "... step"]:
    """Noise of variance 1 whose neighbours correlate, made into noise whose neighbours do not."""
    later = (values[..., 1:] - correlation * values[..., :-1]) / np.sqrt(1 - correlation**2)
    return np.concatenate([values[..., :1], later], axis=-1)


def _tail(variance: float, height: float) -> float:
    """Share of the weight beyond each end of the interval: 2.5 %, less where checkpoints jump about by more than
    `WILD` of the rise. Noise then hides which shape a rise has, and the shapes weighed are not all there are."""
    jump = float(np.sqrt(max(variance, 0.0))) / max(height, 1e-30)
    return max(0.025 * min(1.0, WILD / max(jump, 1e-30)) ** 4, LEAST_TAIL)


def _quantiles(
    at: Float[np.ndarray, " curve"], weights: Float[np.ndarray, " curve"], tail: float
) -> tuple[float, float]:
    """Between which places all weight but the `tail` on either side lies, and half a part of the grid more."""
    order = np.argsort(at)
    total = np.cumsum(weights[order])
    low, high = np.searchsorted(total, (tail, 1 - tail))
    return float(at[order[low]]) - FINEST / 2, float(at[order[min(high, len(at) - 1)]]) + FINEST / 2
