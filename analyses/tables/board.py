"""Which checkpoints of a series are free, at work or done, as files that workers on all machines see.

A worker claims a checkpoint by a lock (`training.engines.locks`), which the death of a worker frees, and notes what
became of it. Two drivers that measure the same thing share a board.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from copyscope.training.checkpoints.series import Checkpoint, step_folder
from copyscope.training.engines.locks import Busy, held, held_elsewhere
from copyscope.training.files import write_json

STARTED, MEASURED, FAILED = "started", "measured", "failed"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a checkpoint so far."""

    state: str = ""
    """`started` while a worker is at it, or when it died there; `measured` and `failed` are final."""
    times: int = 0
    """How often it was started."""
    why: str = ""
    """Why it failed."""
    log: str = ""
    """The log of the worker, where it says more."""
    difference: float | None = None
    """Largest difference of logits from transformers'."""
    warnings: tuple[str, ...] = ()
    """What was said meanwhile."""

    @property
    def is_final(self) -> bool:
        return self.state in (MEASURED, FAILED)


class Claim:
    """A checkpoint that this process alone works on until it is released."""

    def __init__(self, checkpoint: Checkpoint, lock: ExitStack) -> None:
        self.checkpoint, self._lock = checkpoint, lock

    def release(self) -> None:
        self._lock.close()


class Board:
    """The state of each checkpoint, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._final: dict[int, Outcome] = {}

    def read(self, step: int) -> Outcome:
        """The outcome of a step; an empty one before it was started."""
        if step not in self._final:
            outcome = _read(self._note(step))
            if not outcome.is_final:
                return outcome
            self._final[step] = outcome
        return self._final[step]

    def write(self, step: int, outcome: Outcome) -> None:
        write_json(self._note(step), asdict(outcome))

    def forget(self, step: int) -> None:
        """Takes the note away, as that of a worker which was asked to stop."""
        self._note(step).unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """The steps that have a note."""
        return sorted(int(note.stem.removeprefix("step")) for note in self.folder.glob("step*.json"))

    def clear(self) -> None:
        """Takes all notes away: what failed is to be tried again. Locks stay; a process may be waiting for one."""
        for note in self.folder.glob("step*.json"):
            note.unlink(missing_ok=True)

    def take(self, checkpoints: Iterable[Checkpoint], but: int | None = None) -> Claim | None:
        """Claims the first that is free; None if all are done or at work.

        What a worker of another machine holds, or held when it died, is looked at last, since it takes up to a minute
        to tell; and not at all by one that has work already, at the step `but`.
        """
        later: list[Checkpoint] = []
        for checkpoint in checkpoints:
            if checkpoint.step == but or self.read(checkpoint.step).is_final:
                continue
            if held_elsewhere(self._lock(checkpoint.step)):
                later += [checkpoint] if but is None else []
            elif claim := self._claim(checkpoint):
                return claim
        return next((claim for one in later if not self.read(one.step).is_final and (claim := self._claim(one))), None)

    def is_done(self, checkpoints: Sequence[Checkpoint]) -> bool:
        return all(self.read(checkpoint.step).is_final for checkpoint in checkpoints)

    def _claim(self, checkpoint: Checkpoint) -> Claim | None:
        lock = ExitStack()
        with contextlib.suppress(Busy):
            lock.enter_context(held(self._lock(checkpoint.step), lost=_stop, tries=1))
            if not self.read(checkpoint.step).is_final:  # another may have finished it just now
                return Claim(checkpoint, lock)
            lock.close()
        return None

    def _note(self, step: int) -> Path:
        return self.folder / f"{step_folder(step)}.json"

    def _lock(self, step: int) -> Path:
        return self.folder / "locks" / step_folder(step)


def _stop() -> None:
    """Another machine took the lock over: this process was away for a minute. It ends as if asked to."""
    os.kill(os.getpid(), signal.SIGTERM)


def _read(note: Path) -> Outcome:
    try:
        saved: dict[str, Any] = json.loads(note.read_text("utf-8"))
        saved["warnings"] = tuple(saved["warnings"])
        return Outcome(**saved)
    except (OSError, ValueError, TypeError, KeyError):
        return Outcome()
