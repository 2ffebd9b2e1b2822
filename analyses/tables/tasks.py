"""In-context tasks at every checkpoint of a series, stored as one table a step."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from copyscope.analyses.formation.tasks import task_formation
from copyscope.analyses.tables.as_trained import as_trained
from copyscope.analyses.tables.loading import SeriesModels
from copyscope.analyses.tables.measured import measure_series
from copyscope.analyses.tables.measurer import Measurer, SeriesError
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, labelled, read_tables, selected
from copyscope.analyses.tables.run_prompts import Prompts
from copyscope.analyses.tables.stored import is_stored, store_table
from copyscope.analyses.tables.workers import workers_of
from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.devices import Compute
from copyscope.interp.tasks.answers import TaskResult
from copyscope.interp.tasks.questions import N_PROMPTS, Source, TaskPrompts
from copyscope.interp.tasks.registry import TASKS, draw_tasks, encoder, run_tasks
from copyscope.training.checkpoints.series import Checkpoint, step_folder
from copyscope.training.checkpoints.series import Source as SeriesSource
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)

VERSION = 2
"""Raised when a task or its prompts change, so that stored results are computed again."""
MIN_PROMPTS = 8
"""Fewer say nothing: a quarter of them are of the controls."""


def tasks(
    source: SeriesSource,
    names: Iterable[str] | None = None,
    steps: Iterable[int] | None = None,
    progress: Progress | None = None,
    *,
    seeds: Sequence[int] | None = None,
    prompts: int = N_PROMPTS,
    cache_limit: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    max_bytes: int | None = None,
    engine: str | Engine | None = None,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Asks every checkpoint of a series the in-context tasks and returns their table: run, step, tokens, task, variant,
    measure, value; a measure for each field of `interp.tasks.TaskResult`.

    `names` of tasks (`interp.tasks.TASKS`); None for all that context and vocabulary have room for. `seeds` of the
    prompts; None for the run's own; of several the first counts. `prompts`: independent contexts of a variant. The rest
    is as for `score`: prompts are the same at every step, what is stored is not computed again, a checkpoint that
    cannot be measured is noted. Raises InputError as `score` does, and for a task that is unknown or has no room.
    """
    workers, run = workers_of(engine, jobs, options, device), open_run(source)
    compute = Compute(device=device, dtype=dtype, max_bytes=max_bytes)
    names = None if names is None else list(names)
    asker = TaskAsker(names, seeds=seeds, prompts=prompts, cache_limit=cache_limit, compute=compute)
    measure_series(run, asker, selected(run, steps), progress, workers)
    return read_tables(run, "tasks")


class TaskAsker(Measurer):
    """Asks the checkpoints of one series, one by one. Arguments as for `tasks`."""

    command, doing = "tasks", "asking tasks"
    version: ClassVar[tuple[str, int]] = ("tasks", VERSION)
    """Which table, and by which definitions."""

    def __init__(
        self,
        names: Iterable[str] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        prompts: int = N_PROMPTS,
        cache_limit: float | None = None,
        compute: Compute | None = None,
    ) -> None:
        self._names = None if names is None else check_names(list(names), list(TASKS), "task")
        if prompts < MIN_PROMPTS:
            raise InputError(f"prompts={prompts}: at least {MIN_PROMPTS} are needed")
        self._seeds, self._n_prompts = seeds, prompts
        self.models = SeriesModels(seeds, cache_limit=cache_limit, compute=compute)
        self._drawn: tuple[Prompts, dict[str, list[TaskPrompts]]] | None = None

    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether the table of this checkpoint is on disk already."""
        path = self._path(run, checkpoint)
        return path.is_file() and is_stored(path, self._key(run, checkpoint))

    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        """Asks a checkpoint and stores its table."""
        key = self._key(run, checkpoint)
        model, prompts = self.models.load(run, checkpoint)
        drawn = self._draw(prompts)
        with as_trained(model, run, checkpoint):
            table = results_table(run_tasks(model, drawn))
        self._store(run, checkpoint, table, key, prompts, drawn)

    def _store(
        self,
        run: Run,
        checkpoint: Checkpoint,
        table: pl.DataFrame,
        key: str,
        prompts: Prompts,
        drawn: Mapping[str, list[TaskPrompts]],
    ) -> None:
        facts = {
            "version": self.version[1],
            "tasks": list(drawn),
            "seed": prompts.seed,
            "prompts": self._n_prompts,
            "vocabulary": prompts.vocabulary,
            **self.models.compute.facts,
        }
        store_table(labelled(table, run, checkpoint), self._path(run, checkpoint), key, facts)
        self.models.done_with(checkpoint)

    def _draw(self, prompts: Prompts) -> dict[str, list[TaskPrompts]]:
        """Once for a series."""
        if self._drawn is None or self._drawn[0] is not prompts:
            try:
                self._drawn = prompts, draw_tasks(task_source(prompts, self._n_prompts), self._names)
            except InputError as error:  # prompts are those of all checkpoints
                raise SeriesError(str(error)) from None
        return self._drawn[1]

    def _key(self, run: Run, checkpoint: Checkpoint) -> str:
        parts = (*self.version, self._names, self._seeds or run.eval_seed, self._n_prompts)
        return self.models.result_key(run, checkpoint, *parts)

    def _path(self, run: Run, checkpoint: Checkpoint) -> Path:
        return run.folder / "results" / "tasks" / f"{step_folder(checkpoint.step)}.parquet"


def task_source(prompts: Prompts, n_prompts: int = N_PROMPTS) -> Source:
    """What the tasks of a series are drawn from: tokens, BOS and context that all its checkpoints have."""
    return Source(
        vocab=prompts.vocab,
        n_ctx=prompts.n_ctx,
        bos_id=prompts.bos_id,
        n_prompts=n_prompts,
        seed=prompts.seed,
        encode=encoder(prompts.tokenizer),
    )


def results_table(results: Iterable[TaskResult]) -> pl.DataFrame:
    """task, variant, measure, value: a row for each number of each result."""
    rows = [
        (result.task, result.variant, measure, float(value))
        for result in results
        for measure, value in asdict(result).items()
        if measure not in ("task", "variant") and value is not None
    ]
    schema = {"task": pl.String, "variant": pl.String, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def formation(table: pl.DataFrame) -> pl.DataFrame | None:
    """`task_formation`; None where there are too few checkpoints to say when."""
    try:
        return task_formation(table)
    except InputError as error:
        logger.info(str(error))
        return None
