"""Trains part of a run again, exactly as it was trained: from the nearest full state, with as many threads."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from copyscope.training.checkpoints.series import Checkpoint, step_folder
from copyscope.training.checkpoints.trunk import read_trunk
from copyscope.training.config import RunConfig
from copyscope.training.data.store import TokenStore
from copyscope.training.environment import at_step
from copyscope.training.errors import InputError
from copyscope.training.processes import accelerator_of
from copyscope.training.progress import Progress
from copyscope.training.run_folder import run_store, text_of_fork
from copyscope.training.state import states
from copyscope.training.trainer import Plan, run_updates

logger = logging.getLogger(__name__)
STATES = ".trunk"
"""Where the full state that forks begin with is kept: in the folder of a fork, or beside several."""


def nearest_states(run: Path, config: RunConfig, until: int) -> list[Path]:
    """Full states of a run up to step `until`, newest first; of a fork the one that it begins with is among them.

    Raises InputError for a fork that has none, since its earlier steps were not trained with its configuration.
    """
    found = states(run / "resume", until)
    if not config.fork.of:
        return found
    name, trunk = step_folder(config.fork.at), read_trunk(run)
    parent = None if trunk is None else trunk.parent(run)
    above = [run / STATES, run.parent / STATES, *([] if parent is None else [parent / "resume"])]
    found += [folder / name for folder in above if (folder / name).is_dir()]
    if not found and config.fork.at:
        raise InputError(f"{run}: its full state at step {config.fork.at} is gone; fork its parent again")
    return found


def step_of(begin: list[Path]) -> int:
    """The step of the newest of `nearest_states`; 0 where there is none."""
    return int(begin[0].name.removeprefix("step")) if begin else 0


def replay(
    run: Path,
    config: RunConfig,
    place: Path,
    plan: Plan,
    on_checkpoint: Callable[[Checkpoint], object] | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> None:
    """Does the updates of `plan` again in folder `place`, with as many threads as the run had; `device` as for `train`.

    Raises InputError for a run whose tokens are gone; else as `run_updates`.
    """
    store, plan = tokens_there(run), replace(plan, begin=config.fork.at, text=text_of_fork(run))
    known = step_of(list(plan.start_from))
    logger.info(f"replaying steps {known} to {plan.last} of {run}")
    with threads_of(run, known):
        accelerator = accelerator_of(config, place, track=False, device=device)
        run_updates(config, place, store, plan, accelerator, on_checkpoint, progress)


def tokens_there(run: Path) -> TokenStore:
    """The tokens of a run. Raises InputError where they are gone."""
    store = run_store(run)
    if store is None:
        trunk = read_trunk(run)
        place = run.parent / "tokens" if trunk is None else Path(trunk.store["absolute"]).parent
        raise InputError(f"{run}: its tokens are not in {place} any more; put that folder back there")
    return store


@contextmanager
def threads_of(run: Path, step: int) -> Iterator[None]:
    """As many threads as the run had at `step`, so that sums come out the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(at_step(run, step).get("threads", before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
