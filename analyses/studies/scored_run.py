"""One run of a sweep or one fork of several, scored while it trains: what an engine starts.

`python -m copyscope.analyses.studies.scored_run FOLDER [SAMPLES [DEVICE DTYPE [tasks|tasks=last]]]`.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.sweeps.plan import LAST, AskTasks, asked_steps
from copyscope.training.sweeps.worker import as_child

TASKS, LAST_TASKS = "tasks", f"tasks={LAST}"


def scored_run(
    config: RunConfig,
    folder: Path,
    samples: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
    with_tasks: str = "",
) -> None:
    """Trains the run or fork in `folder`, or goes on with it, and scores each checkpoint before `checkpoints.keep`
    applies.

    `samples` of the copying test; None for the usual number. `device` and `dtype` of scoring. `with_tasks`: `TASKS` to
    ask in-context tasks too, `LAST_TASKS` to ask the last checkpoint alone.

    With `keep = "none"` tables are all that stays: the full states go when all is done.
    Raises as `train` and `score`, and InputError if scores are missing in the end.
    """
    from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES
    from copyscope.analyses.tables.scores import score
    from copyscope.analyses.tables.tasks import tasks
    from copyscope.analyses.tables.watch import Watch
    from copyscope.training.fork import continue_fork
    from copyscope.training.trainer import train

    number = COPYING_SAMPLES if samples is None else samples
    steps = checkpoint_steps(config)
    ask: AskTasks = LAST if with_tasks == LAST_TASKS else bool(with_tasks)
    asked = asked_steps(steps, ask)
    watch = Watch(folder, config, samples=number, device=device, dtype=dtype, tasks=ask)
    if config.fork.of:
        continue_fork(folder, watch)
    else:
        train(config, folder, on_checkpoint=watch)
    if config.checkpoints.keep == "all":
        # Those of an earlier call that did not score.
        score(folder, samples=number, device=device, dtype=dtype)
        if asked:
            tasks(folder, steps=asked if ask == LAST else None, device=device, dtype=dtype)
    missing = (set(steps) - scored_steps(folder)) | (set(asked) - scored_steps(folder, "tasks"))
    if missing:
        raise InputError(f"{folder}: step {min(missing)} was trained without scores; delete the folder and run again")
    if config.checkpoints.keep == "none":
        shutil.rmtree(folder / "resume", ignore_errors=True)


def scored_steps(folder: Path, kind: str = "heads") -> set[int]:
    """The steps whose scores, or tables of another kind, are on disk."""
    return {int(path.stem.removeprefix("step")) for path in (folder / "results" / kind).glob("step*.parquet")}


def work(samples: int | None, *where: str) -> Callable[[RunConfig, Path], Any]:
    """`scored_run` with so many samples, and `where` of the words of `arguments`, as a worker takes it."""
    return lambda config, folder: scored_run(config, folder, samples, *where)


def program(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The module of this file with its `arguments`, as an engine starts it."""
    return ("copyscope.analyses.studies.scored_run", *arguments)


def arguments(samples: int | None, device: str, dtype: str, with_tasks: AskTasks = False) -> tuple[str, ...]:
    """What follows the folder on the command line."""
    words = [LAST_TASKS if with_tasks == LAST else TASKS] if with_tasks else []
    return (str(samples or 0), device, dtype, *words)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"  # log.txt is for what goes wrong
    sys.exit(as_child(Path(sys.argv[1]), work(int(sys.argv[2]) or None if len(sys.argv) > 2 else None, *sys.argv[3:])))
