"""One run of a sweep, in a process of its own: done once, gone on with when interrupted, marked when it failed.

An engine starts `python -m copyscope.training.sweeps.worker FOLDER` (or another module that calls `as_child`) with a
pipe to its standard input. The pipe's end is the word to stop: whoever holds the other side closes it, or has died.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from copyscope.training.config import RunConfig
from copyscope.training.engines.child import stop_with_parent
from copyscope.training.engines.locks import Busy, held
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import write_json

FINISHED, DIVERGED, FAILED, STOPPED, RUNNING = "finished", "diverged", "failed", "stopped", "running"
DONE = (FINISHED, DIVERGED)
"""What is not tried again: a run that diverged would do so again."""
BUSY_CODE = 75
"""Exit code of a process that found another one at this run."""
Work = Callable[[RunConfig, Path], object]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a run's status.json says."""

    state: str = "waiting"
    reason: str = ""
    """Why it is not finished."""
    seconds: float = 0.0
    """Time spent on it, over all processes that said when they ended."""


def read_status(folder: Path) -> Status:
    """The status of the run in this folder; `waiting` where there is none, or none that can be read."""
    try:
        saved = json.loads((folder / "status.json").read_text("utf-8"))
        return Status(state=str(saved["state"]), reason=str(saved["reason"]), seconds=float(saved["seconds"]))
    except (OSError, KeyError, TypeError, ValueError):
        return Status()


def write_status(folder: Path, status: Status) -> Status:
    write_json(folder / "status.json", asdict(status))
    return status


def execute(folder: Path, work: Work) -> Status:
    """Does `work(config, folder)` for the run whose config.toml lies in `folder`, if it is not done yet.

    The status says how it ended: `finished`, `diverged`, `stopped` (it can go on) or `failed`, with the reason. Raises
    `Busy` if another process is at it.
    """
    before = read_status(folder)
    if before.state in DONE:
        return before
    with held(folder / "lock", lost=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        before = read_status(folder)  # another process may have finished it meanwhile
        if before.state in DONE:
            return before
        write_status(folder, replace(before, state=RUNNING, reason=""))
        started = time.monotonic()
        state, reason = _outcome(folder, work)
        seconds = before.seconds + time.monotonic() - started
        return write_status(folder, Status(state=state, reason=reason, seconds=seconds))


def _outcome(folder: Path, work: Work) -> tuple[str, str]:
    try:
        work(RunConfig.load(folder / "config.toml"), folder)
    except Stopped as stopped:
        return STOPPED, str(stopped)
    except KeyboardInterrupt:
        return STOPPED, "interrupted"
    except InputError as error:
        return DIVERGED if (folder / "diverged.json").is_file() else FAILED, str(error)
    except Exception as error:
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; see {folder / 'log.txt'}"
    return FINISHED, ""


def as_child(folder: Path, work: Work) -> int:
    """`execute` as an engine's child does it: stops when its standard input ends. Returns the exit code."""
    stop_with_parent()  # the trainer saves and stops; before it began there is nothing to save
    try:
        status = execute(folder, work)
    except Busy:
        return BUSY_CODE
    return 0 if status.state in DONE else 1


def _train(config: RunConfig, folder: Path) -> None:
    from copyscope.training.trainer import train  # takes seconds to load, which a run that is done does not need

    train(config, folder)


if __name__ == "__main__":
    sys.exit(as_child(Path(sys.argv[1]), _train))
