"""Delayed emergence in one run: did copying surge after the loss had settled, how abruptly, and did it last?"""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from copyscope.analyses.formation.copying import copying_formation
from copyscope.analyses.formation.loss import SHARE, LossSettled, loss_settled
from copyscope.analyses.formation.step_rule import CONFIRM, middle, step_noise, sustained_peak
from copyscope.analyses.formation.table_checks import measure_rows

OTHER_SHARE = 0.1
"""A second settling rule, twice as lenient: an answer that it turns round depends on the rule, and is none."""


@dataclass(frozen=True)
class Emergence:
    """Copying against the loss, in steps; null where copying has not formed or the loss not settled."""

    verdict: str
    """`after`, `before` (copying surged after or before the loss settled) or `undecided`."""
    reason: str
    measure: str
    settled: LossSettled
    settled_leniently: LossSettled
    """By the rule with `OTHER_SHARE`."""
    surge: float | None
    """Change point of copying."""
    surge_low: float | None
    surge_high: float | None
    delay: float | None
    """surge − settled; below 0: copying came first."""
    delay_tokens: float | None
    ratio: float | None
    """surge / settled, free of scale."""
    ratio_low: float | None
    """95 % interval, from those of both steps."""
    ratio_high: float | None
    abruptness: float | None
    """Steps at 90 % of the rise over steps at 10 %; 2 is a doubling."""
    fell_back: bool
    """At the end copying is below half of what it rose to."""
    dip: float | None
    """Deepest fall from a level held for three checkpoints to one held for three later, as a share of the first."""
    dip_step: int | None
    """Where that low stretch begins; None without a fall beyond the noise."""


def emergence(
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    chance: float = 0.0,
    measure: str = "copying_accuracy_token",
    formed: pl.DataFrame | None = None,
) -> Emergence:
    """Did copying surge after the loss had settled? One run; tables and errors as for its parts.

    `copying_formation` says when `measure` rose (`formed`: what it said, if that is at hand), `loss_settled` when the
    loss had settled. The verdict is given if the 95 % interval of the ratio lies on one side of 1 by the rule and by
    one twice as lenient; a loss that had not settled by half of the run counts as settling after that. Cannot tell:
    that settling and copying have to do with each other, nor what another seed would do.
    """
    return copying_beside(loss_settled(metrics), loss_settled(metrics, OTHER_SHARE), model, chance, measure, formed)


def copying_beside(
    settled: LossSettled,
    lenient: LossSettled,
    model: pl.DataFrame,
    chance: float = 0.0,
    measure: str = "copying_accuracy_token",
    formed: pl.DataFrame | None = None,
) -> Emergence:
    """The same where it is known when the loss had settled, by the rule and by the lenient one."""
    table = copying_formation(model, chance) if formed is None else formed
    table = table.filter(pl.col("measure") == measure)
    rows = measure_rows(model, "model", measure, ())
    rise = table.row(0, named=True)
    dip, dip_step = deepest_dip(rows["step"].to_numpy(), np.abs(rows["value"].to_numpy().astype(float)))
    at = middle(rise)
    surge = (at, rise["low"], rise["high"]) if at is not None else (None, None, None)
    ratios = [step_ratio(surge, (one.step, one.low, one.high)) for one in (settled, lenient)]
    verdict, reason = _verdict(surge, (settled, lenient), ratios)
    if rise["began_earlier"]:
        reason = "copying was under way at the first checkpoint"
    ratio, ratio_low, ratio_high = ratios[0] or (None, None, None)
    delay = None if ratio is None or at is None else at - (settled.step or 0)
    per_step = rows["tokens"][-1] / max(rows["step"][-1], 1)
    rise_low, rise_high = rise["rise_low"], rise["rise_high"]
    abruptness = None
    if rise_low is not None and rise_high is not None and not rise["began_earlier"]:
        abruptness = (1 + rise_high) / (1 + rise_low)
    return Emergence(
        verdict=verdict,
        reason=reason,
        measure=measure,
        settled=settled,
        settled_leniently=lenient,
        surge=surge[0],
        surge_low=surge[1],
        surge_high=surge[2],
        delay=delay,
        delay_tokens=None if delay is None else delay * per_step,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        abruptness=abruptness,
        fell_back=rise["fell_back"],
        dip=dip,
        dip_step=dip_step,
    )


Estimate = tuple[float | int | None, float | int | None, float | int | None]
"""A step and its 95 % interval."""


def step_ratio(first: Estimate, second: Estimate) -> tuple[float, float, float] | None:
    """first / second with a 95 % interval, of two steps with independent errors.

    The distances from estimate to limit, in logs, are added as squares (method of variance estimates recovery, Zou and
    Donner 2008). None where one is missing.
    """
    if None in (*first, *second):
        return None
    (a, a_low, a_high), (b, b_low, b_high) = (
        [math.log(max(float(step or 0), 0.5)) for step in interval] for interval in (first, second)
    )
    down, up = math.hypot(a - a_low, b_high - b), math.hypot(a_high - a, b - b_low)
    return math.exp(a - b), math.exp(a - b - down), math.exp(a - b + up)


def _verdict(
    surge: tuple[float | None, ...],
    settled: tuple[LossSettled, LossSettled],
    ratios: list[tuple[float, float, float] | None],
) -> tuple[str, str]:
    if surge[0] is None:
        return "undecided", "copying has not formed"
    sides = []
    for one, ratio in zip(settled, ratios, strict=True):
        if ratio is not None:
            sides.append("after" if ratio[1] > 1 else "before" if ratio[2] < 1 else "open")
        else:
            sides.append("before" if (surge[2] or 0) < one.last / 2 else "open")
    strict, lenient = (
        f"by step {one.step:,}" if one.step is not None else f"not by step {one.last // 2:,}" for one in settled
    )
    rules = (
        f"copying surged at step {surge[0]:,.0f}; the loss had settled {strict} "
        f"(a doubling brings less than {SHARE:.0%}), {lenient} (less than {OTHER_SHARE:.0%})"
    )
    if sides[0] == sides[1] != "open":
        return sides[0], rules
    if "open" in sides:
        return "undecided", f"{rules}; the intervals overlap"
    return "undecided", f"{rules}; so it depends on what settled means"


def deepest_dip(steps: np.ndarray, values: np.ndarray, z: float = 4.0) -> tuple[float | None, int | None]:
    """Deepest fall from a level held for three checkpoints to one held later, as (share of the first, first low step).

    `values` >= 0. (None, None) where no fall exceeds `z` robust standard deviations of the checkpoint-to-checkpoint
    noise. Cannot tell: a dip shorter than three checkpoints.
    """
    if len(values) < 2 * CONFIRM or sustained_peak(values, CONFIRM) <= 0:
        return None, None
    windows = np.lib.stride_tricks.sliding_window_view(values, CONFIRM)
    held, ceiling = windows.min(axis=1), windows.max(axis=1)
    before = np.maximum.accumulate(held)[:-CONFIRM]
    fall = before - ceiling[CONFIRM:]
    worst = int(np.argmax(fall))
    if fall[worst] <= z * step_noise(values) or fall[worst] <= 0:
        return None, None
    return float(fall[worst] / before[worst]), int(steps[worst + CONFIRM])
