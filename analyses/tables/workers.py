"""Measures a series by several workers, on this machine or a cluster (`training.engines`): who is started, and when all
is done.

What is known of a checkpoint is on the board and in its tables, never here. So the driver can be killed at any moment
and started again, and two of them, on one machine or two, share the work.
"""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from copyscope.analyses.tables.board import FAILED, Board, Outcome
from copyscope.analyses.tables.claimed import BEGAN
from copyscope.analyses.tables.measurer import Measurer, Tally
from copyscope.analyses.tables.run import Run, run_as_json
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.engines import check_engine, make_engine
from copyscope.training.engines.child import jobs_at_once
from copyscope.training.engines.local import visible_gpus
from copyscope.training.engines.protocol import Ended, Engine, Job
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import write_json
from copyscope.training.signals import interruptible

logger = logging.getLogger(__name__)

MODULE = "copyscope.analyses.tables.worker"
POLL = 0.2
MAX_IDLE_DEATHS = 3
"""How many workers in a row may end without having begun a checkpoint, before the driver gives up."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the checkpoints of a series are measured, and by how many processes at a time.

    `engine`: `local`, `ray` or `slurm`, `options` its own; or one of your own, which may be used once. `jobs`: None for
    one a GPU where several are visible, else half the cores; on a cluster as many as fit. Raises InputError for what
    cannot be.
    """

    engine: str | Engine = "local"
    jobs: int | None = None
    options: Mapping[str, Any] | None = None
    device: str = "auto"
    """What each of them computes on."""

    def __post_init__(self) -> None:
        check_engine(self.engine if isinstance(self.engine, str) else "local", self.jobs, self.options)
        if ":" in self.device:
            raise InputError(
                f"--device {self.device}: each process sees one GPU only; give cuda, and say which GPUs with "
                "CUDA_VISIBLE_DEVICES"
            )

    def count(self, checkpoints: int) -> int:
        """How many workers so many checkpoints keep busy."""
        jobs = self.jobs
        if jobs is None and self.engine == "local":
            gpus = 0 if self.device == "cpu" else len(visible_gpus())
            jobs = gpus if gpus > 1 else jobs_at_once(None)
        return checkpoints if jobs is None else min(jobs, checkpoints)

    def start(self, folder: Path, checkpoints: int) -> "Started":
        """An engine for so many checkpoints, its files in `folder`. Raises InputError if it cannot be reached."""
        count = self.count(checkpoints)
        if isinstance(self.engine, str):
            return Started(make_engine(self.engine, folder, count, self.options), count)
        return Started(self.engine, count)


class Started(NamedTuple):
    """An engine, and how many workers at a time it is to have."""

    engine: Engine
    count: int


def workers_of(
    engine: str | Engine | None, jobs: int | None, options: Mapping[str, Any] | None = None, device: str = "auto"
) -> Workers | None:
    """The workers that a call asks for; None for one after another in this process, unless an engine or several jobs
    are named. Raises InputError for what cannot be."""
    if engine is None and options:
        raise InputError("--option: is for an engine; name it with --engine")
    if engine is None and jobs in (None, 1):
        return None
    return Workers(engine=engine or "local", jobs=jobs, options=options, device=device)


class Shift:
    """The work on one series that drivers of the same command share: a board, and a folder for each of them."""

    def __init__(self, run: Run, measurer: Measurer) -> None:
        """Measurers of other arguments have boards of their own."""
        what = hashlib.sha256(json.dumps([measurer.command, measurer.arguments]).encode()).hexdigest()[:8]
        self.board = Board(run.folder / "results" / ".work" / f"{measurer.command}-{what}")
        self.folder = self.board.folder / f"{os.getpid()}-{secrets.token_hex(4)}"

    def clear(self) -> None:
        """Nobody else works here: what an earlier call noted is of no use any more."""
        self.board.clear()

    def remove(self) -> None:
        """Takes everything away once nobody works here any more, unless there are logs to be looked at."""
        if not any(self.board.read(step).log for step in self.board.steps()):
            shutil.rmtree(self.board.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another command's is still there
                self.board.folder.parent.rmdir()


def measure_by_workers(
    run: Run, measurer: Measurer, todo: Sequence[Checkpoint], tally: Tally, started: Started, shift: Shift
) -> list[Outcome]:
    """Has workers measure the checkpoints, tells the tally as each is done, and returns what became of them.

    A worker that is killed costs its checkpoint, which another one measures then. Ctrl-C and SIGTERM stop the workers
    and raise `Stopped`. Raises InputError if workers end without having begun.
    """
    engine, count = started
    driver = _Driver(shift, todo, tally, engine, count)
    _write_task(run, measurer, todo, shift.folder, count)
    with interruptible():
        try:
            while driver.step():
                time.sleep(POLL)
        except KeyboardInterrupt:
            engine.stop()
            shutil.rmtree(shift.folder, ignore_errors=True)
            raise Stopped(
                f"{tally.doing}: stopped with {tally.done} of {len(todo)} done; rerun the same command to resume"
            ) from None
        except BaseException:
            engine.stop()
            raise
        engine.stop()  # those that wait in a queue; the others end by themselves
    return [shift.board.read(checkpoint.step) for checkpoint in todo]


def _write_task(run: Run, measurer: Measurer, todo: Sequence[Checkpoint], folder: Path, count: int) -> None:
    arguments = dict(measurer.arguments)
    if arguments.get("cache_limit") is not None:
        arguments["cache_limit"] /= count
    task = {
        "measurer": [type(measurer).__module__, type(measurer).__qualname__],
        "arguments": arguments,
        "run": run_as_json(run),
        "steps": [checkpoint.step for checkpoint in todo],
        "known": measurer.models.known(run, todo[0]),
    }
    write_json(folder / "task.json", task)


class _Driver:
    def __init__(self, shift: Shift, todo: Sequence[Checkpoint], tally: Tally, engine: Engine, count: int) -> None:
        self._board, self._folder, self._todo = shift.board, shift.folder, todo
        self._tally, self._engine, self._count = tally, engine, count
        self._counted: set[int] = set()
        self._warned: set[str] = set()
        self._running = self._started = 0
        self._idle_deaths = 0

    def step(self) -> bool:
        """Counts what is done, judges which workers ended, starts others. False when all is done."""
        left = [checkpoint.step for checkpoint in self._todo if checkpoint.step not in self._counted]
        for step in left:
            self._count_in(step, self._board.read(step))
        if len(self._counted) == len(self._todo):
            return False
        for ended in self._engine.ended():
            self._running -= 1
            if ended.code != 0:
                self._judge(ended)
        left_over = len(self._todo) - len(self._counted)
        while self._running < min(self._count, left_over) and self._engine.room() > 0:
            self._start()
        return True

    def _count_in(self, step: int, outcome: Outcome) -> None:
        if not outcome.is_final:
            return
        self._counted.add(step)
        self._idle_deaths = 0
        for line in outcome.warnings:
            if line not in self._warned:
                self._warned.add(line)
                logger.warning(line)
        why = None
        if outcome.state == FAILED:
            why = outcome.why + (f"; see {outcome.log}" if outcome.log else "")
        self._tally.add(step, why, f"{self._running} worker{'s' * (self._running != 1)}")

    def _start(self) -> None:
        folder = self._folder / f"worker{self._started}"
        folder.mkdir(parents=True)
        self._engine.start(Job(folder=folder, module=MODULE))
        self._started += 1
        self._running += 1

    def _judge(self, ended: Ended) -> None:
        """A worker that ended before its time."""
        reason = ended.reason or f"exit code {ended.code}"
        if (ended.job.folder / BEGAN).exists():
            self._idle_deaths = 0
            logger.info(f"a worker ended ({reason}); another one measures its checkpoint")
            return
        self._idle_deaths += 1
        if self._idle_deaths >= MAX_IDLE_DEATHS:
            log = ended.job.folder / "log.txt"
            raise InputError(f"{self._idle_deaths} workers ended ({reason}) before they began{_last_line(log)}")


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return f": {lines[-1][:200]}; see {log}" if lines else f"; see {log}"
