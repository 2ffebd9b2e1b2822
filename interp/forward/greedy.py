"""How a model continues prompts: its most likely tokens after the right ones (teacher-forced) or its own (greedy)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, embed
from copyscope.interp.forward.residual import Hook, batches, final_residual, logits_of, ranks_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer


class Continued(NamedTuple):
    """The most likely token at each place of each continuation."""

    forced: Int[Tensor, "*continuation place"]
    """With the right tokens before it (teacher forcing)."""
    greedy: Int[Tensor, "*generated place"]
    """With the model's own tokens before it; of the first continuations, as many as were asked to be generated."""
    rank: Float[Tensor, "*continuation place"]
    """Of the right token among all, from 1, with the right tokens before it."""


MostAttended = Callable[[int, Int[Tensor, "row head read"]], None]
"""Is handed, layer by layer, the key that each head attends to most from each position read, with the right tokens
before it."""


@torch.no_grad()
def continue_packed(
    model: HookedTransformer,
    layers: Sequence[Layer],
    tokens: Int[Tensor, "row pos"],
    read: Int[Tensor, " read"],
    right: Int[Tensor, "row block place"],
    n_generated: int,
    see: MostAttended | None = None,
) -> Continued:
    """The tokens after every block of packed rows, as (row, block, place), on the model's device; `greedy` has the
    first `n_generated` rows only.

    `tokens` hold the `right` continuations but for their last token; `read` are the positions that they are predicted
    from, block by block. All rows run once. Then the model's tokens replace the right ones, one place of all blocks at
    a time, and attend to the stored keys and values. A generated token costs far more than a
    teacher-forced one, because each step reads all keys and values of its row again.
    """
    layout, cache, n_places = layers[0].layout, [], right.shape[-1]
    x = embed(model, tokens, layout)
    for i, layer in enumerate(layers):
        normed, at = layer.normed(x), read if layer is layers[-1] else None
        q = layer.queries(normed if at is None else normed[:, at], at)
        k, v = layer.keys(normed), layer.values(normed)
        if see is not None:
            scores = (q if at is not None else q[:, :, read]) @ k.transpose(2, 3)
            see(i, (scores + layout.mask[read]).argmax(dim=-1))
        x = layer.resid_post(x if at is None else x[:, at], layer.attend(q, k, v, at).transpose(1, 2))
        if n_generated:
            cache.append((k[:n_generated], v[:n_generated]))
    logits = logits_of(model, x).unflatten(1, (-1, n_places))
    forced, rank = logits.argmax(dim=-1), ranks_of(logits, right)
    del logits
    if not n_generated:
        return Continued(forced=forced, greedy=forced[:0], rank=rank)
    greedy = [forced[:n_generated, :, 0]]
    for at in read.view(-1, n_places).T[1:]:  # where each block's newest token stands
        x = embed(model, greedy[-1], layout, at)
        for layer, (k, v) in zip(layers, cache, strict=True):
            normed = layer.normed(x)
            k[:, :, at], v[:, :, at] = layer.keys(normed, at), layer.values(normed)
            z = layer.attend(layer.queries(normed, at), k, v, at)
            x = layer.resid_post(x, z.transpose(1, 2))
        greedy.append(logits_of(model, x).argmax(dim=-1))
    return Continued(forced=forced, greedy=torch.stack(greedy, dim=-1), rank=rank)


@torch.no_grad()
def continue_whole(
    model: HookedModel,
    prompts: Int[Tensor, "row pos"],
    right: Int[Tensor, "row place"],
    n_generated: int,
    see: Callable[[int, slice, Int[Tensor, "row head place"]], None] | None = None,
) -> Continued:
    """The same for any model and for prompts that share nothing, with at most one forward pass per place, on the CPU;
    the first `n_generated` prompts are continued greedily.

    Each pass reads the tokens that the previous pass predicted. After pass k the first k tokens are generated; rows
    whose input no longer changes are finished. `see` is handed what `MostAttended` is, with the rows it is of.
    """
    prompts, right = prompts.cpu(), right.cpu()
    ranks: list[Tensor] = []
    forced = _most_likely(model, prompts, right, see, ranks)
    given, greedy = right[:n_generated].clone(), forced[:n_generated].clone()
    for _ in range(right.shape[1] - 1):
        changed = (given[:, :-1] != greedy[:, :-1]).any(dim=1).nonzero().flatten()
        if not len(changed):
            break
        given[changed] = greedy[changed]
        greedy[changed] = _most_likely(model, prompts[changed], given[changed])
    return Continued(forced, greedy, torch.cat(ranks).cpu())


def _most_likely(
    model: HookedModel,
    prompts: Tensor,
    given: Tensor,
    see: Callable[[int, slice, Tensor], None] | None = None,
    ranks: list[Tensor] | None = None,
) -> Tensor:
    """The most likely token at each place after `prompts`, with those of `given` before it; the rank of those is added
    to `ranks`, on the model's device."""
    tokens, n = torch.cat([prompts, given[:, :-1]], dim=1), given.shape[1]
    best = []
    for rows in batches(model, *tokens.shape):

        def hand_over(pattern: Tensor, hook: Any, layer: int, rows: slice = rows) -> None:
            assert see is not None
            see(layer, rows, pattern[:, :, -n:].argmax(dim=-1))

        hooks: list[Hook] = []
        if see is not None:
            layers = range(model.cfg.n_layers)
            hooks = [(f"blocks.{i}.attn.hook_pattern", partial(hand_over, layer=i)) for i in layers]
        logits = logits_of(model, final_residual(model, tokens[rows], hooks)[:, -n:])
        best.append(logits.argmax(dim=-1))
        if ranks is not None:
            ranks.append(ranks_of(logits, given[rows].to(logits.device)))
    return torch.cat(best).cpu()
