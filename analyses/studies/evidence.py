"""What the runs of a study came to: when things formed in each, how it ended, and its curves; as tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from copyscope.analyses.claims.evidence import COPYING_LOSS, STAGES, CopyingStep, Evidence, gather
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, read_metrics, read_tables, score_tables, stored_steps
from copyscope.training.errors import InputError
from copyscope.training.sweeps.driver import Outcome
from copyscope.training.sweeps.worker import FINISHED

MODEL_CURVES = (
    "copying_accuracy_token",
    "copying_accuracy_exact",
    "copying_loss_first",
    "copying_loss_second",
    COPYING_LOSS,
    "natural_loss",
    "icl_score",
)
TASK_MEASURES = ("choice_accuracy", "choice_accuracy_se", "accuracy", "control_choice", "chance")
HEAD_CURVES = ("previous_token", "prefix_matching_sum")
"""Of these, the highest score of any head."""


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """One run of a study: how it ended and what it has to say."""

    condition: str
    """Runs of one condition are repetitions with other seeds."""
    outcome: Outcome
    evidence: Evidence | None = None
    """None for a run that has nothing to say: diverged, failed, not there yet."""
    reason: str = ""
    """Why it has not."""
    curves: pl.DataFrame = field(default_factory=pl.DataFrame)
    """step, tokens, validation_loss, `MODEL_CURVES` and `HEAD_CURVES`; no rows without evidence."""
    tasks: pl.DataFrame = field(default_factory=pl.DataFrame)
    """step, task, variant, `TASK_MEASURES`, at the last step; no rows where it was not asked any."""

    @property
    def label(self) -> str:
        return self.outcome.run.label

    @property
    def loss(self) -> CopyingStep | None:
        """When copying formed by its loss (`Evidence.copying_loss`); None without evidence."""
        return self.evidence.copying_loss if self.evidence else None


def gather_study(outcomes: Sequence[Outcome]) -> list[StudyRun]:
    """Reads what each run left on disk; a run that is not finished, or has too little to say, only says so."""
    return [_gather(outcome) for outcome in outcomes]


def _gather(outcome: Outcome) -> StudyRun:
    run = outcome.run
    if outcome.status.state != FINISHED:
        why = f"{outcome.status.state}{': ' + outcome.status.reason if outcome.status.reason else ''}"
        return StudyRun(condition=run.condition, outcome=outcome, reason=why)
    try:
        evidence = gather(outcome.folder)
        opened = open_run(outcome.folder)
        heads, model = score_tables(opened)
        curves = _curves(heads, model, read_metrics(opened))
        evidence = replace(evidence, run=run.label)
        asked = _tasks(opened)
        return StudyRun(condition=run.condition, outcome=outcome, evidence=evidence, curves=curves, tasks=asked)
    except InputError as error:
        return StudyRun(condition=run.condition, outcome=outcome, reason=str(error))


def _tasks(run: Run) -> pl.DataFrame:
    """The in-context tasks of the last step, a row a variant."""
    if not stored_steps(run, "tasks"):
        return pl.DataFrame()
    table = read_tables(run, "tasks")
    last = table.filter(pl.col("step") == pl.col("step").max(), pl.col("measure").is_in(TASK_MEASURES))
    index = ["step", "task", "variant"]
    wide = last.pivot("measure", index=index, values="value", maintain_order=True)
    return wide.select(*index, *TASK_MEASURES)


def _curves(heads: pl.DataFrame, model: pl.DataFrame, metrics: pl.DataFrame) -> pl.DataFrame:
    """One row a checkpoint."""
    shown = model.filter(pl.col("measure").is_in(MODEL_CURVES))
    wide = shown.pivot("measure", index=["step", "tokens"], values="value")
    strongest = (
        heads.filter(pl.col("measure").is_in(HEAD_CURVES)).group_by("step", "measure").agg(pl.col("value").max())
    )
    wide = wide.join(strongest.pivot("measure", index="step", values="value"), on="step", how="left")
    losses = metrics.select("step", "validation_loss").drop_nulls()
    wide = wide.join(losses, on="step", how="left").sort("step")
    lacking = [name for name in (*MODEL_CURVES, *HEAD_CURVES) if name not in wide.columns]
    return wide.with_columns(pl.lit(None, pl.Float64).alias(name) for name in lacking).select(
        "step", "tokens", "validation_loss", *MODEL_CURVES, *HEAD_CURVES
    )


def by_loss(runs: Sequence[StudyRun]) -> bool:
    """Whether to date copying by the copying loss instead of the accuracy: where the accuracy formed in less than half
    as many runs. A small model comes to copy in part, which the loss shows long before the accuracy does."""
    accuracy = sum(run.evidence.copying.formed for run in runs if run.evidence)
    return 2 * accuracy < sum(run.loss.formed for run in runs if run.loss)


def evidence_of(runs: Sequence[StudyRun], loss: bool = False) -> list[Evidence]:
    """The evidence of those runs that have any; with `loss`, copying is dated by the copying loss."""
    known = [run.evidence for run in runs if run.evidence]
    return [replace(run, copying=run.copying_loss) if loss and run.copying_loss else run for run in known]


def conditions(runs: Sequence[StudyRun]) -> list[str]:
    """The conditions in the order of the sweep."""
    return list(dict.fromkeys(run.condition for run in runs))


def runs_table(runs: Sequence[StudyRun]) -> pl.DataFrame:
    """A row a run: what it is, how it ended, when each stage formed (step, low, high; null: not), final values."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        config = run.outcome.run.config
        row: dict[str, Any] = {
            "run_id": run.outcome.run.run_id,
            "run": run.label,
            "condition": run.condition,
            "seed": config.seeds.init,
            "state": run.outcome.status.state,
            "reason": run.reason,
            "seconds": round(run.outcome.status.seconds, 1),
            "steps": config.train.steps,
            "tokens": config.train.steps * config.train.batch_size * config.model.n_ctx,
        }
        by_stage: dict[str, tuple[float | None, ...]] = dict(run.evidence.steps) if run.evidence else {}
        if run.loss and run.loss.step is not None:
            by_stage["copying loss"] = (run.loss.step, run.loss.low, run.loss.high)
        for stage in (*STAGES[:2], "copying loss", STAGES[2]):
            values = by_stage.get(stage, (None,) * 3)
            row |= {f"{stage}{end}": value for end, value in zip(("", " low", " high"), values, strict=True)}
        final = run.evidence.final if run.evidence else {}
        row |= {f"final {name}": final.get(name) for name in MODEL_CURVES}
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def curves_table(runs: Sequence[StudyRun]) -> pl.DataFrame:
    """A row a run and checkpoint; empty without any evidence."""
    return _together([(run, run.curves) for run in runs])


def tasks_table(runs: Sequence[StudyRun]) -> pl.DataFrame:
    """A row a run and variant of a task, at the last step; empty where none was asked."""
    return _together([(run, run.tasks) for run in runs])


def _together(tables: Sequence[tuple[StudyRun, pl.DataFrame]]) -> pl.DataFrame:
    parts = [
        table.select(pl.lit(run.outcome.run.run_id).alias("run_id"), pl.lit(run.condition).alias("condition"), pl.all())
        for run, table in tables
        if not table.is_empty()
    ]
    return pl.concat(parts) if parts else pl.DataFrame()


def heads_table(runs: Sequence[StudyRun]) -> pl.DataFrame:
    """A row a run, measure and head: whether and when it formed (`formation_steps`)."""
    parts = []
    for run in runs:
        tables = [run.evidence.previous, run.evidence.induction] if run.evidence else []
        for table in tables:
            if table is not None:
                columns = table.select(
                    "layer", "head", "measure", "status", "step", "estimate", "low", "high", "peak", "final"
                )
                parts.append(columns.select(pl.lit(run.outcome.run.run_id).alias("run_id"), pl.all()))
    return pl.concat(parts) if parts else pl.DataFrame()
