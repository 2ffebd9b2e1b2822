"""Has a noisy curve risen to a level and held it, and when? The rule behind every formation step, on plain arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from copyscope.analyses.statistics.change_point import TEN_TO_NINETY, bootstrap_centres, fit_change, log_steps

CONFIRM = 3
"""Consecutive checkpoints that must agree: one lucky checkpoint is not a formation."""
Z = 4.0
"""Noise units (robust standard deviations) a rise has to stand clear of."""
MIN_SHARE = 0.1
"""Least rise that counts as one, as a share of the room between the floor and the top of the measure's range."""
LEAST = 0.3
"""Least level that makes, say, an induction head: three tenths of the room. A convention, and a fixed level: with one
relative to the highest score so far, heads would form later the longer a run is watched."""
HORIZON = 4
"""The rise is fitted up to this multiple of the step at which the level was reached: what comes later, a slow drift or
a fall, does not move the formation step."""


class Rise(NamedTuple):
    """When a curve rose. All null where it did not."""

    step: int
    """First checkpoint at or after the estimate."""
    bracket_low: int
    """The checkpoint before."""
    estimate: float
    """Half-way up the fitted rise, in steps."""
    low: float
    """95 % bootstrap interval of the estimate; it always holds the whole bracket."""
    high: float
    rise_low: float
    """Steps at 10 and at 90 % of the fitted rise."""
    rise_high: float
    halfway: float
    """Excess half-way up the fitted rise."""
    fell_back: bool
    """Its last points (median) are below half of the level it rose to."""
    provisional: bool
    """The series ends before `HORIZON` times the step at which the level was reached; a longer one may move it."""


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


def find_rise(
    steps: Int[np.ndarray, " step"],
    excess: Float[np.ndarray, " step"],
    level: float,
    confirm: int = CONFIRM,
    errors: Float[np.ndarray, " step"] | None = None,
) -> Rise | None:
    """The rise of `excess`, a curve minus its floor (what it would be without the thing looked for); None without one.

    It has risen if it is at or above `level` (> 0, in its own unit) for `confirm` consecutive checkpoints. When is then
    the change point (`change_point`) of the curve up to `HORIZON` times the step at which it reached the level,
    or up to where it fell below half the level again. `errors`: standard errors over prompts, for the interval.
    """
    reached = first_run(excess >= level, confirm)
    if reached is None or reached == 0:
        return None
    horizon = HORIZON * max(int(steps[reached]), 1)
    fall = first_run(excess[reached:] < level / 2, confirm)
    inside = int(np.searchsorted(steps, horizon, side="right"))
    end = max(min(inside, len(steps) if fall is None else reached + fall), reached + confirm)
    seen, values = steps[:end], excess[:end]
    fit = fit_change(seen, values)
    centres = bootstrap_centres(seen, values, fit, None if errors is None else errors[:end])
    x = log_steps(seen)
    # Never the first checkpoint: nothing is known of what was before it.
    index = int(np.clip(np.searchsorted(x, fit.centre, side="left"), 1, end - 1))
    ends = (*np.quantile(centres, (0.025, 0.975)), x[index - 1], x[index])
    half_width = fit.width * TEN_TO_NINETY / 2
    return Rise(
        step=int(steps[index]), bracket_low=int(steps[index - 1]), estimate=float(np.expm1(fit.centre)),
        low=float(np.expm1(min(ends))), high=float(np.expm1(max(ends))),
        rise_low=float(np.expm1(max(fit.centre - half_width, 0.0))), rise_high=float(np.expm1(fit.centre + half_width)),
        halfway=(fit.low + fit.high) / 2,
        fell_back=bool(np.median(excess[-confirm:]) < fit.high / 2), provisional=fall is None and horizon > steps[-1],
    )  # fmt: skip


def rise_row(rise: Rise | None, tokens_of: Mapping[int, int | None], floor_of: Mapping[int, float]) -> dict[str, Any]:
    """A rise as columns of a formation table; null without one. The threshold is in the unit of the scores."""
    if rise is None:
        return dict.fromkeys(RISE_COLUMNS) | {"formed": False, "fell_back": False}
    row = {name: value for name, value in rise._asdict().items() if name in RISE_COLUMNS}
    threshold = floor_of[rise.step] + rise.halfway
    return row | {
        "formed": True, "tokens": tokens_of[rise.step], "bracket_high": rise.step, "threshold": threshold,
    }  # fmt: skip


RISE_COLUMNS = (
    "formed", "step", "tokens", "bracket_low", "bracket_high", "estimate", "low", "high", "rise_low", "rise_high",
    "threshold", "fell_back", "provisional",
)  # fmt: skip
