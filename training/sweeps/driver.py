"""Drives a sweep: gives its runs to an engine until all are done. Can be killed at any moment and started again.

All that is known of a run is in its folder (`worker.Status`), and only the process that holds the run's lock
works on it. So two drivers may share a folder, and one that comes back after a crash finds everything in place.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from copyscope.training.engines.protocol import Ended, Engine, Job
from copyscope.training.errors import Stopped
from copyscope.training.files import disk_full, is_disk_full
from copyscope.training.progress import Progress
from copyscope.training.signals import interruptible
from copyscope.training.sweeps.plan import PlannedRun, Sweep
from copyscope.training.sweeps.worker import (
    BUSY_CODE,
    DONE,
    FAILED,
    FINISHED,
    STOPPED,
    Status,
    read_status,
    write_status,
)

logger = logging.getLogger(__name__)
RETRIES = 2
"""How often a run is started again after its process was killed without having got any further."""
POLL = 0.5
BUSY_PAUSE = 10.0
"""Seconds until a run that another process works on is asked for again."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run of a sweep stands."""

    run: PlannedRun
    folder: Path
    status: Status


def run_sweep(
    sweep: Sweep,
    out: Path,
    engine: Engine,
    module: str = "copyscope.training.sweeps.worker",
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[Outcome]:
    """Works on every run of the sweep in `out` (see `sweep_plan.claim`) that is not done, and says how each ended.

    `module` is what does a run, given its folder and `arguments` (`worker.as_child`). A run that is finished
    or diverged is left alone; one that was killed is started again and continues, at most `RETRIES` times without
    getting further; one that failed is marked, tried again by the next call, and the others go on. Ctrl-C and SIGTERM
    let the runs save, and raise `Stopped`.
    """
    shown: tuple[object, ...] = ()
    driver = _Driver(sweep, out, engine, Job(folder=out, module=module, arguments=tuple(arguments)))
    with interruptible():
        try:
            while driver.waiting or driver.working:
                driver.step()
                current = (*driver.updates(), driver.note())
                if progress and current != shown:
                    progress("updates", *current)
                shown = current
                time.sleep(POLL)
        except KeyboardInterrupt:
            driver.log("interrupted: the runs save and stop")
            engine.stop()
            done = sum(one.status.state in DONE for one in outcomes(sweep, out))
            raise Stopped(
                f"sweep stopped: {done} of {len(sweep.runs)} runs done, the others saved in {out}; the same command "
                "continues"
            ) from None
        except BaseException:
            engine.stop()
            raise
    return outcomes(sweep, out)


def outcomes(sweep: Sweep, out: Path) -> list[Outcome]:
    """How each run of the sweep stands, from its folder."""
    return [Outcome(run=run, folder=out / run.run_id, status=read_status(out / run.run_id)) for run in sweep.runs]


class _Driver:
    """What one call of `run_sweep` knows beyond the folders: which runs it gave away, and how often in vain."""

    def __init__(self, sweep: Sweep, out: Path, engine: Engine, job: Job):
        self.sweep, self.out, self.engine, self.job = sweep, out, engine, job
        self.runs = {out / run.run_id: run for run in sweep.runs}
        self.done = {one.folder: one.status for one in outcomes(sweep, out) if one.status.state in DONE}
        self.waiting = {folder: 0.0 for folder in self.runs if folder not in self.done}
        """Folder → when it may be started, by the monotonic clock."""
        self.working: dict[Path, int] = {}
        """Folder → the step it was at when it was given to the engine."""
        self.lost: dict[Path, int] = {}
        """Folder → how often in a row it was killed without having got further."""
        self.elsewhere: set[Path] = set()
        """Worked on by another driver's processes when last asked for."""
        if self.done:
            self.log(f"{len(self.done)} of {len(self.runs)} runs are done already")

    def step(self) -> None:
        """Judges what ended, then fills the engine."""
        for ended in self.engine.ended():
            self.judge(ended)
        now = time.monotonic()
        for folder in [folder for folder, when in self.waiting.items() if when <= now][: self.engine.room()]:
            del self.waiting[folder]
            status = read_status(folder)
            if status.state in DONE:
                self.finish(folder, status)
                continue
            self.working[folder] = last_step(folder)
            if folder not in self.elsewhere:
                self.log(f"start {self.name(folder)} from step {max(self.working[folder], 0)}")
            self.engine.start(replace(self.job, folder=folder))

    def judge(self, ended: Ended) -> None:
        folder, status = ended.job.folder, read_status(ended.job.folder)
        before = self.working.pop(folder)
        if status.state in DONE:
            self.finish(folder, status)
        elif ended.code == BUSY_CODE:
            if folder not in self.elsewhere:
                self.log(f"elsewhere {self.name(folder)}: another process works on it")
            self.elsewhere.add(folder)
            self.waiting[folder] = time.monotonic() + BUSY_PAUSE
        elif status.state == FAILED:
            self.fail(folder, status)
        else:
            self.elsewhere.discard(folder)
            self.lost[folder] = 1 if last_step(folder) > before else self.lost.get(folder, 0) + 1
            what = status.reason if status.state == STOPPED else ended.reason or "its process ended without a word"
            if self.lost[folder] > RETRIES:
                why = f"{what}, {self.lost[folder]} times without getting further; see {folder / 'log.txt'}"
                self.fail(folder, write_status(folder, replace(status, state=FAILED, reason=why)))
            else:
                self.log(f"again {self.name(folder)}: {what}")
                self.waiting[folder] = time.monotonic()

    def finish(self, folder: Path, status: Status) -> None:
        self.done[folder] = status
        why = f": {status.reason}" if status.reason else ""
        self.log(f"{status.state} {self.name(folder)} after {status.seconds:.0f} s{why}")

    def fail(self, folder: Path, status: Status) -> None:
        self.done[folder] = status
        self.log(f"failed {self.name(folder)}: {status.reason}")

    def name(self, folder: Path) -> str:
        return f"{self.runs[folder].label} ({folder.name})"

    def log(self, text: str) -> None:
        """To the log, and to sweep.log."""
        logger.info(text)
        try:
            with (self.out / "sweep.log").open("a", encoding="utf-8") as stream:
                stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            raise disk_full(self.out / "sweep.log") if is_disk_full(error) else error from None

    def updates(self) -> tuple[int, int]:
        """Updates done and planned, over all runs; a run that ended early counts as whole."""
        steps = {folder: run.config.train.steps for folder, run in self.runs.items()}
        done = sum(total if folder in self.done else max(last_step(folder), 0) for folder, total in steps.items())
        return done, sum(steps.values())

    def note(self) -> str:
        states = [status.state for status in self.done.values()]
        parts = [f"{states.count(FINISHED)} of {len(self.runs)} runs finished", f"{len(self.working)} running"]
        parts += [f"{states.count(state)} {state}" for state in (*DONE[1:], FAILED) if state in states]
        return ", ".join(parts)


def last_step(folder: Path) -> int:
    """The last step in a run's metrics.jsonl; -1 before the first."""
    try:
        with (folder / "metrics.jsonl").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - 2000))
            lines = stream.read().splitlines()
    except OSError:
        return -1
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill, or the middle of a line
    return -1
