"""When heads and copying form: formation steps, their order, and what the loss did meanwhile, from tables.

The rule (numbers are arguments; defaults in `step_rule`): a head's *excess* at a checkpoint is its score minus
the largest of (its own score at the first checkpoint, the median score of all heads there when there are at least
four, its random-target null at the same checkpoint when the table has one). The *room* is what is left from there to
the top of the measure's range. The head has formed if its excess is at or above the *level* for `confirm` = 3
consecutive checkpoints, the level being the larger of

- `least` = 0.3 of the room;
- `z` = 4 noise units, one unit being the larger of the robust standard deviation of all heads' scores at the first
  checkpoint and that of the head's own checkpoint-to-checkpoint changes / √2.

Its formation step is the change point of the excess (a smooth rise on the log-step axis, `statistics.change_point`),
fitted up to four times the step at which it reached the level; from there on, further training does not move it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from copyscope.analyses.formation.copying import copying_formation
from copyscope.analyses.formation.depth import DepthTrend, depth_trend
from copyscope.analyses.formation.emergence import emergence
from copyscope.analyses.formation.loss import LossSettled, loss_settled
from copyscope.analyses.formation.order import carriers, ordered
from copyscope.analyses.formation.step_rule import (
    CONFIRM,
    HORIZON,
    MIN_LEVEL,
    MIN_SHARE,
    RISE_SHAPE,
    RISE_TIMES,
    Z,
    find_rise,
    noise_so_far,
    rise_row,
    robust_sd,
    sustained_peak,
)
from copyscope.analyses.formation.table_checks import check_rule, enough, has_errors, measure_rows
from copyscope.analyses.words.glossary import is_calibration
from copyscope.analyses.words.json_values import plain
from copyscope.training.errors import InputError

__all__ = [
    "DepthTrend",
    "FormationMap",
    "LossSettled",
    "copying_formation",
    "depth_trend",
    "formation_json",
    "formation_map",
    "formation_steps",
    "loss_settled",
    "order_of_appearance",
]

FORMATION_SCHEMA = {
    "layer": pl.Int64,
    "head": pl.Int64,
    "measure": pl.String,
    "status": pl.String,
    "formed": pl.Boolean,
    **RISE_TIMES,
    "null": pl.Float64,
    **RISE_SHAPE,
}


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
    least: float = MIN_LEVEL,
) -> pl.DataFrame:
    """When each head formed, by the rule at the top of this module; one row a head, whether it formed or not.

    `heads`: long table (step, tokens, layer, head, measure, value) of one run; row order does not matter. Columns out:
    layer, head, measure; status (`formed`; `formed, fell back`; `weak`: a rise clear of the noise and of a tenth of the
    room, but short of the level; `never`; `unconfirmed`: at the level, but for fewer than `confirm` checkpoints at the
    end; `from the start`: never rose, but was as far above its null, or without one above the median head and 0, at the
    first checkpoints); formed; step (null = not formed) and tokens; bracket_low, bracket_high (the checkpoints between
    which the change point lies); estimate (the change point, in steps; null where the bracket begins at step 0); low,
    high (its 95 % interval, never narrower than the bracket) and interval (what is known of the noise: `prompts and
    neighbours` where the table has standard errors, `<measure>_se`, else `neighbours`: how neighbouring checkpoints
    differ); rise_low, rise_high (steps at 10 and 90 % of the fitted rise); baseline, final, peak (its scores at the
    first, last and best checkpoint); null (random target, last checkpoint); threshold (the score half-way up); level
    (least excess, at the last checkpoint); fell_back; began_earlier (the rise was under way at the first checkpoint,
    which is not step 0: the bracket then begins at 0); stages (2: it rises, stays, rises again) with first_stage and
    second_stage (steps half-way up each); provisional (a longer run may still move the step).

    Raises InputError: unknown measure, several runs, fewer than confirm + 1 checkpoints, duplicate steps, NaN. Cannot
    tell: anything finer than the checkpoints; heads that go *below* their start (anti-copying); rises of the whole
    population that leave every head alike; whether the head matters (ablation does); what another seed would give.
    """
    check_rule(confirm, z, least)
    if is_calibration(measure):
        raise InputError(f"measure {measure!r} is a calibration of another; name the measure itself")
    rows = measure_rows(heads, "heads", measure, ("layer", "head"))
    rows = _beside(rows, heads, measure, "null")
    rows = _beside(rows, heads, measure, "se")
    first = rows.filter(pl.col("step") == pl.col("step").min())["value"].to_numpy().astype(float)
    spread, centre = (robust_sd(first), float(np.median(first))) if len(first) >= 4 else (0.0, -math.inf)
    top = max(1.0, float(rows["value"].max()))  # type: ignore[arg-type]
    out = [
        _head_formation(part.sort("step"), measure, spread, centre, top, confirm, z, least)
        for part in rows.partition_by("layer", "head", maintain_order=True)
    ]
    return pl.DataFrame(out, schema=FORMATION_SCHEMA)


def _beside(rows: pl.DataFrame, heads: pl.DataFrame, measure: str, kind: str) -> pl.DataFrame:
    """`rows` with the calibration `kind` of the measure as a column; null throughout where the table has none."""
    name = f"{measure}_{kind}"
    if not (has_errors(heads, measure) if kind == "se" else (heads["measure"] == name).any()):
        return rows.with_columns(pl.lit(None, dtype=pl.Float64).alias(kind))
    keys = ["layer", "head", "step"]
    values_of_kind = measure_rows(heads, "heads", name, ("layer", "head")).select(*keys, pl.col("value").alias(kind))
    rows = rows.join(values_of_kind, on=keys, how="left")
    lacking = rows.filter(pl.col(kind).is_null())
    if not lacking.is_empty():
        row = lacking.row(0, named=True)
        raise InputError(
            f"heads table: {name} is missing at step {row['step']}, layer {row['layer']}, head {row['head']}; "
            "score that step again"
        )
    return rows


def _head_formation(
    part: pl.DataFrame, measure: str, spread: float, centre: float, top: float, confirm: int, z: float, least: float
) -> dict[str, Any]:
    """One head's row of `formation_steps`."""
    steps, tokens = part["step"].to_list(), part["tokens"].to_list()
    enough(steps, "heads", measure, confirm)
    value = part["value"].to_numpy().astype(float)
    has_null, has_errors = part["null"].null_count() == 0, part["se"].null_count() == 0
    null = part["null"].to_numpy().astype(float) if has_null else np.full(len(value), -math.inf)
    room = max(top - max(value[0], centre, float(np.median(null))), 0.0)
    noise = z * np.maximum(spread, noise_so_far(value))
    level = np.maximum(noise, least * room)
    floor = np.maximum(null, max(value[0], centre))
    excess = value - floor
    # Without a null: what most heads score at the start, or nothing at all where there are too few to say.
    chance = null[:confirm] if has_null else np.full(confirm, max(centre, 0.0))
    errors = part["se"].to_numpy().astype(float) if has_errors else None
    rise = find_rise(np.array(steps), excess, level, confirm, errors) if level.min() > 0 else None
    status = "weak" if sustained_peak(excess, confirm) > max(noise[-1], MIN_SHARE * room) else "never"
    if rise is not None:
        status = "formed, fell back" if rise.fell_back else "formed"
    elif bool(np.all(value[:confirm] - chance >= np.maximum(noise[:confirm], least * (top - chance)))):
        status = "from the start"
    elif excess[-1] >= level[-1] > 0:
        status = "unconfirmed"
    return {
        "layer": part["layer"][0],
        "head": part["head"][0],
        "measure": measure,
        "status": status,
        **rise_row(rise, dict(zip(steps, tokens, strict=True)), dict(zip(steps, floor.tolist(), strict=True))),
        "interval": None if rise is None else "prompts and neighbours" if has_errors else "neighbours",
        "baseline": value[0],
        "final": value[-1],
        "peak": value.max(),
        "null": float(null[-1]) if has_null else None,
        "level": level[-1],
    }


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

    A stage's step is that of the first head to form of those that did not fall back, and whose peak is at least half
    the best one's (so that a passing or a weak head does not speak for the stage); for copying, that of the loss
    difference and of the accuracy per token. Columns: stage, measure, layer, head; when, in the columns of
    `formation_steps`, from status to provisional; since_previous: `later`, `earlier`, `same bracket` (the checkpoints
    are too far apart to tell), compared with the stage before that formed; null where there is none. Raises
    InputError as `formation_steps` and `copying_formation` do. Cannot tell: that one stage causes the next.
    """
    previous, induced = formation_steps(heads, "previous_token"), formation_steps(heads, induction)
    return stages_in_order(previous, induced, copying_formation(model, chance))


def first_formed(table: pl.DataFrame) -> dict[str, Any] | None:
    """Of `formation_steps` the row of the first strong head: formed for good, and at its peak at least half as high as
    the highest of these; of several at one checkpoint that whose interval ends first. None where none has formed."""
    stays = table.filter(pl.col("formed") & ~pl.col("fell_back"))
    strong = stays.filter(pl.col("peak") >= pl.col("peak").max() / 2).sort("step", "high", "layer", "head")
    return None if strong.is_empty() else strong.row(0, named=True)


def stages_in_order(previous: pl.DataFrame, induction: pl.DataFrame, copying: pl.DataFrame) -> pl.DataFrame:
    """`order_of_appearance` from what `formation_steps` says of both kinds of heads, and `copying_formation`."""
    events: list[dict[str, Any]] = []
    for stage, table in (("previous-token head", previous), ("induction head", induction)):
        first = first_formed(table)
        events.append({"stage": stage, **(first or {"measure": table["measure"][0], "status": "not yet"})})
    stages = (("copying (loss)", "copying_loss_difference"), ("copying (accuracy)", "copying_accuracy_token"))
    for stage, measure in stages:
        for row in copying.filter(pl.col("measure") == measure).iter_rows(named=True):
            events.append({"stage": stage, **row})
    return ordered(events)


def formation_json(
    heads: pl.DataFrame,
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    measures: Sequence[str] = ("previous_token", "prefix_matching_sum", "induction_score"),
    chance: float = 0.0,
) -> dict[str, Any]:
    """Everything above as one JSON-safe dict, the content of results/formation.json.

    Keys: rule, checkpoints, heads (rows of `formation_steps` for each of `measures` that the table has), depth_trend
    (by measure), copying, emergence (`emergence`, with the settling of the loss; null without metrics), order,
    carriers (by measure: which head led when).
    Raises InputError as its parts do.
    """
    present = set(heads["measure"].to_list())
    used = [measure for measure in measures if measure in present]
    if not used:
        formation_steps(heads, measures[0])  # raises with the right words
    tables = {measure: formation_steps(heads, measure) for measure in used}
    induction = next(
        (m for m in ("prefix_matching_sum", "induction_score", "induction_attention") if m in present), used[-1]
    )
    copying = copying_formation(model, chance)
    order = []
    if "previous_token" in present:
        kinds = ("previous_token", induction)
        previous, formed = (tables[one] if one in tables else formation_steps(heads, one) for one in kinds)
        order = stages_in_order(previous, formed, copying).to_dicts()
    known = set(model["measure"].to_list())
    accuracy = next((m for m in ("copying_accuracy_token", "copying_loss_difference") if m in known), None)
    return plain(
        {
            "rule": {
                "confirm": CONFIRM,
                "z": Z,
                "least": MIN_LEVEL,
                "horizon": HORIZON,
                "chance": chance,
                "text": (__doc__ or "").strip(),
            },
            "checkpoints": sorted(set(heads["step"].to_list())),
            "heads": {measure: table.to_dicts() for measure, table in tables.items()},
            "depth_trend": {
                measure: depth_trend(table, tables.get("previous_token") if measure != "previous_token" else None)
                for measure, table in tables.items()
            },
            "copying": copying.to_dicts(),
            "emergence": emergence(model, metrics, chance, accuracy, copying)
            if accuracy and not metrics.is_empty()
            else None,
            "order": order,
            "carriers": {measure: carriers(heads, measure).to_dicts() for measure in used},
        }
    )
