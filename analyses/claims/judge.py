"""Verdicts on the claims of "Language Models 'Grok' to Copy" (arXiv 2409.09281), and on three of other papers, from
scored runs."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from copyscope.analyses.claims.across_runs import (
    RATE,
    SCHEDULE,
    learning_rate,
    optimization_intensity,
    regularization,
    updates_not_tokens,
)
from copyscope.analyses.claims.evidence import STAGES, Evidence, gather
from copyscope.analyses.claims.factors import FORK, comparable, varied
from copyscope.analyses.claims.order import induction_before_function_vector, sinks_after_induction, token_before_whole
from copyscope.analyses.claims.verdict import Verdict, computed_unlike
from copyscope.analyses.claims.within_runs import delayed_emergence, shallow_to_deep, stage_after_stage
from copyscope.analyses.statistics.intervals import over_runs
from copyscope.analyses.tables.opening import open_runs
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)


class Claims(NamedTuple):
    """The verdicts on the claims, and when things formed in the runs behind them."""

    verdicts: list[Verdict]
    runs: pl.DataFrame
    """A row a run, and one for all seeds of a recipe: when each stage formed, with 95 % intervals (`runs_table`)."""


def claims(sources: Source | Sequence[Source], factor: str | None = None) -> Claims:
    """A verdict on each claim from scored runs (`copyscope score`); undecided unless the runs decide it.

    `factor`: a setting such as `train.batch_size`; then the runs must differ in it alone (apart from seeds and from
    what does not change an update). Without it, each claim uses the runs that differ in its own setting alone, and
    names those it leaves out. Where runs were not computed alike (threads, precision, device), each reason says so.
    Raises InputError: a run that was not scored, is given twice, has too few checkpoints, steps twice or out of order,
    scores that are not numbers; with `factor`, a run that differs in more.
    """
    opened = open_runs(sources)
    runs, note = [gather(run) for run in opened], computed_unlike(run.folder for run in opened)
    if not runs:
        raise InputError("claims: no run given; name one or more run folders")
    if len({run.run for run in runs}) < len(runs):  # folders of one name: only their paths tell them apart
        runs = [replace(run, run=run.source) for run in runs]
    _no_doubles(runs)
    forks = [run.run for run in runs if run.config.get(FORK)]
    if forks and len(runs) > 1:
        logger.warning(
            f"{len(forks)} of {len(runs)} runs are forks ({forks[0]}…): what they share with their parent and "
            "with each other counts once for each, so intervals over runs are too narrow"
        )
    if factor is not None:
        also = SCHEDULE if factor == RATE else ()
        comparable([run.config for run in runs], factor, also, [run.run for run in runs])
    judges: tuple[Callable[[list[Evidence]], Verdict], ...] = (
        delayed_emergence,
        updates_not_tokens,
        shallow_to_deep,
        stage_after_stage,
        regularization,
        learning_rate,
        optimization_intensity,
        token_before_whole,
        induction_before_function_vector,
        sinks_after_induction,
    )
    verdicts = [judge(runs) for judge in judges]
    return Claims([replace(verdict, reason=verdict.reason + note) for verdict in verdicts], runs_table(runs))


def runs_table(runs: Sequence[Evidence]) -> pl.DataFrame:
    """When things formed in each run, and over the seeds of each recipe (Student's interval of the log step).

    Columns: run, runs (how many the row is of), then for the first strong previous-token and induction head and for
    copying (accuracy per token) the step, low and high, null where it did not form, and in how many runs it formed.
    Rows over seeds are named by how many there are; a step in them is that of the seeds in which the stage formed, so
    too early where some did not.
    """
    varying = varied([run.config for run in runs if run.config])
    recipes: dict[tuple[Any, ...], list[Evidence]] = {}
    for run in runs:  # of one without a configuration (a third-party series) nobody knows what it is a seed of
        key = tuple(run.config.get(name) for name in varying) if run.config else (run.run, run.source)
        recipes.setdefault(key, []).append(run)
    rows: list[dict[str, Any]] = []
    for recipe, seeds in recipes.items():
        settings = dict(zip(varying, map(str, recipe), strict=True)) if seeds[0].config else dict.fromkeys(varying)
        rows += [{"run": run.run, "runs": 1, **settings, **_columns([run])} for run in seeds]
        if len(seeds) > 1:
            rows.append({"run": f"{len(seeds)} seeds together", "runs": len(seeds), **settings, **_columns(seeds)})
    return pl.DataFrame(rows, infer_schema_length=None)


def _columns(runs: Sequence[Evidence]) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    for stage in STAGES:
        known = [run.steps[stage] for run in runs if stage in run.steps]
        mean = over_runs(*np.maximum(np.array(known, dtype=float), 0.5).T) if known else (None, None, None)
        out |= dict(zip((stage, f"{stage}, low", f"{stage}, high"), mean, strict=True))
        out[f"{stage}, formed"] = len(known)
    return out


def _no_doubles(runs: list[Evidence]) -> None:
    seen: dict[str, str] = {}
    for run in runs:
        for key in {run.run_id or "", str(Path(run.source).resolve())} - {""}:
            if key in seen:
                raise InputError(
                    f"{run.source}: the same experiment as {seen[key]}; give each once (other seeds count)"
                )
            seen[key] = run.source
