"""How a series goes through a measurer: one checkpoint after another in this process, or by workers."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from copyscope.analyses.tables.loading import measuring, measuring_together
from copyscope.analyses.tables.measurer import Measurer, SeriesError, Tally
from copyscope.analyses.tables.run import Run, read_failed, write_failed
from copyscope.analyses.tables.workers import Shift, Workers, measure_by_workers
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)


def measure_series(
    run: Run,
    measurer: Measurer,
    chosen: Sequence[Checkpoint],
    progress: Progress | None = None,
    workers: Workers | None = None,
) -> None:
    """Measures those of the `chosen` checkpoints that are not stored, by `workers` or, None, in this process.

    One that cannot be measured is named in a warning and noted (`run.read_failed`); the others are measured. Raises
    InputError for a place that cannot be written, an engine that cannot be reached, and if no checkpoint can be
    measured; `Stopped` if workers were interrupted.
    """
    chosen = _own(run, measurer, chosen)
    todo, failed = measurer.todo(run, chosen), {}
    if todo:
        if workers is None:
            failed = _one_by_one(run, measurer, chosen, todo, progress)
        else:
            failed = _by_workers(run, measurer, chosen, todo, progress, workers)
    if todo or read_failed(run, measurer.command):
        write_failed(run, measurer.command, [checkpoint.step for checkpoint in chosen], failed)


def _own(run: Run, measurer: Measurer, chosen: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Of a fork those that are not its parent's, which are measured there."""
    own = [checkpoint for checkpoint in chosen if checkpoint in run.own]
    first = [checkpoint for checkpoint in chosen if checkpoint not in run.own]
    missing = [one for one in first if not _is_stored(run.of_step(one.step), measurer, one)]
    of: dict[Path, int] = Counter(run.of_step(one.step).folder for one in missing)
    for folder, count in of.items():
        logger.warning(
            f"{run.folder}: {count} of its first checkpoints are measured where they are, by `copyscope "
            f"{measurer.command} {folder}`, which was not done so yet"
        )
    return own


def _is_stored(run: Run, measurer: Measurer, checkpoint: Checkpoint) -> bool:
    try:
        return measurer.is_stored(run, checkpoint)
    except InputError:  # said where it is measured
        return True


def _one_by_one(
    run: Run,
    measurer: Measurer,
    chosen: Sequence[Checkpoint],
    todo: list[Checkpoint],
    progress: Progress | None,
) -> dict[int, str]:
    with measuring(run):
        todo = measurer.todo(run, todo)  # less what another process has done meanwhile
        tally = Tally(measurer.doing, len(todo), len(chosen) - len(todo), measurer.begin(run, chosen, progress))
        for checkpoint, after in zip(todo, [*todo[1:], None], strict=True):
            why = None
            measurer.models.next = after
            try:
                measurer.measure(run, checkpoint)
            except SeriesError:
                raise
            except InputError as error:
                why = str(error)
            tally.add(checkpoint.step, why)
    return tally.result()


def _by_workers(
    run: Run,
    measurer: Measurer,
    chosen: Sequence[Checkpoint],
    todo: list[Checkpoint],
    progress: Progress | None,
    workers: Workers,
) -> dict[int, str]:
    shift = Shift(run, measurer)
    started = workers.start(shift.folder, len(todo))  # before anything is written
    with measuring_together(run, first=shift.clear, last=shift.remove):
        todo = measurer.todo(run, todo)
        tally = Tally(measurer.doing, len(todo), len(chosen) - len(todo), progress)
        measurer.begin(run, chosen, None)
        if todo:
            outcomes = measure_by_workers(run, measurer, todo, tally, started, shift)
            measurer.checked += [outcome.difference for outcome in outcomes if outcome.difference is not None]
    return tally.result()
