"""Which checkpoint of a series a step names."""

from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries, Source
from copyscope.training.errors import InputError


def checkpoint_at(source: Source, step: int) -> Checkpoint:
    """The checkpoint of this step; below 0, counted from the end: -1 is the last. InputError for one not there."""
    checkpoints = CheckpointSeries.open(source).checkpoints
    if -len(checkpoints) <= step < 0:
        return checkpoints[step]
    for checkpoint in checkpoints:
        if checkpoint.step == step:
            return checkpoint
    if step < 0:
        raise InputError(f"step={step}: the series has {len(checkpoints)} checkpoints; -1 is the last")
    near = min(checkpoints, key=lambda known: abs(known.step - step)).step
    raise InputError(f"step={step}: no such checkpoint; the nearest is step {near}")
