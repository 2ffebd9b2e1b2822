"""A measurer that measures nothing: it counts what it is asked for on disk, and dies where it is told. Needs no torch.

Also a driver in a process of its own, which a test kills: `counted_measurer.py FOLDER STEPS JOBS`.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from copyscope.analyses.tables.measurer import Measurer, Tally
from copyscope.analyses.tables.run import Run
from copyscope.analyses.tables.workers import Shift, Workers, measure_by_workers
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import check_writable, together_in, write_text

SLOW = "slow"
"""While a file of this name lies in the run's folder, no checkpoint is done."""
FAILS, BREAKS, DIES = 101, 102, 103
"""Steps that cannot be measured, show a bug, kill their worker each time."""


class NoModels:
    """Stands in for `SeriesModels`."""

    next: Checkpoint | None = None

    def known(self, run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
        return {}

    def take_over(self, known: dict[str, Any]) -> None:
        assert known == {}


class Counter(Measurer):
    command, doing = "score", "counting"

    def __init__(self, word: str = "counted") -> None:
        self._word = word
        self.models: Any = NoModels()

    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        return table(run.folder, checkpoint.step).is_file()

    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        step = checkpoint.step
        with (run.folder / "began").open("a") as stream:
            stream.write(f"{step} {os.getpid()}\n")
        time.sleep(0.02)
        while (run.folder / SLOW).exists():
            time.sleep(0.01)
        if step == FAILS:
            raise InputError("no such weights")
        if step == BREAKS:
            raise RuntimeError("a bug")
        if step == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        self.checked.append(step / 1e6)
        write_text(table(run.folder, step), f"{self._word} {step} of {run.name}")


def table(folder: Path, step: int) -> Path:
    return folder / "results" / "counted" / str(step)


def began(folder: Path) -> list[tuple[int, int]]:
    """Step and process of each checkpoint that was begun, in order."""
    path = folder / "began"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [(int(step), int(pid)) for step, pid in map(str.split, lines)]


def counted_run(folder: Path, steps: range | list[int]) -> Run:
    checkpoints = tuple(Checkpoint(step, None, str(folder / str(step))) for step in steps)
    series = CheckpointSeries(str(folder), checkpoints)
    return Run(name="counted", folder=folder, series=series, config=None, data={})


def count(run: Run, workers: Workers, progress: Any = None) -> tuple[Tally, Counter]:
    """As `analyses.tables.measured.measure_series` does it, which needs torch."""
    counter, place = Counter(), run.folder / "results"
    check_writable(place)
    shift = Shift(run, counter)
    with together_in(place, lambda: None, shift.clear, shift.remove):
        todo = counter.todo(run, run.series.checkpoints)
        tally = Tally("counting", len(todo), len(run.series.checkpoints) - len(todo), progress)
        if todo:
            outcomes = measure_by_workers(run, counter, todo, tally, workers.start(shift.folder, len(todo)), shift)
            counter.checked += [one.difference for one in outcomes if one.difference is not None]
    return tally, counter


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a script ignore it
    place, steps, jobs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sys.modules["counted_measurer"] = sys.modules["__main__"]
    Counter.__module__ = "counted_measurer"
    try:
        count(counted_run(place, range(steps)), Workers(jobs=jobs))
    except Stopped as stopped:
        print(stopped)
        sys.exit(130)
