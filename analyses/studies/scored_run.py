"""One run of a sweep, scored while it trains: what an engine starts.

`python -m copyscope.analyses.studies.scored_run FOLDER [SAMPLES [DEVICE DTYPE]]`.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.sweeps.worker import as_child


def scored_run(
    config: RunConfig, folder: Path, samples: int | None = None, device: str = "auto", dtype: str = "float32"
) -> None:
    """Trains the run in `folder`, or goes on with it, and scores each checkpoint before `checkpoints.keep` applies.

    `samples` of the copying test; None for the usual number. `device` and `dtype` of scoring. With `keep = "none"`
    tables are all that stays: the full states go when all is done. Raises as `train` and `score`, and InputError if
    scores are missing in the end.
    """
    from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES
    from copyscope.analyses.tables.scores import score
    from copyscope.training.trainer import train

    number = COPYING_SAMPLES if samples is None else samples

    def score_it(checkpoint: Checkpoint) -> None:
        score(folder, steps=[checkpoint.step], samples=number, device=device, dtype=dtype)

    train(config, folder, on_checkpoint=score_it)
    if config.checkpoints.keep == "all":
        score(folder, samples=number, device=device, dtype=dtype)  # those of an earlier call that did not score
    missing = set(checkpoint_steps(config)) - scored_steps(folder)
    if missing:
        raise InputError(f"{folder}: step {min(missing)} was trained without scores; delete the folder and run again")
    if config.checkpoints.keep == "none":
        shutil.rmtree(folder / "resume", ignore_errors=True)


def scored_steps(folder: Path) -> set[int]:
    """The steps whose scores are on disk."""
    return {int(path.stem.removeprefix("step")) for path in (folder / "results" / "heads").glob("step*.parquet")}


def work(samples: int | None, *where: str) -> Callable[[RunConfig, Path], Any]:
    """`scored_run` with so many samples, on that device and in that dtype, as `training.sweeps.worker` takes it."""
    return lambda config, folder: scored_run(config, folder, samples, *where)


def arguments(samples: int | None, device: str, dtype: str) -> tuple[str, ...]:
    """What follows the folder on the command line."""
    return (str(samples or 0), device, dtype)


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"  # log.txt is for what goes wrong
    sys.exit(as_child(Path(sys.argv[1]), work(int(sys.argv[2]) or None if len(sys.argv) > 2 else None, *sys.argv[3:])))
