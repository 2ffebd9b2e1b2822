"""What measures a checkpoint and stores its tables, as `score` and `ablate` do; and the count of what is done."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar

from copyscope.analyses.tables.run import Run
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

if TYPE_CHECKING:  # torch takes seconds to load, and a driver of workers has no model
    from copyscope.analyses.tables.loading import SeriesModels

logger = logging.getLogger(__name__)


class SeriesError(InputError):
    """What is wrong with the whole series, and so said once instead of at each checkpoint."""


class Measurer(ABC):
    """Measures the checkpoints of one series, in any order, with one model in memory, and stores its tables."""

    command: ClassVar[str]
    """Whose failures `failed.json` notes."""
    doing: str
    """What the progress bar says."""
    models: "SeriesModels"
    arguments: dict[str, Any]
    """What it was made with, as JSON holds it: a worker makes its own from them."""
    checked: list[float]
    """Largest difference of logits from transformers', of each checkpoint for which `measure` says it."""

    def __new__(cls, *arguments: Any, **named: Any):
        """Keeps the arguments, so that none can be forgotten on the way to a worker."""
        self = super().__new__(cls)
        given = signature(cls.__init__).bind(self, *arguments, **named).arguments
        self.arguments = {name: _plain(value) for name, value in given.items() if value is not self}
        self.checked = []
        return self

    @classmethod
    def from_json(cls, arguments: dict[str, Any]):
        """One made with the same `arguments`."""
        compute = arguments.get("compute")
        if compute is not None:
            from copyscope.interp.models.devices import Compute

            arguments = arguments | {"compute": Compute(**compute)}
        return cls(**arguments)

    @abstractmethod
    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether all tables of the checkpoint are on disk and still hold. Raises InputError if that cannot be told."""

    @abstractmethod
    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        """Measures a checkpoint and stores its tables. Raises InputError for one that cannot be measured, SeriesError
        if no checkpoint of the series can."""

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
        self.doing, self._total, self._before, self._progress = doing, total, done_before, progress
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
            self._progress(self.doing, self.done, self._total, note)

    def result(self) -> dict[int, str]:
        """The steps that failed, with why. Raises InputError if all did and none was done before."""
        if self.failed and len(self.failed) == self._total and not self._before:
            more = f" (so for all {self._total} checkpoints, or likewise)" if self._total > 1 else ""
            raise InputError(f"{next(iter(self.failed.values()))}{more}")
        return self.failed


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value]
