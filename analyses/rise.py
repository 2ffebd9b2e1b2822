"""When does a noisy curve rise for good? The one rule behind every formation step, on plain arrays."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

CONFIRM = 3
"""Consecutive checkpoints that must agree: one lucky checkpoint is not a formation."""
Z = 4.0
"""Noise units (robust standard deviations) a rise has to stand clear of."""
MIN_SHARE = 0.1
"""Least rise, as a share of the room between the floor and the top of the measure's range: below it a rise may be
real but does not make, say, an induction head."""


class Rise(NamedTuple):
    """Where a curve rose. Indices point into the curve; None where it did not happen."""

    index: int | None
    """First point at which the curve is at least half-way up and stays there for `confirm` points."""
    height: float
    """Highest level held for `confirm` consecutive points, over the floor."""
    fell_back: bool
    """It rose, but its last points (median) are below half-way again."""
    unconfirmed: bool
    """It did not rise by the rule, but its last point stands clear: a later checkpoint would decide."""


def robust_sd(values: Float[np.ndarray, " n"]) -> float:
    """Standard deviation from the median absolute deviation (× 1.4826), so that the few heads or steps that do rise
    do not count as noise. 0 for fewer than two values. What it cannot tell: noise that hits fewer than half the values.
    """
    if len(values) < 2:
        return 0.0
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def step_noise(values: Float[np.ndarray, " step"]) -> float:
    """Noise of a curve from one checkpoint to the next: robust sd of its changes / √2. Blind to slow drift."""
    return robust_sd(np.diff(values)) / np.sqrt(2.0)


def first_run(mask: Bool[np.ndarray, " step"], length: int) -> int | None:
    """Index at which `mask` first holds for `length` consecutive points; None if it never does."""
    if len(mask) < length:
        return None
    starts = np.lib.stride_tricks.sliding_window_view(mask, length).all(axis=1)
    return int(np.argmax(starts)) if starts.any() else None


def sustained_peak(values: Float[np.ndarray, " step"], length: int) -> float:
    """Highest level that `values` holds for `length` consecutive points (all points when there are fewer)."""
    windows = np.lib.stride_tricks.sliding_window_view(values, min(length, len(values)))
    return float(windows.min(axis=1).max())


def find_rise(excess: Float[np.ndarray, " step"], margin: float, confirm: int = CONFIRM) -> Rise:
    """Find the rise in `excess`, a curve minus its floor (what it would be without the thing looked for).

    The height is the highest level held for `confirm` consecutive points. If it is below `margin` there is no rise.
    Otherwise the rise is at the first point from which the curve is at or above half the height for `confirm` points.
    Half of its own height makes the place independent of the curve's scale.
    """
    height = sustained_peak(excess, confirm)
    if not height >= margin or height <= 0:
        return Rise(None, height, fell_back=False, unconfirmed=bool(excess[-1] >= margin > 0))
    index = first_run(excess >= height / 2, confirm)
    fell_back = bool(np.median(excess[-confirm:]) < height / 2)
    return Rise(index, height, fell_back, unconfirmed=False)


def crossing(low_step: int, high_step: int, low_value: float, high_value: float, level: float) -> float:
    """Step at which a straight line on a log(1 + step) axis passes `level` between two checkpoints.

    1 + step so that step 0 has a place. A guess inside the bracket, no more precise than the checkpoints' spacing.
    """
    if high_value <= low_value:
        return float(high_step)
    share = float(np.clip((level - low_value) / (high_value - low_value), 0.0, 1.0))
    low, high = np.log1p(low_step), np.log1p(high_step)
    return float(np.expm1(low + share * (high - low)))
