"""What `score` and `ablate` have in common: a series goes through one measurer, checkpoint by checkpoint."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from copyscope.analyses.tables.loading import SeriesModels, measuring
from copyscope.analyses.tables.run import Run, read_failed, write_failed
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)


class Measurer(ABC):
    """Measures the checkpoints of one series, in any order, with one model in memory, and stores its tables."""

    command: ClassVar[str]
    """Whose failures `failed.json` notes."""
    doing: str
    """What the progress bar says."""
    models: SeriesModels

    @abstractmethod
    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether all tables of the checkpoint are on disk and still hold. Raises InputError if that cannot be told."""

    @abstractmethod
    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        """Measures a checkpoint and stores its tables. Raises InputError for one that cannot be measured."""

    def begin(self, run: Run, chosen: Sequence[Checkpoint], progress: Progress | None) -> Progress | None:
        """Called before the first is measured in this process; returns what to call when a whole checkpoint is done,
        None where `measure` reports its parts."""
        return progress

    def todo(self, run: Run, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
        """Those whose tables are not stored, or cannot be told, which measuring them says."""
        missing = []
        for checkpoint in checkpoints:
            try:
                done = self.is_stored(run, checkpoint)
            except InputError:
                done = False
            if not done:
                missing.append(checkpoint)
        return missing


class Tally:
    """How many checkpoints of a call are done, and which could not be measured, each named in a warning once."""

    def __init__(self, doing: str, total: int, done_before: int, progress: Progress | None = None) -> None:
        """`total` are to be measured, `done_before` of the same call were stored already."""
        self._doing, self._total, self._before, self._progress = doing, total, done_before, progress
        self.failed: dict[int, str] = {}
        self.done = 0

    def add(self, step: int, why: str | None = None, note: str = "") -> None:
        """One more is done, or could not be measured: `why`."""
        self.done += 1
        if why is not None:
            self.failed[step] = why
            if self._before or len(self.failed) < self._total:
                logger.warning(f"step {step:,} is not measured: {why}")
        # Not before the one line that says that all failed.
        if self._progress and (self._before or len(self.failed) < self.done):
            self._progress(self._doing, self.done, self._total, note)

    def result(self) -> dict[int, str]:
        """The steps that failed, with why. Raises InputError if all did and none was done before."""
        if self.failed and len(self.failed) == self._total and not self._before:
            more = f" (so for all {self._total} checkpoints, or likewise)" if self._total > 1 else ""
            raise InputError(f"{next(iter(self.failed.values()))}{more}")
        return self.failed


def measure_series(
    run: Run, measurer: Measurer, chosen: Sequence[Checkpoint], progress: Progress | None = None
) -> list[Checkpoint]:
    """Measures those of the `chosen` checkpoints that are not stored; returns those it was to measure.

    One that cannot be measured is named in a warning and noted (`run.read_failed`); the others are measured. Raises
    InputError for a place that cannot be written, and if no checkpoint can be measured.
    """
    todo, failed = measurer.todo(run, chosen), {}
    if todo:
        with measuring(run):
            todo = measurer.todo(run, todo)  # less what another process has done meanwhile
            failed = _one_by_one(run, measurer, chosen, todo, progress)
    if todo or read_failed(run, measurer.command):
        write_failed(run, measurer.command, [checkpoint.step for checkpoint in chosen], failed)
    return todo


def _one_by_one(
    run: Run, measurer: Measurer, chosen: Sequence[Checkpoint], todo: Sequence[Checkpoint], progress: Progress | None
) -> dict[int, str]:
    tally = Tally(measurer.doing, len(todo), len(chosen) - len(todo), measurer.begin(run, chosen, progress))
    for checkpoint, after in zip(todo, [*todo[1:], None], strict=True):
        why = None
        measurer.models.next = after
        try:
            measurer.measure(run, checkpoint)
        except InputError as error:
            why = str(error)
        tally.add(checkpoint.step, why)
    return tally.result()
