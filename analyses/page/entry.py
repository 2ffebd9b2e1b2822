"""Everything the page says about one run but its attention: fields of the index, and blocks of numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.figures.map_data import phase_change
from copyscope.analyses.formation.heads import (
    copying_formation,
    depth_trend,
    formation_steps,
    loss_settled,
    stages_in_order,
)
from copyscope.analyses.formation.order import carriers
from copyscope.analyses.formation.roles import ROLES, head_roles
from copyscope.analyses.formation.step_rule import CONFIRM
from copyscope.analyses.formation.step_text import step_number
from copyscope.analyses.formation.tasks import task_formation
from copyscope.analyses.page.contents import Entry
from copyscope.analyses.page.numbers import (
    FORMING,
    Grid,
    as_bytes,
    calibrations,
    curves,
    effects,
    grid_of,
    pairs,
    score_measures,
    significant,
)
from copyscope.analyses.page.tables import (
    carrier_table,
    checkpoint_table,
    copying_table,
    definition_table,
    head_table,
    order_table,
    tidy_heads,
    tidy_steps,
)
from copyscope.analyses.page.task_curves import beside_copying, task_curves, task_table
from copyscope.analyses.tables.ablation_text import in_words
from copyscope.analyses.tables.averages import with_averages
from copyscope.analyses.tables.run import Run, chance, read_failed, read_metrics, read_tables, score_tables
from copyscope.analyses.tables.story import STORY_MAPS, story_of
from copyscope.analyses.tables.summary import provenance, summary_lines
from copyscope.analyses.words.json_values import number, table
from copyscope.training.errors import InputError

MAIN = ("prefix_matching_sum", "induction_score", "induction_attention")
"""Measures of induction heads, the one to be preferred first."""
KINDS = {"layers": "Layers", "pairs": "Pairs", "sets": "Smallest sets", "paths": "Paths", "attribution": "Attribution"}
MAX_STRETCHES = 32
"""Stretches of positions whose loss is shown."""
MAX_PAIR_STEPS = 12
"""Steps whose pairs of heads are shown: the last, and those around what formed."""


def run_entry(run: Run, place: int) -> Entry:
    """Reads the run's tables; `place` is its number in the index. Needs no torch.

    Raises InputError if the run was not scored or a table is damaged; what its tables are too short for is in `notes`.
    """
    heads, model = score_tables(run)
    notes: list[str] = []
    metrics = _tried(notes, lambda: read_metrics(run))
    metrics = pl.DataFrame(schema={"step": pl.Int64}) if metrics is None else metrics
    at_chance = chance(run)
    if run.data and not at_chance:
        notes.append(f"copying accuracy of guessing: {run.folder} has no counts.bin; put its tokens beside it")
    ablations = _stored(run, "ablations", notes)
    failed = read_failed(run)
    notes += [f"step {step:,} is not measured: {why}" for step, why in failed.items()]
    grid = grid_of(heads, failed)
    forming = [measure for measure in FORMING if (heads["measure"] == measure).any()]
    count = heads["step"].n_unique()
    if count > CONFIRM:
        formed = {measure: _tried(notes, lambda m=measure: formation_steps(heads, m)) for measure in forming}
        copying = _tried(notes, lambda: copying_formation(model, at_chance))
    else:
        formed, copying = dict.fromkeys(forming), None
        words = f"{count} checkpoint{'s' * (count != 1)}; a formation step needs at least {CONFIRM + 1}"
        notes.append(f"when heads and copying formed: {words}")
    band = _band([formed.get(measure) for measure in ("previous_token", *MAIN)], copying)
    measures = [*score_measures(heads), *calibrations(heads)]
    removed, blocks = effects(ablations, grid, f"ablation/{place}/") if ablations is not None else ({}, {})
    parts = dict(heads.partition_by("measure", as_dict=True))
    blocks |= {f"scores/{place}/{m}": as_bytes(grid.matrix(parts[(m,)])) for m in measures}
    tables = _tables(run, heads, model, ablations, formed, copying, notes)
    asked = _stored(run, "tasks", notes)
    if asked is not None:
        formed_tasks = _tried(notes, lambda: task_formation(asked))
        tables["tasks"] = table("In-context tasks", task_table(asked, formed_tasks))
    fields: dict[str, Any] = {
        "name": run.name,
        "source": run.series.source,
        "planned": run.config.train.steps if run.config else None,
        "n_layers": grid.n_layers,
        "n_heads": grid.n_heads,
        "steps": grid.steps,
        "tokens": _tokens(heads, grid),
        "checkpoints": [checkpoint.step for checkpoint in run.series.checkpoints],
        "curves": curves(with_averages(run, model), metrics) | task_curves(asked),
        "tasks": beside_copying(asked),
        "settled": _settled(notes, metrics),
        "copying": _copying(copying),
        "measures": measures,
        "formation": {measure: _formation(frame, grid) for measure, frame in formed.items() if frame is not None},
        "roles": _roles(heads, grid) if count > CONFIRM else [],
        "above_null": significant(heads, grid),
        "ablations": removed,
        "positions": _positions(run, notes),
        "pairs": _pairs(run, grid, band, notes),
        "tables": tables,
        "story": _story(notes, run, grid),
        "summary": summary_lines(run),
        "config": run.config.to_toml() if run.config else "",
        "provenance": provenance(run),
    }
    return Entry(fields, blocks, list(dict.fromkeys(notes)), band)


def _tried(notes: list[str], function: Callable[[], Any]) -> Any:
    """The result, or None with the reason in `notes`: a short or diverged run still gets its page."""
    try:
        return function()
    except InputError as error:
        notes.append(str(error))
        return None


def _stored(run: Run, kind: str, notes: list[str]) -> pl.DataFrame | None:
    """A kind of table under results/; None where none was computed."""
    if not any((run.folder / "results" / kind).glob("step*.parquet")):
        return None
    frame = _tried(notes, lambda: read_tables(run, kind))
    return None if frame is None or frame.is_empty() else frame


def _tokens(heads: pl.DataFrame, grid: Grid) -> list[int | None]:
    of_step = dict(heads.group_by("step").agg(pl.col("tokens").max()).rows())
    return [of_step.get(step) for step in grid.steps]


def _settled(notes: list[str], metrics: pl.DataFrame) -> dict[str, Any] | None:
    if metrics.is_empty():
        return None
    plateau = _tried(notes, lambda: loss_settled(metrics))
    if plateau is None or plateau.step is None:
        return None
    rule = f"loss plateau: a doubling of the steps brings less than {plateau.share:.0%} of the fall so far"
    return {"step": plateau.step, "low": number(plateau.low, 7), "high": number(plateau.high, 7), "rule": rule}


def _copying(copying: pl.DataFrame | None) -> dict[str, Any] | None:
    """When copying formed, by the accuracy per token, else by the loss; `start` to `end` is the phase change."""
    rows = {} if copying is None else {row["measure"]: row for row in copying.iter_rows(named=True) if row["formed"]}
    change = None if copying is None else phase_change(copying)
    row = rows.get("copying_accuracy_token") or rows.get("copying_loss_difference")
    if row is None or change is None:
        return None
    return {
        "step": step_number(row),
        **{name: number(row[name], 7) for name in ("low", "high")},
        "measure": row["measure"],
        "start": number(change.low, 7),
        "end": number(change.high, 7),
        "level": number(row["threshold"], 7),
        "rule": change.rule,
    }


def _story(notes: list[str], run: Run, grid: Grid) -> dict[str, Any]:
    """`story_of` with heads by their number; `maps`: the measures whose maps tell it; `from` and `to`: the steps shown
    at first, null for all."""
    told = _tried(notes, lambda: story_of(run)) if len(grid.steps) > CONFIRM else None
    events = [] if told is None else told.events
    low, high = (0, grid.steps[-1]) if told is None or told.span is None else told.span
    return {
        "events": [
            {
                "kind": event.kind,
                "text": event.text,
                "detail": event.detail,
                "step": event.step,
                "low": number(event.low, 7),
                "high": number(event.high, 7),
                "head": None if event.head is None or event.layer is None else event.layer * grid.n_heads + event.head,
                "measure": event.measure,
            }
            for event in events
        ],
        "maps": list(STORY_MAPS),
        "from": low if low > min(grid.steps) else None,
        "to": high if high < grid.steps[-1] else None,
    }


def _formation(frame: pl.DataFrame, grid: Grid) -> list[dict[str, Any]]:
    return [
        {
            "head": row["layer"] * grid.n_heads + row["head"],
            "step": None if row["step"] is None else step_number(row),
            "low": number(row["low"], 7),
            "high": number(row["high"], 7),
            "state": row["status"],
        }
        for row in frame.iter_rows(named=True)
    ]


def _roles(heads: pl.DataFrame, grid: Grid) -> list[dict[str, Any]]:
    """What each head became, with when and how strong at its best and in the end, a kind after the other."""
    return [
        {
            "role": ROLES[measure],
            "measure": measure,
            "heads": [
                known | {"peak": number(row["peak"], 4), "final": number(row["final"], 4)}
                for known, row in zip(_formation(frame, grid), frame.iter_rows(named=True), strict=True)
            ],
        }
        for measure, frame in head_roles(heads).items()
        if not frame.is_empty()
    ]


def _band(formed: list[pl.DataFrame | None], copying: pl.DataFrame | None) -> tuple[float, float] | None:
    tables = [frame for frame in (*formed, copying) if frame is not None]
    rows = [row for frame in tables for row in frame.filter("formed").iter_rows(named=True)]
    if not rows:
        return None
    return float(min(row["bracket_low"] for row in rows)), float(max(row["bracket_high"] for row in rows))


def _positions(run: Run, notes: list[str]) -> dict[str, Any] | None:
    """Loss on held-out text by position in the context, in nats: `edges` of stretches of positions, evenly in their
    log, and `values`, a row a stretch and a column a step; None where it was not scored."""
    frame = _stored(run, "positions", notes)
    if frame is None:
        return None
    last = int(frame["position"].max())  # type: ignore[arg-type]
    edges = sorted({round(edge) for edge in np.geomspace(1, last + 1, MAX_STRETCHES + 1)})
    stretch = pl.col("position").cut(edges[1:-1], left_closed=True).to_physical()
    mean = (pl.col("loss") * pl.col("count")).sum() / pl.col("count").sum()
    table = frame.group_by(stretch.alias("stretch"), "step").agg(mean.alias("loss"))
    steps = sorted(set(frame["step"].to_list()))
    known = {(row["stretch"], row["step"]): number(row["loss"], 4) for row in table.iter_rows(named=True)}
    order = sorted({key[0] for key in known})
    return {"edges": edges, "steps": steps, "values": [[known.get((one, step)) for step in steps] for one in order]}


def _pairs(run: Run, grid: Grid, band: tuple[float, float] | None, notes: list[str]) -> list[dict[str, Any]]:
    frame = _stored(run, "pairs", notes)
    if frame is None:
        return []
    steps = sorted(set(frame["step"].to_list()))
    around = [step for step in steps if band and band[0] <= step <= band[1]]
    every = max(1, -(-len(around) // (MAX_PAIR_STEPS - 1)))
    return pairs(frame, _stored(run, "ablations/paths", notes), grid, sorted({*around[::every], steps[-1]}))


def _tables(
    run: Run,
    heads: pl.DataFrame,
    model: pl.DataFrame,
    ablations: pl.DataFrame | None,
    formed: dict[str, pl.DataFrame | None],
    copying: pl.DataFrame | None,
    notes: list[str],
) -> dict[str, dict[str, Any]]:
    main = next((measure for measure in MAIN if measure in formed), next(iter(formed), None))
    out: dict[str, dict[str, Any]] = {}
    if main is not None:
        previous, induced = formed.get("previous_token"), formed[main]
        if copying is not None and previous is not None and induced is not None:
            order = stages_in_order(previous, induced, copying)
            out["order"] = table(
                "Order of appearance", order_table(order), tidy_steps(order, "stage", "layer", "head", "status")
            )
        given = (heads, main, formed[main], ablations)
        out["heads"] = table("The heads with the highest final score", head_table(*given), tidy_heads(*given))
    if copying is not None:
        out["copying"] = table(
            "Copying",
            copying_table(copying),
            tidy_steps(copying, "measure", "status", "onset", "baseline", "final", "peak"),
        )
    leaders = [carriers(heads, measure) for measure, frame in formed.items() if frame is not None]
    if any(not leader.is_empty() for leader in leaders):
        led = pl.concat(leaders)
        out["carriers"] = table("Which head scores highest, and from when to when", carrier_table(led), led)
    if main is not None and formed[main] is not None:
        trend = depth_trend(formed[main], formed.get("previous_token"))  # type: ignore[arg-type]
        row = pl.DataFrame({"shallow to deep?": [trend.verdict], "because": [trend.reason]})
        out["depth"] = table("Do heads form from shallow to deep layers?", row)
    removed = [(title, line) for kind, title in KINDS.items() for line in _kind_lines(run, kind, notes)]
    if removed:
        frame = pl.DataFrame(removed, schema=["removed", "what it does"], orient="row")
        out["removed"] = table("What removing more than one head does", frame)
    out["checkpoints"] = table("What was measured", checkpoint_table(heads, model, ablations))
    out["definitions"] = table("What the measures mean", definition_table(heads, model))
    return out


def _kind_lines(run: Run, kind: str, notes: list[str]) -> list[str]:
    frame = _stored(run, f"ablations/{kind}", notes)
    return [] if frame is None else in_words(kind, frame)
