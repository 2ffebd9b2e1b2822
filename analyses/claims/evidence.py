"""What one scored run has to say on the claims: formation steps, the order of events, and how it ended."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from copyscope.analyses.claims.events import Step, events_of
from copyscope.analyses.claims.factors import flat
from copyscope.analyses.formation.emergence import Emergence, emergence
from copyscope.analyses.formation.heads import copying_formation, first_formed, formation_steps, stages_in_order
from copyscope.analyses.formation.step_rule import middle
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, chance, read_metrics, read_tables, score_tables, stored_steps
from copyscope.training.checkpoints.average import ABOUT
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError
from copyscope.training.schedule import learning_rate, settings_at

COPYING = "copying_accuracy_token"
COPYING_LOSS = "copying_loss_difference"
INDUCTION = ("prefix_matching_sum", "induction_score", "induction_attention")
STAGES = ("previous-token head", "induction head", "copying")
LAST = 3
"""Checkpoints behind a final value: copying jumps about from one to the next."""


@dataclass(frozen=True)
class CopyingStep:
    """When copying formed in a run, dated by one measure; steps are updates."""

    measure: str
    """`COPYING` or `COPYING_LOSS`."""
    formed: bool
    """By the last checkpoint."""
    step: float | None
    """Formation step; None where copying has not formed or began before the first checkpoint."""
    low: float | None
    """95 % interval of the step; None where copying has not formed."""
    high: float | None
    provisional: bool
    """A longer run may move the step."""

    @classmethod
    def of(cls, measure: str, row: Mapping[str, Any]) -> "CopyingStep":
        """From the row of `copying_formation` for this measure."""
        return cls(
            measure=measure,
            formed=row["formed"],
            step=middle(row),
            low=row["low"],
            high=row["high"],
            provisional=bool(row["provisional"]),
        )

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the step, at least half an update, so that it has a logarithm; NaN where there is none."""
        if self.step is None or self.low is None or self.high is None:
            return math.nan, math.nan
        return max(self.low, 0.5), self.high


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One scored run, as the claims see it. Steps are updates; losses are in nats."""

    run: str
    source: str
    run_id: str | None
    config: dict[str, Any]
    """`analyses.claims.factors.flat`; empty for a series that copyscope did not train."""
    n_layers: int
    """Layers whose heads were scored."""
    induction: pl.DataFrame
    """`formation_steps` of induction heads."""
    previous: pl.DataFrame | None
    """The same of previous-token heads."""
    order: pl.DataFrame
    copying: CopyingStep
    """By the accuracy per token, unless a study dates copying by its loss."""
    copying_loss: CopyingStep | None
    """By the copying loss; None if the tables lack it."""
    emergence: Emergence | None
    """None without losses."""
    final: dict[str, float]
    """Mean over the last three checkpoints, by measure of the model table."""
    rates: Float[np.ndarray, " update"] | None
    """Learning rate of every update; None where the configuration is not known."""
    tokens_per_step: float
    events: Mapping[str, Step | None] = field(default_factory=dict)
    """When other things formed (`events_of`); None where they have not, missing where that cannot be seen."""
    last_step: int
    """Of the last checkpoint that was scored; at least 1."""

    @property
    def steps(self) -> dict[str, tuple[float, float, float]]:
        """Formation step with its 95 % interval, by stage (`STAGES`); a stage that did not form is missing."""
        by_stage = {}
        for stage, table in zip(STAGES, (self.previous, self.induction), strict=False):
            first = None if table is None else first_formed(table)
            if first is not None and (step := middle(first)) is not None:
                by_stage[stage] = (step, first["low"], first["high"])
        if self.step is not None and self.copying.low is not None and self.copying.high is not None:
            by_stage[STAGES[2]] = (self.step, self.copying.low, self.copying.high)
        return by_stage

    @property
    def late(self) -> bool:
        """Copying has not formed by the last checkpoint."""
        return not self.copying.formed

    @property
    def step(self) -> float | None:
        """Formation step of copying; None where it has not formed or began before the first checkpoint."""
        return self.copying.step

    @property
    def log_error(self) -> float | None:
        """Standard error of ln of that step, from its 95 % interval."""
        if self.step is None:
            return None
        low, high = self.copying.interval
        return (math.log(high) - math.log(low)) / (2 * 1.96)


def learning_rates(run: Run) -> Float[np.ndarray, " update"] | None:
    """The learning rate of every update of a run, of a fork's first ones that of its parent; None where the
    configuration is not known."""
    if run.config is None:
        return None
    own = np.array([learning_rate(settings_at(run.config, step), step) for step in range(run.config.train.steps)])
    first = learning_rates(run.trunk) if run.trunk else None
    return own if first is None else np.concatenate([first[: run.config.fork.at], own[run.config.fork.at :]])


def gather(source: Source) -> Evidence:
    """Reads a scored run. Raises InputError, with the run's name in front, for what its tables lack."""
    run = open_run(source)
    if (run.folder / ABOUT).is_file():
        raise InputError(
            f"{run.folder}: means of a run's weights, which are no run of their own; give {run.folder.parent}"
        )
    try:
        heads, model = score_tables(run)
        metrics, at_chance = read_metrics(run), chance(run)
        known = set(heads["measure"].to_list())
        induction = next((measure for measure in INDUCTION if measure in known), INDUCTION[0])
        formed = formation_steps(heads, induction)
        previous = formation_steps(heads, "previous_token") if "previous_token" in known else None
        copying = copying_formation(model, at_chance)
        rows = copying.rows_by_key("measure", named=True, unique=True)
        if COPYING not in rows:
            raise InputError(f"model table: no {COPYING}; score the series again")
        most = heads["tokens"].max()  # None: a third-party series, which does not say
        last = model.filter(pl.col("step").is_in(model["step"].unique().sort().tail(LAST).implode()))
        final = last.group_by("measure").agg(pl.col("value").mean())
        return Evidence(
            run=run.name,
            source=run.series.source,
            run_id=run.config.run_id if run.config else None,
            config=flat(run.config) if run.config else {},
            n_layers=heads["layer"].n_unique(),
            induction=formed,
            previous=previous,
            order=pl.DataFrame() if previous is None else stages_in_order(previous, formed, copying),
            copying=CopyingStep.of(COPYING, rows[COPYING]),
            copying_loss=CopyingStep.of(COPYING_LOSS, rows[COPYING_LOSS]) if COPYING_LOSS in rows else None,
            emergence=None if metrics.is_empty() else emergence(model, metrics, at_chance, COPYING, copying),
            final=dict(final.iter_rows()),
            rates=learning_rates(run),
            events=events_of(heads, read_tables(run, "tasks") if stored_steps(run, "tasks") else None),
            tokens_per_step=float("nan") if most is None else most / max(heads["step"].max(), 1),  # type: ignore[operator]
            last_step=max(1, int(model["step"].max())),  # type: ignore[arg-type]
        )
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(run.folder)) else f"{run.name}: {message}") from None
