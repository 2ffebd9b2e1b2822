"""Several processes that share each batch: which sequences are whose, and values that all of them know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from copyscope.training.config import RunConfig
from copyscope.training.devices import device_named
from copyscope.training.errors import InputError


def accelerator_of(config: RunConfig, out: Path, track: bool = True, device: str = "auto") -> Accelerator:
    """Device, processes and, unless `track` is false, the run's trackers.

    `device`: `auto` (an NVIDIA GPU if there is one, else the CPU; of several processes each has its own), `cpu`,
    `cuda`, `cuda:1`. Precision is ours (`NextTokenLoss`): autocast casts each weight at each use. Raises InputError
    where the device is not there, or cannot do what `config` asks.
    """
    chosen = device_named(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if chosen.type == "mps":
        raise InputError(f"device {device}: models are trained on a CPU or an NVIDIA GPU; give cpu or auto")
    on_cpu = chosen.type == "cpu"
    if chosen.index is not None:
        torch.cuda.set_device(chosen)
    if on_cpu and config.train.compile:
        raise InputError(
            "train.compile: for GPUs, and this is to run on a CPU; leave it out (on a CPU, training has operations "
            "written for it)"
        )
    return Accelerator(
        cpu=on_cpu,  # unless told, accelerate shares work between GPUs only
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


class Stopping:
    """Whether any process has been asked to stop; all of them get the same answer at the same update.

    Processes on GPUs get it one update late, since none waits for its GPU.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._before: Callable[[], list[float]] | None = None

    def any(self, asked: bool) -> bool:
        """To be called once an update, with whether this process has been asked."""
        if self._accelerator.num_processes == 1:
            return asked
        now = copied(summed(self._accelerator, torch.tensor([float(asked)])))
        if self._accelerator.device.type == "cpu":
            return now()[0] > 0
        before, self._before = self._before, now
        return before is not None and before()[0] > 0


def copied(values: torch.Tensor) -> Callable[[], list[float]]:
    """A copy of the values to the CPU, begun now. The result waits until it is there (for nothing queued on the device
    since), and gives the values."""
    if values.device.type != "cuda":
        return values.tolist
    copy = values.to("cpu", non_blocking=True)  # into pinned memory
    there = torch.cuda.Event()
    there.record()

    def wait() -> list[float]:
        there.synchronize()
        return copy.tolist()

    return wait
