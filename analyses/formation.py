"""When heads and copying form: formation steps, their order, and what the loss did meanwhile, from tables.

The rule (numbers are arguments; defaults in `analyses.rise`): a head's *excess* at a checkpoint is its score minus
the largest of (its own score at the first checkpoint, the median score of all heads there when there are at least
four, its random-target null at the same checkpoint when the table has one). The *height* is the highest excess held
for `confirm` = 3 consecutive checkpoints. The head has formed if the height is at least the *margin*, the larger of

- `z` = 4 noise units, one unit being the larger of the robust standard deviation of all heads' scores at the first
  checkpoint and that of the head's own checkpoint-to-checkpoint changes / √2;
- `min_share` = 0.1 of the room between the head's start and the top of the measure's range.

Its formation step is the first checkpoint from which the excess is at or above half the height for 3 consecutive
checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from analyses.curves import LossSettled, copying_formation, loss_settled
from analyses.order import DepthTrend, depth_trend, ordered
from analyses.rise import CONFIRM, MIN_SHARE, Z, find_rise, robust_sd, step_noise
from analyses.series import check_rule, enough, measure_rows, place_rise
from training.errors import InputError

__all__ = [
    "DepthTrend", "FormationMap", "LossSettled", "copying_formation", "depth_trend", "formation_json", "formation_map",
    "formation_steps", "loss_settled", "order_of_appearance",
]  # fmt: skip

FORMATION_SCHEMA = {
    "layer": pl.Int64, "head": pl.Int64, "measure": pl.String, "status": pl.String, "formed": pl.Boolean,
    "step": pl.Int64, "tokens": pl.Int64, "bracket_low": pl.Int64, "bracket_high": pl.Int64, "estimate": pl.Float64,
    "baseline": pl.Float64, "final": pl.Float64, "peak": pl.Float64, "null": pl.Float64, "threshold": pl.Float64,
    "margin": pl.Float64, "fell_back": pl.Boolean,
}  # fmt: skip


class FormationMap(NamedTuple):
    """One measure of every head at every checkpoint."""

    measure: str
    values: Float[np.ndarray, "row step"]
    """NaN where a head was not measured at a step: a gap, not a zero."""
    rows: list[tuple[int, int]]
    """(layer, head) of each row, layer 0 first."""
    steps: Int[np.ndarray, " step"]


def formation_steps(
    heads: pl.DataFrame,
    measure: str = "prefix_matching_sum",
    confirm: int = CONFIRM,
    z: float = Z,
    min_share: float = MIN_SHARE,
) -> pl.DataFrame:
    """When each head formed, by the rule at the top of this module; one row a head, whether it formed or not.

    `heads`: long table (step, tokens, layer, head, measure, value) of one run; row order does not matter. Columns
    out: layer, head, measure; status (`formed`, `formed, fell back`, `never`, `unconfirmed`: clear of everything but
    for fewer than `confirm` checkpoints at the end, `from the start`: never rose, but was clear of its null at the
    first checkpoints); formed; step (null = not formed) and tokens; bracket_low, bracket_high (the checkpoints
    between which it happened); estimate (interpolated on a log step axis inside the bracket); baseline, final, peak
    (its scores at the first, last and best checkpoint); null (random target, last checkpoint); threshold (the score
    to pass at `step`); margin; fell_back.

    Raises InputError: unknown measure, several runs, fewer than confirm + 1 checkpoints, duplicate steps, NaN. Cannot
    tell: anything finer than the checkpoints; heads that go *below* their start (anti-copying); rises of the whole
    population that leave every head alike; whether the head matters (ablation does).
    """
    check_rule(confirm, z, min_share)
    if measure.endswith(("_null", "_selectivity")):
        raise InputError(f"measure {measure!r} is a calibration of another; name the measure itself")
    rows = measure_rows(heads, "heads", measure, ("layer", "head"))
    nulls = f"{measure}_null"
    if (heads["measure"] == nulls).any():
        null_rows = measure_rows(heads, "heads", nulls, ("layer", "head"))
        rows = rows.join(
            null_rows.select("layer", "head", "step", null="value"), on=["layer", "head", "step"], how="left"
        )
        lacking = rows.filter(pl.col("null").is_null())
        if not lacking.is_empty():
            row = lacking.row(0, named=True)
            raise InputError(
                f"heads table: {nulls} is missing at step {row['step']}, layer {row['layer']}, head {row['head']}; "
                "score that step again"
            )
    else:
        rows = rows.with_columns(null=pl.lit(None, dtype=pl.Float64))
    first = rows.filter(pl.col("step") == pl.col("step").min())["value"].to_numpy().astype(float)
    spread, centre = (robust_sd(first), float(np.median(first))) if len(first) >= 4 else (0.0, -math.inf)
    top = max(1.0, float(rows["value"].max()))  # type: ignore[arg-type]
    out = [
        _head_formation(part.sort("step"), measure, spread, centre, top, confirm, z, min_share)
        for part in rows.partition_by("layer", "head", maintain_order=True)
    ]
    return pl.DataFrame(out, schema=FORMATION_SCHEMA)


def _head_formation(
    part: pl.DataFrame, measure: str, spread: float, centre: float, top: float, confirm: int, z: float, min_share: float
) -> dict[str, Any]:
    """One head's row of `formation_steps`."""
    steps, tokens = part["step"].to_list(), part["tokens"].to_list()
    enough(steps, "heads", measure, confirm)
    value = part["value"].to_numpy().astype(float)
    has_null = part["null"].null_count() == 0
    null = part["null"].to_numpy().astype(float) if has_null else np.full(len(value), -math.inf)
    start = max(value[0], centre, float(np.median(null)))
    margin = max(z * max(spread, step_noise(value)), min_share * max(top - start, 0.0))
    floor = np.maximum(null, max(value[0], centre))
    rise = find_rise(value - floor, margin, confirm)
    status = "unconfirmed" if rise.unconfirmed else "never"
    if rise.index is not None:
        status = "formed, fell back" if rise.fell_back else "formed"
    elif has_null and bool(np.all(value[:confirm] - null[:confirm] >= max(margin, min_share * (top - null[0])))):
        status = "from the start"
    return {
        "layer": part["layer"][0], "head": part["head"][0], "measure": measure, "status": status,
        **place_rise(rise.index, rise.height, steps, tokens, value - floor, floor),
        "baseline": value[0], "final": value[-1], "peak": value.max(), "null": float(null[-1]) if has_null else None,
        "margin": margin, "fell_back": rise.fell_back,
    }  # fmt: skip


def formation_map(
    heads: pl.DataFrame, measure: str = "induction_score", steps: Sequence[int] | None = None
) -> FormationMap:
    """One measure as a matrix (row, step), rows in order of layer and head, steps ascending.

    `steps`: the checkpoints that should be there; those without scores become columns of NaN. None: those in the table.
    Raises InputError: unknown measure, several runs, duplicate steps, NaN in the table.
    """
    rows = measure_rows(heads, "heads", measure, ("layer", "head"))
    names = rows.select("layer", "head").unique().sort("layer", "head").rows()
    columns = sorted({*rows["step"].to_list(), *(steps or ())})
    values = np.full((len(names), len(columns)), np.nan)
    row_of, column_of = {name: i for i, name in enumerate(names)}, {step: i for i, step in enumerate(columns)}
    for layer, head, step, value in rows.select("layer", "head", "step", "value").iter_rows():
        values[row_of[layer, head], column_of[step]] = value
    return FormationMap(measure, values, names, np.array(columns, dtype=np.int64))


def order_of_appearance(
    heads: pl.DataFrame, model: pl.DataFrame, induction: str = "prefix_matching_sum", chance: float = 0.0
) -> pl.DataFrame:
    """The order previous-token head → induction head → copying within a run.

    A stage's step is that of the first head to form among those whose peak is at least half the best formed head's
    (so that a weak head does not speak for the stage); for copying, that of the loss difference and of the accuracy
    per token. Columns: stage, measure, layer, head, status, step, bracket_low, since_previous: `later`, `earlier`,
    `same bracket` (the checkpoints are too far apart to tell), compared with the stage before that formed; null where
    there is none. Raises InputError as `formation_steps` and `copying_formation` do. Cannot tell: that one stage
    causes the next.
    """
    found: list[dict[str, Any]] = []
    for stage, measure in (("previous-token head", "previous_token"), ("induction head", induction)):
        formed = formation_steps(heads, measure).filter("formed")
        if formed.is_empty():
            found.append({"stage": stage, "measure": measure, "status": "not yet"})
        else:
            strong = formed.filter(pl.col("peak") >= pl.col("peak").max() / 2).sort("step", "layer", "head")
            found.append({"stage": stage, **strong.row(0, named=True)})
    copying = copying_formation(model, chance)
    stages = (("copying (loss)", "copying_loss_difference"), ("copying (accuracy)", "copying_accuracy_token"))
    for stage, measure in stages:
        for row in copying.filter(pl.col("measure") == measure).iter_rows(named=True):
            found.append({"stage": stage, **row})
    return ordered(found)


def _plain(value: Any) -> Any:
    """JSON-safe: NaN and infinities become null, numpy numbers Python ones."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def formation_json(
    heads: pl.DataFrame,
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    measures: Sequence[str] = ("previous_token", "prefix_matching_sum", "induction_score"),
    chance: float = 0.0,
) -> dict[str, Any]:
    """Everything above as one JSON-safe dict, the content of results/formation.json.

    Keys: rule, checkpoints, heads (rows of `formation_steps` for each of `measures` that the table has), depth_trend
    (by measure), copying, loss_settled, order. Raises InputError as its parts do.
    """
    present = set(heads["measure"].to_list())
    used = [measure for measure in measures if measure in present]
    if not used:
        formation_steps(heads, measures[0])  # raises with the right words
    tables = {measure: formation_steps(heads, measure) for measure in used}
    induction = next(
        (m for m in ("prefix_matching_sum", "induction_score", "induction_attention") if m in present), used[-1]
    )
    order = order_of_appearance(heads, model, induction, chance).to_dicts() if "previous_token" in present else []
    return _plain({
        "rule": {"confirm": CONFIRM, "z": Z, "min_share": MIN_SHARE, "chance": chance, "text": (__doc__ or "").strip()},
        "checkpoints": sorted(set(heads["step"].to_list())),
        "heads": {measure: table.to_dicts() for measure, table in tables.items()},
        "depth_trend": {measure: depth_trend(table)._asdict() for measure, table in tables.items()},
        "copying": copying_formation(model, chance).to_dicts(),
        "loss_settled": loss_settled(metrics)._asdict(),
        "order": order,
    })  # fmt: skip
