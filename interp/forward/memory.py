"""How much memory activations may take at once beside the model, and the sizes of batches that follow.

On a CPU sizes are fixed, as more is no faster there; on a GPU they fill a share of what is free. `limit_memory` caps
both. A measure that runs out of memory all the same is tried again with half.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from copyscope.interp.models.devices import device_of, free_bytes
from copyscope.interp.models.lens import HookedModel
from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)

TOKENS_AT_ONCE = 2048
"""Tokens of a batch on a CPU: fewer waste the products of a small model, more fill its caches with activations."""
PATTERN_ELEMENTS = 2**21
"""Elements of one layer's attention pattern in a batch on a CPU: 8 MB in fp32, which stays in a laptop's caches."""
BLOCK_ELEMENTS = 2**20
"""Elements of the part of a pattern held at once on a CPU."""
QUERIES_AT_ONCE = 64
"""At most, on a CPU: smaller blocks leave out more of the keys that no query of theirs sees."""
LOGIT_ELEMENTS = 2**24
"""Elements of logits held at once on a CPU: 64 MB in fp32."""
ABLATION_BYTES = 64 * 2**20
"""Memory of the activations of ablations on a CPU."""
GPU_BYTES = 4 * 2**30
"""Memory for activations on a GPU, where twice as much is free. Always the same there, since a GPU's products round
differently at other sizes."""
MIN_BYTES = 2**20
"""Less is not tried: not even one prompt fits."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class _Limit:
    bytes: int | None
    """None: the fixed sizes of a CPU."""
    said: bool = False
    """Whether it was said that memory had run out."""


def limit_memory(model: HookedModel, max_bytes: int | None) -> None:
    """Caps the activations of all that is measured on the model from now on; None for what its device gives.

    Raises InputError for less than `MIN_BYTES`.
    """
    if max_bytes is not None and max_bytes < MIN_BYTES:
        raise InputError(f"memory of {max_bytes / 2**20:g} MB: give at least {MIN_BYTES >> 20} MB")
    own = _of_device(device_of(model))
    object.__setattr__(
        model, "_copyscope_memory", _Limit(own if max_bytes is None else min(max_bytes, own or max_bytes))
    )


def wide(device: torch.device) -> torch.dtype:
    """The dtype that sums are kept in: fp64, which Apple's GPUs lack."""
    return torch.float32 if device.type == "mps" else torch.float64


def for_sums(device: torch.device) -> dict[str, Any]:
    """Arguments `dtype` and `device` of a tensor that sums are kept in."""
    return {"dtype": wide(device), "device": device}


def tokens_at_once(model: HookedModel) -> int:
    """Tokens of a batch whose attention patterns are never written out."""
    c, limit = model.cfg, _limit(model).bytes
    if limit is None:
        return TOKENS_AT_ONCE
    of_token = 8 * c.d_model + 5 * c.n_heads * c.d_head + (0 if c.attn_only else 3 * (c.d_mlp or 0))
    most = max(1, limit // (of_token * c.dtype.itemsize))
    return min(most, TOKENS_AT_ONCE) if _on_cpu(model) else most


def pattern_elements(model: HookedModel) -> int:
    """Elements of one layer's attention pattern in a batch, where it is written out."""
    return _elements(model, PATTERN_ELEMENTS)


def block_elements(model: HookedModel) -> int:
    """Elements of the part of a pattern held at once."""
    return _elements(model, BLOCK_ELEMENTS)


def logit_elements(model: HookedModel) -> int:
    """Elements of logits held at once."""
    return _elements(model, LOGIT_ELEMENTS)


def queries_at_once(model: HookedModel) -> int:
    """Queries of a block of a pattern, at most."""
    return QUERIES_AT_ONCE if _on_cpu(model) else 1024


def ablation_bytes(model: HookedModel) -> int:
    """Memory for the activations of ablations."""
    limit = _limit(model).bytes
    return ABLATION_BYTES if limit is None else limit


def within_memory(
    measure: Callable[Concatenate[HookedModel, P], R],
) -> Callable[Concatenate[HookedModel, P], R]:
    """A measure that is tried again with half the memory whenever its device has run out.

    Raises InputError once not even `MIN_BYTES` are to be had.
    """

    @wraps(measure)
    def tried(model: HookedModel, *args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            try:
                return measure(model, *args, **kwargs)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            # Here, where the exception no longer holds what was computed.
            _halve(model)

    return tried


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a GPU's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _halve(model: HookedModel) -> None:
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    limit = _limit(model)
    half = (GPU_BYTES if limit.bytes is None else limit.bytes) // 2
    device = device_of(model)
    if half < MIN_BYTES:
        raise InputError(
            f"{device}: out of memory, even for {MIN_BYTES >> 20} MB of activations beside the model; free some, or "
            "compute on another device (--device) or in bfloat16 (--dtype)"
        )
    if not limit.said:
        logger.warning(f"{device}: out of memory; going on with {half >> 20} MB of activations at once, or less")
    limit.bytes, limit.said = half, True


def _limit(model: HookedModel) -> _Limit:
    if not hasattr(model, "_copyscope_memory"):
        limit_memory(model, None)
    limit: Any = model._copyscope_memory
    return limit


def _of_device(device: torch.device) -> int | None:
    if device.type == "cpu":
        return None
    free = free_bytes(device)
    return GPU_BYTES if free is None else max(MIN_BYTES, min(GPU_BYTES, free // 2))


def _elements(model: HookedModel, on_cpu: int) -> int:
    """A quarter of the memory, in fp32."""
    limit = _limit(model).bytes
    if limit is None:
        return on_cpu
    return min(limit // 16, on_cpu) if _on_cpu(model) else limit // 16


def _on_cpu(model: HookedModel) -> bool:
    return device_of(model).type == "cpu"
