"""The story of a run in a line: which heads formed when, when copying did, what removing the most needed head costs.

The page's first view, the figure of `copyscope.analyses.notebook.story` and the summary say the same because they all
take it from here.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from copyscope.analyses.formation.heads import order_of_appearance
from copyscope.analyses.formation.step_text import step_number, step_text
from copyscope.analyses.tables.ablation_text import COPIES, removed_heads
from copyscope.analyses.tables.averages import AVERAGED
from copyscope.analyses.tables.run import Run, chance, read_tables, score_tables
from copyscope.analyses.tables.stored import computed_with
from copyscope.interp.head_names import head_name
from copyscope.training.checkpoints.series import step_folder

STORY_MAPS = ("previous_token", "prefix_matching_sum")
"""The maps that tell it: a previous-token head, then an induction head that reads it."""
STORY_ACCURACIES = {
    "copying_accuracy_token": "per token",
    "copying_accuracy_exact": "whole suffix",
    AVERAGED: "per token, mean of weights",
}
"""Curves of copying accuracy: measure → its name beside the others."""
STORY_LOSSES = {"copying_loss_first": "first time", "copying_loss_second": "repeated"}
"""Curves of the loss on random tokens."""
COPYING = ("copying_accuracy_token", "copying_loss_difference")
"""What copying is told by, the first that formed."""
MARGIN = 4
"""How many times earlier than the first event, and later than the last one, the story's steps reach."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened, or did not."""

    kind: str
    """`previous-token`, `induction`, `copying` or `removal`."""
    text: str
    """In a few words: "induction L3H0 at 787", "no induction head formed"."""
    detail: str = ""
    """With its interval and remarks, as `step_text` has them; empty where there is none."""
    step: int | None = None
    """When it formed, or the checkpoint at which the head was removed; None for what did not form."""
    low: float | None = None
    high: float | None = None
    """95 % interval of the step at which it formed; None where there is none."""
    layer: int | None = None
    head: int | None = None
    measure: str = ""
    """What it was told by: of heads or the model, or an ablation's effect as `zero:copying_loss`."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What happened in a run."""

    events: tuple[Event, ...]
    span: tuple[int, int] | None
    """First and last step worth showing: `MARGIN` times around what formed, within the run; None where nothing did."""

    @property
    def line(self) -> str:
        """All of it in a line: what formed joined by arrows, then the removal."""
        formed = " → ".join(event.text for event in self.events if event.kind != "removal")
        return "; ".join([formed, *(event.text for event in self.events if event.kind == "removal")])


class Removals(NamedTuple):
    """What removing single heads did at the last step that was ablated."""

    table: pl.DataFrame
    step: int
    accuracy: float | None
    """Copying accuracy per token of the whole model at that step, in [0, 1]; None where it is not known."""


def story_of(run: Run) -> Story:
    """The story of a scored run. Raises InputError: not scored, too few checkpoints to say when anything formed, or a
    damaged table."""
    heads, model = score_tables(run)
    stages = stages_of(run, heads, model).to_dicts()
    copying = {row["measure"]: row for row in stages if row["stage"].startswith("copying")}
    told = [row for row in stages if not row["stage"].startswith("copying")]
    # By the accuracy, which is easier to picture; the loss rises earlier, and often where the accuracy never does.
    known = [copying[measure] for measure in COPYING if measure in copying]
    told += [row for row in known if row["formed"]][:1] or known[:1]
    events = [_formed(row) for row in told]
    return Story(
        events=(*events, *_removal(run, model)),
        span=_span([row for row in stages if row["formed"]], heads["step"].unique().sort().to_list()),
    )


def stages_of(run: Run, heads: pl.DataFrame, model: pl.DataFrame) -> pl.DataFrame:
    """`order_of_appearance` of a run's tables, by the measures of `STORY_MAPS`. Raises InputError as that does."""
    return order_of_appearance(heads, model, STORY_MAPS[1], chance(run))


def last_removals(run: Run, model: pl.DataFrame) -> Removals | None:
    """The stored ablations of single heads at their last step; None where nothing was ablated. `model`: scores of the
    whole model. Raises InputError for a damaged table."""
    if not any((run.folder / "results" / "ablations").glob("step*.parquet")):
        return None
    table = read_tables(run, "ablations")
    if table.is_empty():
        return None
    last = table.filter(pl.col("step") == pl.col("step").max())
    step = int(last["step"][0])
    path = Path("results") / "ablations" / f"{step_folder(step)}.parquet"
    place = run.folder if (run.folder / path).is_file() else run.of_step(step).folder
    clean = computed_with(place / path).get("clean", {})
    scored = dict(model.filter(pl.col("step") == step).select("measure", "value").iter_rows())
    return Removals(last, step, clean.get("copying_accuracy_token", scored.get("copying_accuracy_token")))


def _formed(row: dict[str, Any]) -> Event:
    """A row of `order_of_appearance` as an event."""
    kind = row["stage"].partition(" (")[0].removesuffix(" head")
    if not row["formed"]:
        copying = "copying has begun" if row["status"] == "begun" else "no copying"
        return Event(kind=kind, measure=row["measure"], text=copying if kind == "copying" else f"no {kind} head formed")
    step, detail = step_number(row), step_text(row)
    who = kind if row["head"] is None else f"{kind} {head_name(row['layer'], row['head'])}"
    return Event(
        kind=kind,
        text=f"{who} {'by' if detail.startswith('by') else 'at'} {step:,}",
        detail=detail,
        step=step,
        low=row["low"],
        high=row["high"],
        layer=row["layer"],
        head=row["head"],
        measure=row["measure"],
    )


def _removal(run: Run, model: pl.DataFrame) -> list[Event]:
    """What removing the most needed head does to copying; nothing where the model hardly copies or none was removed."""
    removals = last_removals(run, model)
    if removals is None or removals.accuracy is None or removals.accuracy < COPIES:
        return []
    method, wide = removed_heads(removals.table)
    if not {"copying_loss", "copying_accuracy_token"} <= set(wide.columns):
        return []
    row = wide.row(0, named=True)
    name, left = head_name(row["layer"], row["head"]), removals.accuracy + row["copying_accuracy_token"]
    return [
        Event(
            kind="removal",
            text=f"removing {name}: accuracy {removals.accuracy:.2f} → {max(left, 0):.2f}",
            detail=f"copying loss {row['copying_loss']:+.2f} nats, at step {removals.step:,} ({method})",
            step=removals.step,
            layer=row["layer"],
            head=row["head"],
            measure=f"{method}:copying_loss",
        )
    ]


def _span(events: Iterable[dict[str, Any]], steps: list[int]) -> tuple[int, int] | None:
    """Steps from `MARGIN` times before the first event's interval to `MARGIN` times after the last one's."""
    lows, highs = [], []
    for row in events:
        lows.append(row["bracket_low"] if row["low"] is None else min(row["low"], row["bracket_low"]))
        highs.append(row["bracket_high"] if row["high"] is None else max(row["high"], row["bracket_high"]))
    if not lows:
        return None
    low, high = math.floor(min(lows) / MARGIN), math.ceil(max(highs) * MARGIN)
    return max(low, steps[0]), min(high, steps[-1])
