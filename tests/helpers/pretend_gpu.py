"""A GPU that is none: tensors that say they are on `cuda` and hold their numbers in ordinary memory.

Within `PretendGpu` whatever is made on `cuda`, moved there or computed from such tensors is one of them. Mixing them
with tensors of the CPU raises, as it does on a GPU, and so does numpy; what waits for the GPU to hand something over is
counted. Numbers are real, so what depends on data runs too, unlike under PyTorch's `FakeTensorMode`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda")
_HANDED_OVER = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "allclose"}
_ANYWHERE = {"__get__", "__repr__", "size", "dim", "numel", "stride", "storage_offset", "is_floating_point"}


class OnGpu(Tensor):
    """A tensor of the pretended GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU


class PretendGpu(TorchFunctionMode):
    """`with PretendGpu() as gpu:` – and then `gpu.handed_over` counts what the CPU waited for, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.handed_over: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        tensors = list(_tensors((args, kwargs)))
        on_gpu = any(isinstance(x, OnGpu) for x in tensors)
        if name == "to":
            return self._moved(func, args, kwargs)
        if name in ("cpu", "numpy") and on_gpu:
            if name == "numpy":
                raise TypeError("can't convert a tensor on the GPU to numpy; copy it to the CPU first")
            self.handed_over["cpu"] += 1
            return args[0].as_subclass(Tensor)
        if name in _HANDED_OVER and on_gpu:
            self.handed_over[name] += 1
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = "cpu"
            on_gpu = torch.device(device).type == "cuda"
        elif on_gpu and name not in _ANYWHERE:
            _check_together(name, args, kwargs, tensors)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return _wrapped(result) if on_gpu else result

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        x, rest = args[0], list(args[1:])
        target = x.device
        for i, value in enumerate(rest):
            if isinstance(value, Tensor):
                target, rest[i] = value.device, value.dtype
            elif isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda")):
                target, rest[i] = torch.device(value), "cpu"
        if kwargs.get("device") is not None:
            target, kwargs["device"] = torch.device(kwargs["device"]), "cpu"
        was_there = isinstance(x, OnGpu)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(x.as_subclass(Tensor), *rest, **kwargs)
        if target.type == "cuda":
            return x if was_there and result is x else _wrapped(result)
        if was_there:
            self.handed_over["cpu"] += 1
        return result


def to_pretended_gpu(model: Any) -> Any:
    """The same model, on the pretended GPU: parameters, buffers and what its config says."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                moved = nn.Parameter(parameter.detach().clone().as_subclass(OnGpu), requires_grad=False)
                module._parameters[name] = moved
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.detach().clone().as_subclass(OnGpu)
    model.cfg.device = "cuda"
    return model


def _check_together(name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    if name in ("__getitem__", "__setitem__", "index_put_", "index"):
        target = args[0]
        if not isinstance(target, OnGpu):
            raise RuntimeError(f"{name}: a tensor on the CPU indexed by one on the GPU")
        tensors = [target, *([args[2]] if name == "__setitem__" and isinstance(args[2], Tensor) else [])]
    wrong = [x for x in tensors if not isinstance(x, OnGpu) and x.dim()]
    if wrong:
        raise RuntimeError(f"{name}: tensors on the GPU and on the CPU ({[tuple(x.shape) for x in wrong]})")


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(value, OnGpu) else value.as_subclass(OnGpu)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_wrapped, value))
    if isinstance(value, tuple) and type(value) is not tuple and type(value) is not torch.Size:
        return tuple(map(_wrapped, value))  # what PyTorch returns of several parts
    if type(value) in (tuple, list):
        return type(value)(map(_wrapped, value))
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
