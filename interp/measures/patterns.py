"""Attention patterns handed to a reader block by block: no cache, nothing kept, nothing run that is not read."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, Layout, can_run, embed, slices
from copyscope.interp.forward.memory import block_elements, queries_at_once
from copyscope.interp.forward.residual import Hook, batches, final_residual
from copyscope.interp.models.lens import HookedModel


class PatternBlock(NamedTuple):
    """The attention of some queries of some prompts, in one layer."""

    layer: int
    rows: slice
    """Which prompts."""
    first_query: int
    pattern: Float[Tensor, "row head query key"]
    """In fp32, also of a bf16 model. Keys beyond the last query, which nothing attends to, may be left off."""
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

    Layers after the last of them are not run. With hooks on the model, or on a `TransformerBridge`, patterns
    come whole, from the hook points.
    """
    wanted = range(model.cfg.n_layers) if layers is None else sorted(set(layers))
    if not can_run(model):
        _read_from_hooks(model, tokens, read, wanted)
        return
    length = tokens.shape[1]
    layout = Layout.of(model, length)
    for rows in slices(model, *tokens.shape):
        x = embed(model, tokens[rows], layout)
        for i in range(wanted[-1] + 1):
            layer = Layer(model, i, layout)
            last = i == wanted[-1]
            see = partial(_hand_over, read, i, rows)
            z = _in_blocks(model, layer, x, see, last) if i in wanted else layer.z(x)
            if not last:
                x = layer.resid_post(x, z)


def _hand_over(
    read: Callable[[PatternBlock], None], layer: int, rows: slice, first_query: int, pattern: Tensor, values: Tensor
) -> None:
    read(PatternBlock(layer, rows, first_query, pattern, values))


def _in_blocks(
    model: HookedModel,
    layer: Layer,
    x: Float[Tensor, "row pos d_model"],
    see: Callable[[int, Tensor, Tensor], None],
    last: bool,
) -> Float[Tensor, "row pos head d_head"]:
    """The heads' outputs (left empty for the `last` layer), with patterns shown block of queries by block."""
    normed = layer.normed(x)
    q, k, v = layer.queries(normed, None).float() * layer.scale, layer.keys(normed).float(), layer.values(normed)
    n_rows, n_heads, length, _ = q.shape
    size = max(16, min(queries_at_once(model), block_elements(model) // (n_rows * n_heads * length)))
    future = torch.full((size, size), float("-inf"), device=q.device).triu_(1)
    z = torch.empty_like(v)
    for first in range(0, length, size):
        end = min(first + size, length)
        pattern = q[:, :, first:end] @ k[:, :, :end].transpose(2, 3)
        pattern[..., first:] += future[: end - first, : end - first]
        pattern = pattern.softmax(dim=-1)
        see(first, pattern, v)
        if not last:
            z[:, :, first:end] = pattern.to(v) @ v[:, :, :end]
    return z.transpose(1, 2)


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
            read(PatternBlock(layer, rows, 0, pattern.float(), values.pop(layer)))
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
