"""A worker of a series as a process of its own, which an engine starts: `… -m copyscope.analyses.tables.worker FOLDER`.

FOLDER lies beside the task.json that the driver wrote (`analyses.tables.workers`). The model stays in memory, and only
its weights are replaced.
"""

import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

from copyscope.training.engines.child import stop_with_parent
from copyscope.training.engines.locks import machine


def main(folder: Path) -> int:
    """Works as task.json beside the folder says. Returns the exit code: 130 if asked to stop, 2 for what cannot be."""
    stop_with_parent()
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # log.txt is for what goes wrong
    task = json.loads((folder.parent / "task.json").read_text("utf-8"))
    # Heavy, and until here a word to stop ends the process at once.
    from copyscope.analyses.tables.board import Board
    from copyscope.analyses.tables.claimed import work
    from copyscope.analyses.tables.run import run_from_json
    from copyscope.training.errors import InputError

    run = run_from_json(task["run"])
    module, name = task["measurer"]
    chosen = set(task["steps"])
    checkpoints = [checkpoint for checkpoint in run.series.checkpoints if checkpoint.step in chosen]
    try:
        measurer = getattr(import_module(module), name).from_json(task["arguments"])
        measurer.models.take_over(task["known"])
        signal.signal(signal.SIGTERM, _interrupt)
        work(run, measurer, checkpoints, Board(folder.parents[1]), folder / "log.txt")
    except InputError as error:  # a device that this machine lacks, a full disk
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    print(f"worker {os.getpid()} on {machine()}", file=sys.stderr, flush=True)
    sys.exit(main(Path(sys.argv[1])))
