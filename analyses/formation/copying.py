"""What the whole model does over training: when copying began and formed."""

import math
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from copyscope.analyses.formation.step_rule import (
    CONFIRM,
    MIN_SHARE,
    RISE_SHAPE,
    RISE_TIMES,
    Z,
    find_rise,
    noise_so_far,
    rise_row,
)
from copyscope.analyses.formation.table_checks import check_rule, enough, has_errors, measure_rows
from copyscope.training.errors import InputError

COPYING_MEASURES = ("copying_accuracy_token", "copying_accuracy_exact", "copying_loss_difference")
COPYING_SCHEMA = {
    "measure": pl.String,
    "status": pl.String,
    "formed": pl.Boolean,
    "onset": pl.Int64,
    **RISE_TIMES,
    **RISE_SHAPE,
}


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
    the first-half loss at the same checkpoint. status: `not yet` (never clear of chance and noise for `confirm`
    checkpoints), `begun` (clear, but short of `least` = 0.1 of the range: `onset` holds the step, `step` is null),
    `formed`, `formed, fell back`. onset: the first of `confirm` checkpoints that are all above that floor by `z` times
    their own prompt errors and by `z` times the noise of the checkpoints before; nothing that comes later moves it.
    step, bracket, estimate, interval and so on: of the change point, as for heads. baseline, final, peak and threshold
    are in the measure's own sign; level is that of the last checkpoint.

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
    rows = []
    for measure in wanted:
        if measure == "copying_loss_difference":
            top = measure_rows(model, "model", "copying_loss_first", ())["value"].to_numpy().astype(float)
            # 2 % of the first-half loss: below it, prompts differ more than halves do.
            row = rise_of(model, "model", measure, 0.0, top, 0.02 * top, confirm, z, least, sign=-1.0)
        else:
            row = accuracy_rise(model, "model", measure, chance, samples, confirm, z, least)
        rows.append(row)
    return pl.DataFrame(rows, schema=COPYING_SCHEMA)


def accuracy_rise(
    table: pl.DataFrame,
    name: str,
    measure: str,
    chance: float,
    samples: int,
    confirm: int = CONFIRM,
    z: float = Z,
    least: float = MIN_SHARE,
) -> dict[str, Any]:
    """A row of `COPYING_SCHEMA` for an accuracy, whose floor is the larger of its first value and `chance`; clear of it
    is what exceeds `z` standard errors of `samples` guesses. `name` is the table's in messages."""
    clear = max(z * math.sqrt(chance * (1 - chance) / samples), 1.0 / samples)
    return rise_of(table, name, measure, chance, 1.0, clear, confirm, z, least)


def rise_of(
    table: pl.DataFrame,
    name: str,
    measure: str,
    bottom: float,
    top: float | Float[np.ndarray, " step"],
    clear: float | Float[np.ndarray, " step"],
    confirm: int,
    z: float,
    least: float,
    sign: float = 1.0,
) -> dict[str, Any]:
    """A row of `COPYING_SCHEMA`: when sign × the measure rose from the larger of its first value and `bottom` towards
    `top`. `clear`: the least excess that counts, as numbers or one a checkpoint."""
    rows = measure_rows(table, name, measure, ())
    steps, tokens = rows["step"].to_list(), rows["tokens"].to_list()
    enough(steps, name, measure, confirm)
    value = rows["value"].to_numpy().astype(float)
    gain = sign * value
    floor = np.full(len(gain), max(gain[0], bottom))
    noise = z * noise_so_far(gain)
    excess = gain - floor
    clear = np.broadcast_to(clear, gain.shape)
    errors = _errors(table, name, measure, steps)
    least_clear = clear if errors is None else np.maximum(clear, z * errors)
    onset = _onset(excess, least_clear, noise, confirm)
    level = np.maximum(np.maximum(noise, clear), least * (top - floor[0]))
    rise = find_rise(np.array(steps), excess, level, confirm, errors)
    status = "not yet" if onset is None else "begun"
    if rise is not None:
        status = "formed, fell back" if rise.fell_back else "formed"
    row = rise_row(rise, dict(zip(steps, tokens, strict=True)), dict(zip(steps, floor.tolist(), strict=True)))
    row["threshold"] = None if row["threshold"] is None else sign * row["threshold"]
    return {
        "measure": measure,
        "status": status,
        **row,
        "onset": None if onset is None else steps[onset],
        "interval": None if rise is None else "prompts and neighbours" if errors is not None else "neighbours",
        "baseline": value[0],
        "final": value[-1],
        "peak": sign * gain.max(),
        "level": level[-1],
    }


def _onset(
    excess: Float[np.ndarray, " step"],
    clear: Float[np.ndarray, " step"],
    noise: Float[np.ndarray, " step"],
    confirm: int,
) -> int | None:
    """Index of the first of `confirm` checkpoints that are above `clear`, and above the noise before the first."""
    for i in range(len(excess) - confirm + 1):
        window = slice(i, i + confirm)
        if np.all(excess[window] > np.maximum(clear[window], noise[i])):
            return i
    return None


def _errors(table: pl.DataFrame, name: str, measure: str, steps: list[int]) -> Float[np.ndarray, " step"] | None:
    """Standard errors over prompts at `steps`; None where the table has none."""
    if not has_errors(table, measure):
        return None
    rows = measure_rows(table, name, f"{measure}_se", ())
    lacking = sorted(set(steps) - set(rows["step"].to_list()))
    if lacking:
        raise InputError(f"{name} table: {measure}_se is missing at step {lacking[0]}; score that step again")
    return rows.filter(pl.col("step").is_in(steps))["value"].to_numpy().astype(float)
