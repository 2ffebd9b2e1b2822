"""Fake tensors that say they are on a GPU, also with a PyTorch that is built without CUDA."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

DEVICE = "cuda:0"
_CUDA, _META, _TYPES = 1, 14, 21
"""Of c10::DeviceType."""


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Inside, tensors on `DEVICE` have shapes and no values, and operations refuse to mix them with others.

    PyTorch asks the device's guard which of several devices is current. Without CUDA there is no guard, so the one of
    the meta device, which does nothing, stands in. Autograd wants more than that: no backward passes here.
    """
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * _TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before = guards[_CUDA]
    guards[_CUDA] = before or guards[_META]
    try:
        with FakeTensorMode(), torch.no_grad():
            yield
    finally:
        guards[_CUDA] = before


def to_fake_gpu(module: torch.nn.Module) -> None:
    """Replaces parameters and buffers by fake ones of the same shapes and types. Inside `fake_gpu`."""
    for part in module.modules():
        both: Any = (part._parameters, part._buffers)
        for tensors in both:
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)
                    tensors[name] = torch.nn.Parameter(fake) if tensors is part._parameters else fake
