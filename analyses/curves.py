"""What the whole model does over training: when copying began and formed, and when the loss had settled."""

import math
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from analyses.rise import CONFIRM, MIN_SHARE, Z, find_rise, first_run, rise_row, step_noise
from analyses.series import check_rule, enough, measure_rows
from training.errors import InputError

COPYING_MEASURES = ("copying_accuracy_token", "copying_accuracy_exact", "copying_loss_difference")
COPYING_SCHEMA = {
    "measure": pl.String, "status": pl.String, "formed": pl.Boolean, "onset": pl.Int64, "step": pl.Int64,
    "tokens": pl.Int64, "bracket_low": pl.Int64, "bracket_high": pl.Int64, "estimate": pl.Float64,
    "low": pl.Float64, "high": pl.Float64, "interval": pl.String, "rise_low": pl.Float64, "rise_high": pl.Float64,
    "baseline": pl.Float64, "final": pl.Float64, "peak": pl.Float64, "threshold": pl.Float64, "level": pl.Float64,
    "fell_back": pl.Boolean, "provisional": pl.Boolean,
}  # fmt: skip


class LossSettled(NamedTuple):
    """When the loss had done most of its fall."""

    step: int | None
    """First measured step at or below `level`; None if the loss never fell."""
    tokens: int | None
    bracket_low: int | None
    """The measured step before: the true one lies between the two."""
    level: float
    start: float
    lowest: float
    share: float
    source: str
    """`validation_loss`, or `loss` (training, smoothed by a running median)."""


def copying_formation(
    model: pl.DataFrame,
    chance: float = 0.0,
    samples: int = 500,
    confirm: int = CONFIRM,
    z: float = Z,
    least: float = MIN_SHARE,
) -> pl.DataFrame:
    """When the model began to copy and when it was half-way up: a row for each accuracy and for the copying loss.

    `model`: long table (step, tokens, measure, value) of one run with any of copying_accuracy_token,
    copying_accuracy_exact, copying_loss_difference (with copying_loss_first). The same rule as for heads, with these
    floors: accuracy over the larger of its first value and `chance` (1 / number of tokens drawn from) plus `z`
    standard errors of `samples` draws; loss difference as nats *saved* over its first value and 0, its range being
    the first-half loss. status: `not yet` (never clear of chance and noise for `confirm` checkpoints), `begun`
    (clear, but short of `least` = 0.1 of the range: `onset` holds the step, `step` is null), `formed`, `formed, fell
    back`. onset: first checkpoint clear of chance and noise; step, bracket, estimate, interval and so on: of the change
    point, as for heads. baseline, final, peak and threshold are in the measure's own sign.

    Raises InputError as `formation_steps` does, or when no copying measure is there or `chance` is outside [0, 1).
    Cannot tell: whether a curve still rising at the end (`provisional`) would go on, which would move the step.
    """
    check_rule(confirm, z, least)
    if not 0 <= chance < 1 or samples < 1:
        raise InputError(f"chance={chance}, samples={samples}: use 0 <= chance < 1 and samples >= 1")
    present = set(model["measure"].to_list()) if "measure" in model.columns else set()
    wanted = [
        m for m in ("copying_accuracy_token", "copying_accuracy_exact", "copying_loss_difference") if m in present
    ]
    if not wanted:
        raise InputError(
            "model table: no copying_accuracy_token, _exact or copying_loss_difference; score the series again"
        )
    out = []
    for measure in wanted:
        rows = measure_rows(model, "model", measure, ())
        steps, tokens = rows["step"].to_list(), rows["tokens"].to_list()
        enough(steps, "model", measure, confirm)
        value = rows["value"].to_numpy().astype(float)
        if measure == "copying_loss_difference":
            sign, bottom = -1.0, 0.0
            first_half = measure_rows(model, "model", "copying_loss_first", ())["value"].to_numpy()
            top = float(np.median(first_half))
            clear = 0.02 * top  # 2 % of the first-half loss: below it, prompts differ more than halves do
        else:
            error = math.sqrt(chance * (1 - chance) / samples)
            sign, bottom, top, clear = 1.0, chance, 1.0, max(z * error, 1.0 / samples)
        gain = sign * value
        floor = np.full(len(gain), max(gain[0], bottom))
        noise = z * step_noise(gain)
        excess = gain - floor
        onset = first_run(excess > max(clear, noise), confirm)
        level = max(noise, clear, least * (top - floor[0]))
        rise = find_rise(np.array(steps), excess, level, confirm, _errors(model, measure, steps))
        status = "not yet" if onset is None else "begun"
        if rise is not None:
            status = "formed, fell back" if rise.fell_back else "formed"
        row = rise_row(rise, dict(zip(steps, tokens, strict=True)), dict(zip(steps, floor.tolist(), strict=True)))
        row["threshold"] = None if row["threshold"] is None else sign * row["threshold"]
        out.append(
            {"measure": measure, "status": status, **row, "onset": None if onset is None else steps[onset],
             "interval": None if rise is None else "prompts" if _has_errors(model, measure) else "neighbours",
             "baseline": value[0], "final": value[-1], "peak": sign * gain.max(), "level": level}
        )  # fmt: skip
    return pl.DataFrame(out, schema=COPYING_SCHEMA)


def _has_errors(model: pl.DataFrame, measure: str) -> bool:
    return bool((model["measure"] == f"{measure}_se").any())


def _errors(model: pl.DataFrame, measure: str, steps: list[int]) -> Float[np.ndarray, " step"] | None:
    """Standard errors over prompts at `steps`; None where the table has none."""
    if not _has_errors(model, measure):
        return None
    rows = measure_rows(model, "model", f"{measure}_se", ())
    lacking = sorted(set(steps) - set(rows["step"].to_list()))
    if lacking:
        raise InputError(f"model table: {measure}_se is missing at step {lacking[0]}; score that step again")
    return rows.filter(pl.col("step").is_in(steps))["value"].to_numpy().astype(float)


def loss_settled(metrics: pl.DataFrame, share: float = 0.9) -> LossSettled:
    """First measured step at which the loss has done `share` of its total fall, from its first value to its lowest.

    `metrics`: step, tokens, loss, validation_loss (nats; null where not measured). Validation loss if measured three
    times or more, else the training loss under a running median over 2 % of its rows (at least 5).
    Raises InputError: missing columns, duplicate steps, NaN, fewer than three measurements, share outside (0, 1).
    Cannot tell: the fall still to come. Training longer lowers the lowest value and moves this step to later.
    """
    if not 0 < share < 1:
        raise InputError(f"share={share}: use a number between 0 and 1, such as 0.9")
    for column in ("step", "tokens"):
        if column not in metrics.columns:
            raise InputError(f"metrics table: column {column!r} is missing")
    source = "validation_loss"
    rows = metrics.drop_nulls(source).sort("step") if source in metrics.columns else metrics.clear()
    if rows.height < 3:
        source = "loss"
        rows = metrics.drop_nulls(source).sort("step") if source in metrics.columns else metrics.clear()
    if rows.height < 3:
        raise InputError("metrics table: fewer than three measured losses; train for longer or log more often")
    double = rows.filter(pl.col("step").is_duplicated())
    if not double.is_empty():
        raise InputError(f"metrics table: step {double['step'][0]} is there twice; keep the last line of each step")
    bad = rows.filter(~pl.col(source).is_finite())
    if not bad.is_empty():
        raise InputError(
            f"metrics table: {source} is not a number at step {bad['step'][0]}; the training diverged there"
        )
    loss = rows[source].to_numpy().astype(float)
    curve = loss
    if source == "loss":
        width = max(5, len(loss) // 50)
        curve = rows[source].rolling_median(width, min_samples=1, center=True).to_numpy().astype(float)
    start, lowest = float(loss[0]), float(curve.min())
    level = start - share * (start - lowest)
    if lowest >= start:
        return LossSettled(None, None, None, level, start, lowest, share, source)
    index = int(np.argmax(curve <= level))
    row, before = rows.row(index, named=True), rows.row(max(index - 1, 0), named=True)
    return LossSettled(row["step"], row["tokens"], before["step"], level, start, lowest, share, source)
