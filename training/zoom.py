"""Replays the exact training between two steps of a run and saves a denser series there."""

import shutil
from pathlib import Path
from typing import NamedTuple

from copyscope.training.checkpoints.manifest import weights_hash
from copyscope.training.checkpoints.series import CheckpointSeries, Source, step_folder
from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress
from copyscope.training.replay import nearest_states, replay, step_of
from copyscope.training.trainer import Plan


class Zoom(NamedTuple):
    """What `zoom` did."""

    added: list[int]
    """Steps that the run's series now has and had not."""
    compared: list[int]
    """Steps that the run had already, whose weights were compared with the replay's."""
    differs: list[int]
    """Those of them whose weights are not the same; empty, or nothing was added."""
    folder: Path
    """The run, or where the replay was kept apart: a series of its own."""


def zoom(
    run: Source,
    start: int,
    end: int,
    every: int = 1,
    progress: Progress | None = None,
    device: str = "auto",
) -> Zoom:
    """Saves the steps `start`, `start + every`, … `end` of the run in folder `run`, by training them again.

    Begins at the newest full state at or before `start` (`checkpoints.state_every` keeps some for good), else at step
    0, with as many threads as the run had, on the `device` that `train` takes too. The weights at every step that the
    run has already must come out the same, bit for bit, at the first one at or after `end` too; only then are the new
    steps put among the run's checkpoints. Otherwise (another machine, another number of processes) they are kept apart
    in `run`/zoom, and `differs` says where. Safe to interrupt: call it again to resume. Raises InputError for steps
    outside the run, or a run whose tokens are no longer there.
    """
    run = Path(run)
    config = RunConfig.load(run / "config.toml")
    if config.fork.of and start <= config.fork.at:
        raise InputError(f"{run}: a fork, whose steps up to {config.fork.at} are its parent's; zoom into those there")
    if not 0 <= start <= end <= config.train.steps or every < 1:
        raise InputError(
            f"zoom from {start} to {end} every {every}: give 0 <= from <= to <= {config.train.steps} (the run's last "
            "step) and every >= 1"
        )
    there = {checkpoint.step: Path(checkpoint.path) for checkpoint in CheckpointSeries.open(run).checkpoints}
    wanted = {*range(start, end + 1, every)} - there.keys()
    if not wanted:
        return Zoom([], [], [], run)
    last = min((step for step in there if step >= end), default=end)
    apart = run / "zoom" / f"{start}-{end}-{every}"
    begin = nearest_states(run, config, min(wanted) - 1)
    # Every step of the run on the way is trained, and saved for the comparison.
    known = step_of(begin)
    save = frozenset(wanted | {step for step in there if known < step <= last})
    plan = Plan(last=last, saved=save, kept=save, start_from=tuple(begin))
    replay(run, config, apart, plan, progress=progress, device=device)

    replayed = {checkpoint.step: Path(checkpoint.path) for checkpoint in CheckpointSeries.open(apart).checkpoints}
    compared = sorted(replayed.keys() & there.keys() - {0})
    differs = [step for step in compared if weights_hash(replayed[step]) != weights_hash(there[step])]
    if differs or not compared:
        return Zoom([], compared, differs, apart)
    for step in sorted(wanted):
        replayed[step].rename(run / "checkpoints" / step_folder(step))
    shutil.rmtree(apart)
    return Zoom(sorted(wanted), compared, [], run)
