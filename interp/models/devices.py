"""Where a model computes and in which precision, by name; and whether it fits there."""

from dataclasses import dataclass
from typing import Any

import torch

from copyscope.training.devices import device_named
from copyscope.training.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The precisions that measures are tested in."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how precisely a series is measured."""

    device: str = "auto"
    dtype: str = "float32"
    max_bytes: int | None = None
    """Of activations at once, beside the model; None for what the device gives."""

    def __post_init__(self) -> None:
        """Raises InputError for a device that is not there, or another dtype."""
        device_named(self.device)
        dtype_named(self.dtype)

    @property
    def key(self) -> tuple[str, ...]:
        """For the keys of results: the precision changes them, the device only their last digits."""
        return () if self.dtype == "float32" else (self.dtype,)

    @property
    def facts(self) -> dict[str, str]:
        """For the metadata of results."""
        device = device_named(self.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {"device": name, "dtype": self.dtype}


def dtype_named(name: str | torch.dtype = "float32") -> torch.dtype:
    """The dtype `float32` or `bfloat16`. Raises InputError for another."""
    found = DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise InputError(f"dtype {name}: give {' or '.join(DTYPES)}")
    return found


def device_of(model: Any) -> torch.device:
    """Where a model with hooks computes."""
    return torch.device(model.cfg.device or "cpu")


def free_bytes(device: torch.device) -> int | None:
    """What is free on a GPU, with what PyTorch keeps for itself; None where it cannot be asked."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def weight_bytes(model: Any, dtype: torch.dtype | None = None) -> int:
    """Bytes of a model's weights; in `dtype` where one is given."""
    return sum(p.numel() * (dtype or p.dtype).itemsize for p in model.parameters())


def check_room(model: Any, device: torch.device, where: object) -> None:
    """Raises InputError, with the numbers, where a model's weights do not fit into what is free on a GPU."""
    free = free_bytes(device)
    needed = weight_bytes(model)
    if free is None or needed <= free:
        return
    half = weight_bytes(model, torch.bfloat16)
    advice = "compute on the CPU (device cpu) or on a larger GPU"
    if half < needed and half <= free:
        advice = f"in bfloat16 (dtype bfloat16) they take {_gb(half)}, or {advice}"
    raise InputError(f"{where}: its weights take {_gb(needed)}, but {device} has {_gb(free)} free; {advice}")


def has_room_for_another(model: Any) -> bool:
    """Whether the device of a loaded model has room for its weights a second time, and some more."""
    free = free_bytes(device_of(model))
    return free is None or 1.2 * weight_bytes(model) <= free


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
