"""Attention patterns handed to a reader block by block: no cache, nothing kept, nothing run that is not read."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from interp.fused import can_fuse, fused_attention
from interp.models import HookedModel
from interp.runs import Hook, batches, final_residual, is_hooked, to_device

TOKENS_AT_ONCE = 2048
"""Tokens of a batch: fewer waste the products of a small model, more fill memory with activations of a large one."""
BLOCK_ELEMENTS = 2**20
"""Elements of the part of a pattern held at once: 4 MB in fp32, which stays in the caches of a laptop CPU."""


class PatternBlock(NamedTuple):
    """The attention of some queries of some prompts, in one layer."""

    layer: int
    rows: slice
    """Which prompts."""
    first_query: int
    pattern: Float[Tensor, "row head query key"]
    """Keys beyond the last query, which nothing attends to, may be left off."""
    values: Float[Tensor, "row head pos d_head"]
    """Of all positions; grouped heads repeated for each query head."""


class _ReadEnoughError(Exception):
    """Raised once the last pattern that is read has been read."""


@torch.no_grad()
def read_patterns(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    read: Callable[[PatternBlock], None],
    layers: Sequence[int] | None = None,
) -> None:
    """Runs the model on the prompts and hands every block of every pattern of `layers` (None: all) to `read`.

    Layers after the last of them are not run. With somebody's hooks on the model, or on a `TransformerBridge`, patterns
    come whole, from the hook points.
    """
    wanted = range(model.cfg.n_layers) if layers is None else sorted(set(layers))
    if not isinstance(model, HookedTransformer) or is_hooked(model) or not can_fuse(model):
        _read_from_hooks(model, tokens, read, wanted)
        return
    n_heads, length = model.cfg.n_heads, tokens.shape[1]
    rows_at_once = max(1, TOKENS_AT_ONCE // length)
    for start in range(0, len(tokens), rows_at_once):
        rows = slice(start, min(start + rows_at_once, len(tokens)))

        def see(layer: int, first_query: int, pattern: Tensor, values: Tensor, rows: slice = rows) -> None:
            read(PatternBlock(layer, rows, first_query, pattern, values))
            if layer == wanted[-1] and first_query + pattern.shape[2] == length:
                raise _ReadEnoughError

        queries = max(16, BLOCK_ELEMENTS // ((rows.stop - rows.start) * n_heads * length))
        observers = {layer: partial(see, layer) for layer in wanted}
        try:
            with fused_attention(model, observers=observers, queries_at_once=queries):
                model(to_device(model, tokens[rows]), stop_at_layer=wanted[-1] + 1)
        except _ReadEnoughError:
            continue


def _read_from_hooks(
    model: HookedModel, tokens: Tensor, read: Callable[[PatternBlock], None], wanted: Sequence[int]
) -> None:
    for rows in batches(model, *tokens.shape):
        values: dict[int, Tensor] = {}

        def keep(v: Tensor, hook: object, layer: int, values: dict[int, Tensor] = values) -> None:
            groups = model.cfg.n_heads // v.shape[2]
            values[layer] = v.repeat_interleave(groups, dim=2).transpose(1, 2)

        def see(
            pattern: Tensor, hook: object, layer: int, rows: slice = rows, values: dict[int, Tensor] = values
        ) -> None:
            read(PatternBlock(layer, rows, 0, pattern, values.pop(layer)))
            if layer == wanted[-1]:
                raise _ReadEnoughError

        hooks: list[Hook] = []
        for i in wanted:
            hooks.append((f"blocks.{i}.attn.hook_v", partial(keep, layer=i)))
            hooks.append((f"blocks.{i}.attn.hook_pattern", partial(see, layer=i)))
        try:
            final_residual(model, tokens[rows], hooks)
        except _ReadEnoughError:
            continue
