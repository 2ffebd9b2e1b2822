"""What the page says of forks: the tree of a family, when things formed in each branch, and what chance alone does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.page.contents import Entry
from copyscope.analyses.statistics.intervals import prediction_interval
from copyscope.analyses.tables.family import RUN, Branch, families
from copyscope.analyses.tables.run import Run
from copyscope.analyses.words.json_values import table
from copyscope.interp.head_names import head_name
from copyscope.training.checkpoints.trunk import CHANGED, NULL, PLACEBO

STAGES = {"previous-token": "previous-token head", "induction": "induction head", "copying": "copying"}
"""Kinds of the story's events that a fork can move, in words."""
ACCURACY = "copying_accuracy_token"
AT_END = "copying accuracy at step {:,}"
MIN_DRAWS = 3
"""Runs that differ by chance alone, from which on a fork is held against their scatter: two placebo forks and their
parent."""
BEYOND, WITHIN = "beyond chance", "within chance"
_SCHEMA = {
    "branch": pl.String,
    "from step": pl.Int64,
    "what": pl.String,
    "value": pl.Float64,
    "parent": pl.Float64,
    "by chance from": pl.Float64,
    "to": pl.Float64,
    "runs": pl.Int64,
    "verdict": pl.String,
}


@dataclass(frozen=True)
class Outcome:
    """One thing that a run came to."""

    value: float | None
    """A step, or a share in [0, 1]; None for what has not formed."""
    last: int
    """The last step that was looked at."""
    share: bool = False
    error: float = 0.0
    """Standard error, of a step that of its ln."""


def family_entries(runs: Sequence[Run], entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The families among these runs for the index: `branches` (`tables.family.Branch`, in the order of the tree), and
    two tables, `formed` (a row a branch) and `chance` (a row a changed fork and outcome)."""
    found = []
    for branches in families(runs):
        fields = [None if one.run is None else entries[one.run].fields for one in branches]
        chance = chance_table(branches, fields)
        found.append(
            {
                "branches": [asdict(branch) for branch in branches],
                "formed": _formed_table(branches, fields),
                "chance": table(
                    "Changes held against chance", chance, chance.rename(lambda name: name.replace(" ", "_"))
                ),
            }
        )
    return found


def family_lines(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """By the place of a run that is a fork: whose it is, from which step on, and what differs."""
    lines = {}
    for family in found:
        branches = family["branches"]
        for branch in branches:
            if branch["run"] is None or branch["parent"] is None:
                continue
            above = branches[branch["parent"]]
            parent = above["name"] if above["run"] is None else names[above["run"]]
            lines[branch["run"]] = f"the first {branch['at']:,} steps are shared with {parent}, then {branch['label']}"
    return lines


def chance_table(branches: Sequence[Branch], fields: Sequence[Mapping[str, Any] | None]) -> pl.DataFrame:
    """Each changed fork against runs that differ from it by chance alone: the placebo forks of its parent from the same
    step on, and the parent, which went on from there in an order that was drawn like theirs.

    `fields`: of each branch its run in the index, None for one that is not on the page. Columns: branch, from step,
    what, value, parent, by chance from, to (`prediction_interval` of ln step, or of a share, 95 % for one run), runs
    (that it is computed from), verdict. What had formed by the fork's step in all of them has no row, and neither have
    forks without any placebo.
    """
    rows = []
    for place, branch in enumerate(branches):
        own = fields[place]
        if branch.kind != CHANGED or own is None:
            continue
        beside = [
            fields[other]
            for other, one in enumerate(branches)
            if one.parent == branch.parent and one.at == branch.at and one.kind == PLACEBO and fields[other] is not None
        ]
        if not beside:
            continue
        parent = _unchanged(branches, fields, branch)
        group = [*beside, *([] if parent is None else [parent])]
        last = min(one["steps"][-1] for one in [own, *group] if one is not None)
        told = [_outcomes(one, last) for one in group if one is not None]
        for what, outcome in _outcomes(own, last).items():
            draws = [one[what] for one in told if what in one]
            steps = [one.value for one in (outcome, *draws)]
            if not outcome.share and all(step is not None and step <= branch.at for step in steps):
                continue
            low, high, verdict = against_chance(outcome, draws)
            rows.append(
                {
                    "branch": branch.title,
                    "from step": branch.at,
                    "what": what,
                    "value": outcome.value,
                    "parent": None if parent is None or what not in told[-1] else told[-1][what].value,
                    "by chance from": low,
                    "to": high,
                    "runs": len(draws),
                    "verdict": verdict,
                }
            )
    return pl.DataFrame(rows, schema=_SCHEMA)


def against_chance(outcome: Outcome, draws: Sequence[Outcome]) -> tuple[float | None, float | None, str]:
    """Between which values one more run without the change would fall (95 %), and whether `outcome` does; `draws`: runs
    that differ by chance alone. None and None where that cannot be said, with why as the verdict."""
    values = [one.value for one in draws if one.value is not None]
    if len(draws) < MIN_DRAWS:
        return None, None, f"undecided: {len(draws)} runs to tell chance by, {MIN_DRAWS} are needed"
    if len(values) < len(draws):
        return None, None, f"undecided: not formed in {len(draws) - len(values)} of {len(draws)} runs without it"
    numbers = np.array(values, dtype=float)
    error = float(np.mean([one.error for one in draws]))
    if outcome.share:
        low, high = prediction_interval(numbers, error=error)
        low, high = max(low, 0.0), min(high, 1.0)
    else:
        low, high = (math.exp(end) for end in prediction_interval(np.log(np.maximum(numbers, 0.5)), error=error))
    if outcome.value is None:
        late = outcome.last > high
        return low, high, f"{BEYOND}: not formed" if late else "undecided: not formed yet"
    if low == high:
        return low, high, "undecided: the runs without it are all alike"
    return low, high, WITHIN if low <= outcome.value <= high else BEYOND


def _unchanged(
    branches: Sequence[Branch], fields: Sequence[Mapping[str, Any] | None], branch: Branch
) -> Mapping[str, Any] | None:
    """The parent as it went on, or the null fork that stands for it."""
    above = None if branch.parent is None else fields[branch.parent]
    if above is not None:
        return above
    null = [
        place
        for place, one in enumerate(branches)
        if one.parent == branch.parent and one.at == branch.at and one.kind == NULL
    ]
    return next((fields[place] for place in null if fields[place] is not None), None)


def _outcomes(run: Mapping[str, Any], last: int) -> dict[str, Outcome]:
    """What a run in the index came to by step `last`."""
    out = {}
    for event in run["story"]["events"]:
        if event["kind"] in STAGES:
            step = None if event["step"] is None or event["step"] > last else float(event["step"])
            ends = event["low"], event["high"]
            error = 0.0 if None in ends or ends[0] <= 0 else math.log(ends[1] / ends[0]) / (2 * 1.96)
            out[STAGES[event["kind"]]] = Outcome(step, last, error=error)
    at = _accuracy(run).get(last)
    if at is not None:
        out[AT_END.format(last)] = Outcome(at[0], last, share=True, error=at[1])
    return out


def _accuracy(run: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    """Step → copying accuracy and its standard error (0 where it is not known)."""
    curve = run["curves"].get(ACCURACY)
    if curve is None:
        return {}
    errors = curve["se"] or [0.0] * len(curve["steps"])
    return {
        step: (value, error or 0.0)
        for step, value, error in zip(curve["steps"], curve["values"], errors, strict=True)
        if value is not None
    }


def _formed_table(branches: Sequence[Branch], fields: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """A row a branch: from which step on, how far it went, when each stage formed, and in which head."""
    rows = []
    for branch, run in zip(branches, fields, strict=True):
        events: dict[str, Any] = {} if run is None else {event["kind"]: event for event in run["story"]["events"]}
        accuracy = {} if run is None else _accuracy(run)
        row: dict[str, Any] = {
            "branch": branch.title,
            "from_step": None if branch.kind == RUN else branch.at,
            "last_step": None if run is None else run["steps"][-1],
        }
        for kind in STAGES:
            event = events.get(kind, {})
            row[f"{kind.replace('-', '_')}_step"] = event.get("step")
            if kind != "copying":
                head, name = event.get("head"), f"{kind.replace('-', '_')}_head"
                row[name] = None if head is None or run is None else head_name(*divmod(head, run["n_heads"]))
        row["final_copying_accuracy"] = accuracy[max(accuracy)][0] if accuracy else None
        rows.append(row)
    frame = pl.DataFrame(rows, infer_schema_length=None)
    out = table("What formed when", frame, frame)
    return out | {"columns": [_words(name) for name in frame.columns]}


def _words(column: str) -> str:
    """A column's name for readers, who see the heads beside their stages."""
    for kind, words in STAGES.items():
        if column == f"{kind.replace('-', '_')}_step":
            return f"{words} at"
    return "which" if column.endswith("_head") else column.replace("_", " ")
