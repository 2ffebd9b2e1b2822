"""Several processes that share each batch: which sequences are whose, and values that all of them know."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError


def accelerator_of(config: RunConfig, out: Path, track: bool = True) -> Accelerator:
    """Device, processes and, unless `track` is false, the run's trackers.

    Precision is ours (`NextTokenLoss`): autocast casts each weight at each use.
    """
    return Accelerator(
        cpu=not torch.cuda.is_available(),  # unless told, accelerate shares work between GPUs only
        mixed_precision="no",
        log_with=list(config.train.track) if track and config.train.track else None,
        project_dir=out / "tracking",
    )


def own_rows(config: RunConfig, accelerator: Accelerator) -> range:
    """Which sequences of a batch this process computes."""
    batch_size, processes = config.train.batch_size, accelerator.num_processes
    if batch_size % (processes * config.train.gradient_accumulation):
        raise InputError(
            f"train.batch_size {batch_size} cannot be shared evenly by {processes} processes in "
            f"{config.train.gradient_accumulation} parts (train.gradient_accumulation); change one of the three"
        )
    share = batch_size // processes
    return range(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def summed(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if accelerator.num_processes == 1:
        return value
    total: Any = accelerator.reduce(value.to(accelerator.device), "sum")
    return total


def any_of(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(summed(accelerator, torch.tensor(float(flag))) > 0)
