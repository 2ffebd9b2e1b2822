"""A run of a sweep that trains nothing: it counts its steps on disk, and ends as its config asks. Starts in no time."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import write_json, write_text
from copyscope.training.sweeps.worker import as_child

SOUND, DIVERGES, BREAKS, DIES_ONCE, DIES_ALWAYS = range(5)
"""What `seeds.eval` of the config stands for."""
SLOW = "slow"
"""While a file of this name lies in the sweep's folder, a step takes long enough for a test to come in between."""


def work(config: RunConfig, folder: Path) -> None:
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    (folder / "where").write_text(os.getcwd())
    state = folder / "state"
    step = int(state.read_text()) if state.is_file() else 0
    while step < config.train.steps:
        if step == 3 and config.seeds.eval == DIVERGES:
            write_json(folder / "diverged.json", {"step": step})
            raise InputError("diverged at step 3")
        if step == 3 and config.seeds.eval == BREAKS:
            raise RuntimeError("a bug\nin two lines")
        if config.seeds.eval == DIES_ALWAYS or (config.seeds.eval == DIES_ONCE and step == 3 and not has_died(folder)):
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        step += 1
        with (folder / "steps.log").open("a") as stream:
            stream.write(f"{step} {os.getpid()}\n")
        write_text(state, str(step))
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": step}) + "\n")
        time.sleep(0.2 if (folder.parent / SLOW).exists() else 0.005)
        if stop and step < config.train.steps:
            raise Stopped(f"stopped at step {step}")


def has_died(folder: Path) -> bool:
    return (folder / "died").is_file()


def steps_done(folder: Path) -> list[int]:
    """Every step that was worked on, by whomever, in order."""
    log = folder / "steps.log"
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.is_file() else []


def workers(folder: Path) -> set[int]:
    """The processes that worked on a run."""
    log = folder / "steps.log"
    return {int(line.split()[1]) for line in log.read_text().splitlines()} if log.is_file() else set()


if __name__ == "__main__":
    sys.exit(as_child(Path(sys.argv[1]), work))
