"""Studies of forks: parents from a sweep, and of each the same forks at the same shares of its formation step."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from copyscope.analyses.claims.evidence import INDUCTION
from copyscope.analyses.formation.heads import first_formed, formation_steps
from copyscope.analyses.formation.step_rule import middle
from copyscope.analyses.studies.scored_run import arguments, program
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_tables
from copyscope.interp.head_names import head_name
from copyscope.training.checkpoints.trunk import ORDER, read_trunk
from copyscope.training.config import RunConfig
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.fork import LENGTH, LIMITED, fork
from copyscope.training.progress import Progress
from copyscope.training.sweeps.driver import Outcome
from copyscope.training.sweeps.plan import PlannedRun, Sweep
from copyscope.training.sweeps.worker import DONE, FINISHED, read_status

logger = logging.getLogger(__name__)
FORKS = "forks"
"""Under a study's folder: a folder of forks for each parent, by its run_id."""
PARENT, ORDER_ALONE = "parent", "other order"
"""What differs in the row of a parent, and in a fork that only reads the text in another order."""
_KEYS = ("at", "orders", "lasting", "end", "changes")
SCHEMA = {
    "parent": pl.String,
    "parent_id": pl.String,
    "run_id": pl.String,
    "change": pl.String,
    "share": pl.Float64,
    "at": pl.Int64,
    "until": pl.Int64,
    "order": pl.Int64,
    "state": pl.String,
    "reason": pl.String,
    "step": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "head": pl.String,
    "last_step": pl.Int64,
}


@dataclass(frozen=True, kw_only=True)
class ForkPlan:
    """The forks of each parent: `orders` at each step without a change, and as many with each change."""

    at: tuple[float, ...]
    """Where, as shares of the step at which the parent's first induction head formed."""
    orders: int
    """Forks in which the text that is left is read in another order. Fork number k reads it in the same order with
    every change and without, so that the two can be compared."""
    lasting: float | None
    """How long the changes last, as a share of that step; None: to the end."""
    end: float | None
    """Where the forks end, as a share of that step; None: where the parent does."""
    changes: Mapping[str, Mapping[str, Any]]
    """Label → dotted fields and values."""

    def count(self, parents: int) -> int:
        """Forks of so many parents."""
        return parents * len(self.at) * self.orders * (1 + len(self.changes))

    def last_step(self, parent: PlannedRun, formed: float) -> float:
        """Where the forks of a parent end whose first induction head formed at step `formed`; to be rounded."""
        return float(parent.config.train.steps) if self.end is None else self.end * formed

    def about(self, parents: Sequence[PlannedRun], out: Path) -> list[RunConfig]:
        """What the forks that are not done will cost about as much as, if induction forms half-way through a parent."""
        todo: list[RunConfig] = []
        for parent in parents:
            steps, several = parent.config.train.steps, self.orders * (1 + len(self.changes))
            lengths = [max(1, round(self.last_step(parent, steps / 2) - steps * share / 2)) for share in self.at]
            forks = [parent.config.with_values({"train.steps": length}) for length in lengths for _ in range(several)]
            todo += forks[sum(read_status(one).state in DONE for one in (out / FORKS / parent.run_id).glob("*")) :]
        return todo


def fork_plan(table: Any) -> ForkPlan:
    """The section [fork] of a study's preset. Raises InputError for what it cannot hold."""
    if not isinstance(table, dict) or not table.keys() <= set(_KEYS) or not {"at", "orders"} <= table.keys():
        raise InputError(f"[fork]: give at and orders; lasting, end and [[fork.changes]] if you like; not {table!r}")
    at, orders, lasting, end = table["at"], table["orders"], table.get("lasting"), table.get("end")
    if not isinstance(at, list) or not at or not all(isinstance(one, int | float) and one >= 0 for one in at):
        raise InputError(f"[fork] at: give shares of the formation step, as in [0.25, 0.5], not {at!r}")
    if sorted(set(at)) != at:
        raise InputError(f"[fork] at: give each share once, in ascending order, not {at!r}")
    if type(orders) is not int or orders < 2:
        raise InputError(f"[fork] orders: give 2 or more, not {orders!r}")
    if lasting is not None and not (isinstance(lasting, int | float) and lasting > 0):
        raise InputError(f"[fork] lasting: give a share of the formation step above 0, not {lasting!r}")
    if end is not None and not (isinstance(end, int | float) and end > at[-1] + (lasting or 0)):
        raise InputError(f"[fork] end: give a share of the formation step beyond all at which forks begin, not {end!r}")
    changes: dict[str, dict[str, Any]] = {}
    for change in table.get("changes", []):
        values = _dotted({name: value for name, value in change.items() if name != "label"})
        if not isinstance(change.get("label"), str) or not values or change["label"] in (PARENT, ORDER_ALONE, *changes):
            raise InputError("[[fork.changes]]: give each a label of its own, and the fields that change")
        endless = sorted(values.keys() - LIMITED)
        if endless:
            raise InputError(f"[[fork.changes]] {endless[0]}: cannot change for some updates only")
        changes[change["label"]] = values
    return ForkPlan(at=tuple(map(float, at)), orders=orders, lasting=lasting, end=end, changes=changes)


def _dotted(table: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in table.items():
        fields |= {f"{name}.{field}": one for field, one in value.items()} if isinstance(value, dict) else {name: value}
    return fields


def first_induction(folder: Path) -> dict[str, Any] | None:
    """The first strong induction head of a scored run: step, low, high (updates), head. None where none has formed.

    Raises InputError for what its tables lack.
    """
    heads = read_tables(open_run(folder), "heads")
    known = set(heads["measure"].to_list())
    row = first_formed(formation_steps(heads, next((one for one in INDUCTION if one in known), INDUCTION[0])))
    if row is None or (step := middle(row)) is None:
        return None
    return {"step": step, "low": row["low"], "high": row["high"], "head": head_name(row["layer"], row["head"])}


def train_forks(
    plan: ForkPlan,
    parents: Sequence[Outcome],
    out: Path,
    engine: str | Engine,
    jobs: int | None,
    *,
    options: Mapping[str, Any] | None,
    planned: Sweep,
    device: str,
    dtype: str,
    progress: Progress | None,
) -> None:
    """Trains and scores the forks of every parent that is finished and has an induction head, or goes on with them;
    `planned`: how they are scored.

    Only their tables stay. One that diverges or fails is marked, and the others go on.
    """
    for parent in parents:
        try:
            first = first_induction(parent.folder) if parent.status.state == FINISHED else None
        except InputError as error:
            logger.warning(f"{parent.run.label}: {error}")
            continue
        if first is None:
            logger.warning(f"{parent.run.label}: no induction head formed in it, so it is not forked")
            continue
        steps = [round(share * first["step"]) for share in plan.at]
        lasting = None if plan.lasting is None else max(1, round(plan.lasting * first["step"]))
        fixed = {"checkpoints.keep": "none", LENGTH: round(plan.last_step(parent.run, first["step"]))}
        for values in ({}, *plan.changes.values()):
            orders = [{ORDER: parent.run.config.seeds.data + number} for number in range(1, plan.orders + 1)]
            fork(
                parent.folder,
                steps,
                [{**values, **order, **fixed} for order in orders],
                out / FORKS / parent.run.run_id,
                lasting=lasting if values else None,
                engine=engine,
                jobs=jobs,
                options=options,
                child=program(arguments(planned.samples, device, dtype, planned.tasks)),
                progress=progress,
            )


def gather_forks(plan: ForkPlan, parents: Sequence[Outcome], out: Path) -> pl.DataFrame:
    """A row a parent and a fork, from what each left on disk.

    Columns (`SCHEMA`): parent (its label), parent_id, run_id, change (`PARENT`, `ORDER_ALONE` or the label of the
    change), share (of the parent's formation step), at, until, order (its number), state, reason; step, low, high of
    the first strong induction head, and which head it is (null: none has formed by last_step).
    """
    rows: list[dict[str, Any]] = []
    for parent in parents:
        of = {"parent": parent.run.label, "parent_id": parent.run.run_id}
        rows.append(of | _row(parent.folder, PARENT, 0.0, 0))
        formed = rows[-1]["step"]
        for folder in sorted((out / FORKS / parent.run.run_id).glob("*/config.toml")):
            if formed is None:
                break
            config = RunConfig.load(folder)
            share = min(plan.at, key=lambda one: abs(one * formed - config.fork.at))
            number = config.seeds.data - parent.run.config.seeds.data
            change = _change(plan, parent.run.config, config)
            apart = share * formed - config.fork.at, plan.last_step(parent.run, formed) - config.train.steps
            if change is not None and max(map(abs, apart)) <= 1 and 1 <= number <= plan.orders:
                rows.append(of | _row(folder.parent, change, share, number))
    order = {one.run.run_id: number for number, one in enumerate(parents)}
    named = {name: number for number, name in enumerate((PARENT, ORDER_ALONE, *plan.changes))}
    rows.sort(key=lambda row: (order[row["parent_id"]], named[row["change"]], row["share"], row["order"]))
    return pl.DataFrame(rows, schema=SCHEMA)


def _change(plan: ForkPlan, parent: RunConfig, config: RunConfig) -> str | None:
    """Which change of the plan a fork has; None for one that the plan does not have."""
    for label, values in {ORDER_ALONE: {}, **plan.changes}.items():
        fields = {field for change in plan.changes.values() for field in change}
        if config.only(fields) == parent.with_values(values).only(fields):
            return label
    return None


def _row(folder: Path, change: str, share: float, order: int) -> dict[str, Any]:
    config, status, trunk = RunConfig.load(folder / "config.toml"), read_status(folder), read_trunk(folder)
    row: dict[str, Any] = dict.fromkeys(SCHEMA) | {
        "run_id": config.run_id,
        "change": change,
        "share": share,
        "at": 0 if trunk is None else trunk.step,
        "until": config.fork.until,
        "order": order,
        "state": status.state,
        "reason": status.reason,
        "last_step": config.train.steps,
    }
    if status.state == FINISHED:
        try:
            row |= first_induction(folder) or {}
        except InputError as error:
            row |= {"state": "failed", "reason": str(error)}
    return {name: value for name, value in row.items() if name not in ("parent", "parent_id")}
