"""How a model continues prompts: its most likely tokens after the right ones (teacher-forced) or its own (greedy)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, embed
from copyscope.interp.forward.residual import batches, final_residual, logits_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer


class Continued(NamedTuple):
    """The most likely token at each place of each continuation."""

    forced: Int[Tensor, "*continuation place"]
    """With the right tokens before it (teacher forcing)."""
    greedy: Int[Tensor, "*generated place"]
    """With the model's own tokens before it; of the first continuations, as many as were asked to be generated."""


@torch.no_grad()
def continue_packed(
    model: HookedTransformer,
    layers: Sequence[Layer],
    tokens: Int[Tensor, "row pos"],
    read: Int[Tensor, " read"],
    n_places: int,
    n_generated: int,
) -> Continued:
    """`n_places` tokens after every block of packed rows, as (row, block, place), on the model's device; `greedy` has
    the first `n_generated` rows only.

    `tokens` hold the right continuations; `read` are the positions that they are predicted from, block by block. All
    rows run once. Then the model's tokens replace the right ones, one place of all blocks at a time, and attend to the
    stored keys and values. A generated token costs far more than a teacher-forced one, because each step reads all keys
    and values of its row again.
    """
    layout, cache = layers[0].layout, []
    x = embed(model, tokens, layout)
    for layer in layers:
        normed, at = layer.normed(x), read if layer is layers[-1] else None
        q = layer.queries(normed if at is None else normed[:, at], at)
        k, v = layer.keys(normed), layer.values(normed)
        x = layer.resid_post(x if at is None else x[:, at], layer.attend(q, k, v, at).transpose(1, 2))
        if n_generated:
            cache.append((k[:n_generated], v[:n_generated]))
    forced = logits_of(model, x).argmax(dim=-1).unflatten(1, (-1, n_places))
    if not n_generated:
        return Continued(forced=forced, greedy=forced[:0])
    greedy = [forced[:n_generated, :, 0]]
    for at in read.view(-1, n_places).T[1:]:  # where each block's newest token stands
        x = embed(model, greedy[-1], layout, at)
        for layer, (k, v) in zip(layers, cache, strict=True):
            normed = layer.normed(x)
            k[:, :, at], v[:, :, at] = layer.keys(normed, at), layer.values(normed)
            z = layer.attend(layer.queries(normed, at), k, v, at)
            x = layer.resid_post(x, z.transpose(1, 2))
        greedy.append(logits_of(model, x).argmax(dim=-1))
    return Continued(forced=forced, greedy=torch.stack(greedy, dim=-1))


@torch.no_grad()
def continue_whole(
    model: HookedModel, prompts: Int[Tensor, "row pos"], right: Int[Tensor, "row place"], n_generated: int
) -> Continued:
    """The same for any model and for prompts that share nothing, with at most one forward pass per place, on the CPU;
    the first `n_generated` prompts are continued greedily.

    Each pass reads the tokens that the previous pass predicted. After pass k the first k tokens are generated; rows
    whose input no longer changes are finished.
    """
    prompts, right = prompts.cpu(), right.cpu()
    forced = _most_likely(model, prompts, right)
    given, greedy = right[:n_generated].clone(), forced[:n_generated].clone()
    for _ in range(right.shape[1] - 1):
        changed = (given[:, :-1] != greedy[:, :-1]).any(dim=1).nonzero().flatten()
        if not len(changed):
            break
        given[changed] = greedy[changed]
        greedy[changed] = _most_likely(model, prompts[changed], given[changed])
    return Continued(forced, greedy)


def _most_likely(model: HookedModel, prompts: Tensor, given: Tensor) -> Tensor:
    """The most likely token at each place after `prompts`, with those of `given` before it."""
    tokens, n = torch.cat([prompts, given[:, :-1]], dim=1), given.shape[1]
    best = [
        logits_of(model, final_residual(model, tokens[rows])[:, -n:]).argmax(dim=-1)
        for rows in batches(model, *tokens.shape)
    ]
    return torch.cat(best).cpu()
