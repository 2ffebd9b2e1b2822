"""Devices by name: where models are trained and measured."""

import torch

from copyscope.training.errors import InputError


def device_named(name: str | torch.device = "auto") -> torch.device:
    """The device `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the GPU that is there, else the CPU.

    Raises InputError for another name, and for a device that is not there.
    """
    try:
        device = torch.device(_best() if str(name) == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name}: give auto, cpu, cuda, cuda:1 or mps")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InputError(f"device {name}: PyTorch {torch.__version__} sees no NVIDIA GPU here; give cpu or auto")
        if (device.index or 0) >= count:
            raise InputError(f"device {name}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {name}: PyTorch {torch.__version__} sees no Apple GPU here; give cpu or auto")
    return device


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
