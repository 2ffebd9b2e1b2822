"""A change point on the log-step axis: one smooth rise fitted to a curve by least squares, with a bootstrap interval.

The model is value = low + (high − low) · logistic((x − centre) / width), x = ln(1 + step). A segmentation into constant
pieces (as `ruptures` offers) was weighed and left: it knows positions in the list of checkpoints only, cuts a rise that
takes several checkpoints into several changes, and gives neither a width nor an interval. Here centre and width come
from a grid (every gap between checkpoints in up to sixteen parts, six widths), the two levels in closed form; so a fit
is one matrix product, a bootstrap of hundreds of refits another, and no optimiser can fail to converge.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FINEST, MOST_PARTS = 0.04, 16
"""Every gap between checkpoints is cut into parts of 4 % of the step, sixteen at most."""
WIDTHS = (0.03, 0.08, 0.15, 0.3, 0.6, 1.0)
"""Logistic scales, in ln(1 + step): from 10 to 90 % takes a factor exp(4.39 · width), 1.1 to 80, in steps."""
TEN_TO_NINETY = 2 * np.log(9.0)
"""Width of 10–90 % of a logistic, in units of its scale."""
DRAWS = 200
NEAR = 60.0
"""How many variances more than the best a shape may leave and still be tried in the bootstrap."""


class ChangePoint(NamedTuple):
    """One fitted rise. Positions in ln(1 + step)."""

    centre: float
    """Half-way up: the mean over the grid, each place weighted by its likelihood."""
    width: float
    """Logistic scale of the best fit; within one gap between checkpoints it is not known."""
    low: float
    high: float
    fitted: Float[np.ndarray, " step"]
    """The best fit at the checkpoints."""


class _Grid(NamedTuple):
    centres: Float[np.ndarray, " shape"]
    widths: Float[np.ndarray, " shape"]
    weights: Float[np.ndarray, " shape"]
    """Length of the axis that a centre stands for."""
    curves: Float[np.ndarray, "shape step"]
    """The logistic curves, 0 to 1."""
    unit: Float[np.ndarray, "shape step"]
    """The same, mean 0 and norm 1."""


def log_steps(steps: Int[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
    """ln(1 + step), so that step 0 has a place."""
    return np.log1p(steps.astype(float))


@lru_cache(maxsize=128)
def _grid(places: tuple[float, ...]) -> _Grid:
    x = np.array(places)
    gaps = np.diff(x)
    parts = np.clip(np.ceil(gaps / FINEST), 1, MOST_PARTS).astype(int)
    at = np.concatenate([a + gap * (np.arange(n) + 0.5) / n for a, gap, n in zip(x, gaps, parts, strict=False)])
    centres, widths = np.repeat(at, len(WIDTHS)), np.tile(WIDTHS, len(at))
    weights = np.repeat(np.repeat(gaps / parts, parts), len(WIDTHS))
    curves = 1 / (1 + np.exp(-np.clip((x - centres[:, None]) / widths[:, None], -50, 50)))
    # A rise of which the window shows only one side would be fitted with a level that nobody saw.
    seen = (curves[:, 0] <= 0.25) & (curves[:, -1] >= 0.75)
    centres, widths, weights, curves = centres[seen], widths[seen], weights[seen], curves[seen]
    unit = curves - curves.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return _Grid(centres, widths, weights, curves, unit)


class _Fits(NamedTuple):
    weight: Float[np.ndarray, "shape draw"]
    """Likelihood of every shape, added up to 1; falling shapes count as flat ones."""
    left: Float[np.ndarray, "shape draw"]
    """Sum of squares that each shape leaves."""
    slope: Float[np.ndarray, "shape draw"]
    """Projection on the unit shape."""
    variance: Float[np.ndarray, " draw"]
    """Of the residuals of the best fit."""


def _fit_all(grid: _Grid, values: Float[np.ndarray, "step draw"]) -> _Fits:
    centred = values - values.mean(axis=0)
    slope = np.maximum(grid.unit @ centred, 0)
    total = (centred**2).sum(axis=0)
    left = total - slope**2
    best = left.min(axis=0)
    variance = np.maximum(best / max(len(values) - 4, 1), 1e-6 * total + 1e-30)
    weight = grid.weights[:, None] * np.exp(-(left - best) / (2 * variance))
    return _Fits(weight / weight.sum(axis=0), left, slope, variance)


def fit_change(steps: Int[np.ndarray, " step"], values: Float[np.ndarray, " step"]) -> ChangePoint:
    """The rise that fits `values` (any unit) best in least squares; at least two ascending steps.

    Cannot tell: whether there is a rise at all (a constant curve gets one of height 0); falls; a second rise.
    """
    grid = _grid(tuple(log_steps(steps)))
    fits = _fit_all(grid, values[:, None])
    best = int(np.argmin(fits.left[:, 0]))
    curve = grid.curves[best]
    height = float(fits.slope[best, 0] / np.linalg.norm(curve - curve.mean()))
    low = float(values.mean() - height * curve.mean())
    centre = float(grid.centres @ fits.weight[:, 0])
    return ChangePoint(centre, float(grid.widths[best]), low, low + height, low + height * curve)


def bootstrap_centres(
    steps: Int[np.ndarray, " step"],
    values: Float[np.ndarray, " step"],
    fit: ChangePoint,
    errors: Float[np.ndarray, " step"] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Float[np.ndarray, " draw"]:
    """Centres refitted to the fit plus noise, in ln(1 + step).

    `errors`: standard error of each value over prompts, in the unit of the values: noise is drawn from these. None:
    a normal number times the residual, half its own and half the typical one (a wild bootstrap: the noise may differ
    along the curve), and as alike from one checkpoint to the next as the residuals are; neighbouring checkpoints then
    stand in for repetitions. Cannot tell: what another seed of training would give.
    """
    noise = np.random.default_rng(seed).standard_normal((len(values), draws))
    rest = values - fit.fitted
    likeness = _likeness(rest)
    # Four numbers are fitted; to noise that wanders they fit as well as more would to noise that does not.
    taken = 4 * (1 + likeness) / (1 - likeness)
    squares = rest**2 * len(values) / max(len(values) - taken, len(values) / 4, 1)
    spread = np.sqrt((squares + squares.mean()) / 2) if errors is None else errors
    if errors is None:
        noise = _wander(noise, likeness)
    grid = _grid(tuple(log_steps(steps)))
    first = _fit_all(grid, values[:, None])
    # What leaves many variances more than the best fit will not be the best fit of a draw either.
    near = first.left[:, 0] - first.left.min() <= NEAR * max(first.variance[0], float((spread**2).mean()))
    grid = _Grid(*(part[near] for part in grid))
    return grid.centres @ _fit_all(grid, fit.fitted[:, None] + spread[:, None] * noise).weight


def _likeness(rest: Float[np.ndarray, " step"]) -> float:
    """Correlation of neighbouring residuals, in [0, 0.9]; fitting makes it too small by about (1 + 3 r) / n."""
    total = float((rest**2).sum())
    if len(rest) < 8 or total == 0:
        return 0.0
    found = float(rest[1:] @ rest[:-1]) / total
    return float(np.clip(found + (1 + 3 * found) / len(rest), 0.0, 0.9))


def _wander(noise: Float[np.ndarray, "step draw"], likeness: float) -> Float[np.ndarray, "step draw"]:
    """White noise of variance 1 made into noise of variance 1 whose neighbours correlate by `likeness`."""
    out = noise.copy()
    for i in range(1, len(noise)):
        out[i] = likeness * out[i - 1] + np.sqrt(1 - likeness**2) * noise[i]
    return out
