"""What a model continues prompts with: the likeliest tokens when the right ones come before, and when its own do."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, embed
from copyscope.interp.forward.residual import batches, final_residual, logits_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer


class Continued(NamedTuple):
    """The likeliest token at each place of each continuation."""

    forced: Int[Tensor, "*continuation place"]
    """With the right tokens before it (teacher forcing)."""
    greedy: Int[Tensor, "*continuation place"]
    """With the model's own tokens before it."""


@torch.no_grad()
def continue_packed(
    model: HookedTransformer, layers: Sequence[Layer], tokens: Int[Tensor, "row pos"], read: Int[Tensor, "read"], n: int
) -> Continued:
    """`n` tokens of every block of packed rows, as (row, block, place). `tokens` hold the right ones; `read` are the
    positions that they are predicted from, block by block.

    The rows run once. Then the model's own tokens take the place of the right ones, one place of all blocks at a time,
    against the keys and values that are already there.
    """
    layout, cache = layers[0].layout, []
    x = embed(model, tokens, layout)
    for layer in layers:
        normed, at = layer.normed(x), read if layer is layers[-1] else None
        q = layer.queries(normed if at is None else normed[:, at], at)
        k, v = layer.keys(normed), layer.values(normed)
        x = layer.residual_after(x if at is None else x[:, at], layer.attend(q, k, v, at).transpose(1, 2))
        cache.append((k, v))
    forced = logits_of(model, x).argmax(dim=-1).unflatten(1, (-1, n))
    greedy = [forced[..., 0]]
    for at in read.view(-1, n).T[1:]:  # where each block's newest token stands
        x = embed(model, greedy[-1], layout, at)
        for layer, (k, v) in zip(layers, cache, strict=True):
            normed = layer.normed(x)
            k[:, :, at], v[:, :, at] = layer.keys(normed, at), layer.values(normed)
            z = layer.attend(layer.queries(normed, at), k, v, at)
            x = layer.residual_after(x, z.transpose(1, 2))
        greedy.append(logits_of(model, x).argmax(dim=-1))
    return Continued(forced.cpu(), torch.stack(greedy, dim=-1).cpu())


@torch.no_grad()
def continue_whole(model: HookedModel, prompts: Int[Tensor, "row pos"], right: Int[Tensor, "row place"]) -> Continued:
    """The same of any model, a forward pass a place at most, of prompts that share nothing.

    Each pass reads what the last one gave; after pass k the first k tokens are the model's own, and rows whose input no
    longer changes are done.
    """
    prompts, right = prompts.cpu(), right.cpu()
    forced = _likeliest(model, prompts, right)
    given, greedy = right.clone(), forced.clone()
    for _ in range(right.shape[1] - 1):
        changed = (given[:, :-1] != greedy[:, :-1]).any(dim=1).nonzero().flatten()
        if not len(changed):
            break
        given[changed] = greedy[changed]
        greedy[changed] = _likeliest(model, prompts[changed], given[changed])
    return Continued(forced, greedy)


def _likeliest(model: HookedModel, prompts: Tensor, given: Tensor) -> Tensor:
    """The likeliest token at each place after `prompts`, with those of `given` before it."""
    tokens, n = torch.cat([prompts, given[:, :-1]], dim=1), given.shape[1]
    best = [
        logits_of(model, final_residual(model, tokens[rows])[:, -n:]).argmax(dim=-1).cpu()
        for rows in batches(model, *tokens.shape)
    ]
    return torch.cat(best)
