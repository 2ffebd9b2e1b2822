"""Has a noisy curve risen to a level and held it, and when? The rule behind every formation step, on plain arrays."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from copyscope.analyses.statistics.change_point import TEN_TO_NINETY, fit_change, log_steps

CONFIRM = 3
"""Consecutive checkpoints that must agree: one lucky checkpoint is not a formation."""
Z = 4.0
"""Noise units (robust standard deviations) a rise has to stand clear of."""
MIN_SHARE = 0.1
"""Least rise that counts as one, as a share of the room between the floor and the top of the measure's range."""
MIN_LEVEL = 0.3
"""Least level that makes, say, an induction head: three tenths of the room. A convention, and a fixed level: with one
relative to the highest score so far, heads would form later the longer a run is watched."""
HORIZON = 4
"""The rise is fitted up to this multiple of the step at which the level was reached: what comes later, a slow drift or
a fall, does not move the formation step."""

MIN_SEEN = 8
"""Checkpoints from which the noise is estimated, at least."""
SURE = 0.95
"""A rise is said to have two stages where this probability says so."""


RISE_TIMES = {
    "step": pl.Int64,
    "tokens": pl.Int64,
    "bracket_low": pl.Int64,
    "bracket_high": pl.Int64,
    "estimate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "interval": pl.String,
    "rise_low": pl.Float64,
    "rise_high": pl.Float64,
    "baseline": pl.Float64,
    "final": pl.Float64,
    "peak": pl.Float64,
}
"""Columns of every formation table: when the curve rose, and from where to where."""
RISE_SHAPE = {
    "threshold": pl.Float64,
    "level": pl.Float64,
    "fell_back": pl.Boolean,
    "began_earlier": pl.Boolean,
    "stages": pl.Int64,
    "first_stage": pl.Float64,
    "second_stage": pl.Float64,
    "provisional": pl.Boolean,
}
"""Columns of every formation table: which level counted, and how the curve rose."""


@dataclass(frozen=True)
class Rise:
    """When a curve rose."""

    step: int
    """First checkpoint at or after the middle of the rise."""
    bracket_low: int
    """The checkpoint before it; 0 where the rise began before the first checkpoint."""
    estimate: float | None
    """Half-way up the fitted rise, in steps; None where the bracket begins at step 0: any step in it is as good."""
    low: float
    """95 % interval of the middle of the rise; it always holds the whole bracket."""
    high: float
    rise_low: float
    """Steps at 10 and at 90 % of the fitted rise."""
    rise_high: float
    halfway: float
    """Excess half-way up the fitted rise."""
    fell_back: bool
    """Its last points (median) are below half of the level it rose to."""
    began_earlier: bool
    """The rise was under way at the first checkpoint, which is not step 0: there is no telling when it began."""
    stages: int
    """2 where the curve rises, stays, and rises again; else 1."""
    first_stage: float | None
    """Steps at which each of two stages is half-way up; None for a rise in one."""
    second_stage: float | None
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


def noise_so_far(values: Float[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
    """`step_noise` of all that came before each checkpoint, and of the first `MIN_SEEN` before those.

    What comes later does not count, nor a rise at that checkpoint itself: training longer changes none of it.
    """
    return np.array([step_noise(values[: max(i, MIN_SEEN)]) for i in range(len(values))])


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
    level: float | Float[np.ndarray, " step"],
    confirm: int = CONFIRM,
    errors: Float[np.ndarray, " step"] | None = None,
) -> Rise | None:
    """The rise of `excess`, a curve minus its floor (what it would be without the thing looked for); None without one.

    It has risen if it is at or above `level` (> 0, in its own unit; one number, or one a checkpoint) for `confirm`
    consecutive checkpoints. When is then the change point (`change_point`) of the curve up to `HORIZON` times the step
    at which it reached the level, or up to where it fell below half the level again. `errors`: standard errors over
    prompts, for the interval.
    """
    level = np.broadcast_to(level, excess.shape)
    reached = first_run(excess >= level, confirm)
    if reached is None or reached == 0:
        return None
    horizon = HORIZON * max(int(steps[reached]), 1)
    fall = first_run(excess[reached:] < level[reached:] / 2, confirm)
    inside = int(np.searchsorted(steps, horizon, side="right"))
    stays = max(len(steps) if fall is None else reached + fall, reached + confirm)
    end = max(min(inside, stays), reached + confirm)
    seen, values = steps[:end], excess[:end]
    fit = fit_change(seen, values, None if errors is None else errors[:end])
    x = log_steps(seen)
    began_earlier = fit.begun > 0.5
    # Never the first checkpoint (unless the rise began before): nothing is known of what was before it.
    index = int(np.clip(np.searchsorted(x, fit.centre, side="left"), 0 if began_earlier else 1, end - 1))
    before = 0 if began_earlier else int(seen[index - 1])
    half_width = fit.width * TEN_TO_NINETY / 2
    # A second stage may come after the horizon: it does not move the step, but is said.
    whole = (
        fit if stays == end else fit_change(steps[:stays], excess[:stays], None if errors is None else errors[:stays])
    )
    staged = whole.stages is not None and whole.two_stages > SURE
    first_stage, second_stage = map(float, np.expm1(whole.stages)) if staged and whole.stages else (None, None)
    return Rise(
        step=int(seen[index]),
        bracket_low=before,
        estimate=None if before == 0 else float(np.expm1(fit.centre)),
        low=min(0.0 if began_earlier else float(np.expm1(fit.interval[0])), float(before)),
        high=max(float(np.expm1(fit.interval[1])), float(seen[index])),
        rise_low=float(np.expm1(max(fit.centre - half_width, 0.0))),
        rise_high=float(np.expm1(fit.centre + half_width)),
        halfway=(fit.low + fit.high) / 2,
        fell_back=bool(np.median(excess[-confirm:]) < fit.high / 2),
        began_earlier=began_earlier,
        stages=2 if staged else 1,
        first_stage=first_stage,
        second_stage=second_stage,
        provisional=fall is None and horizon > int(steps[-1]),
    )


def middle(row: Mapping[str, Any]) -> float | None:
    """The estimate of a row of a formation table or, where it has none, the middle of its interval on the log axis;
    None where nothing formed, or the rise began before the first checkpoint."""
    if not row["formed"] or row["began_earlier"]:
        return None
    if row["estimate"] is not None:
        return row["estimate"]
    return math.sqrt(max(row["low"], 0.5) * max(row["high"], 0.5))


def rise_row(rise: Rise | None, tokens_of: Mapping[int, int | None], floor_of: Mapping[int, float]) -> dict[str, Any]:
    """A rise as columns of a formation table; null without one. The threshold is in the unit of the scores.

    `interval`, `baseline`, `final`, `peak` and `level` are not a rise's: the caller fills them in."""
    columns = {**RISE_TIMES, **RISE_SHAPE}
    if rise is None:
        return dict.fromkeys(columns) | {"formed": False, "fell_back": False, "began_earlier": False}
    row = {name: value for name, value in asdict(rise).items() if name in columns}
    threshold = floor_of[rise.step] + rise.halfway
    return row | {
        "formed": True,
        "tokens": tokens_of[rise.step],
        "bracket_high": rise.step,
        "threshold": threshold,
    }
