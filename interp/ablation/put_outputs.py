"""Outputs of heads put into other prompts, one head at a time, and what that changes there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, Layout, can_run, embed
from copyscope.interp.forward.memory import ablation_bytes, logit_elements
from copyscope.interp.forward.residual import Hook, final_residual, logits_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Tokens that run together, on the model's device."""

    tokens: Int[Tensor, "row pos"]
    read: Int[Tensor, " read"]
    """Positions, in order. What is put in at one of them may be seen from these alone."""
    layout: Layout | None
    """None for models that only hooks reach into: each row is one prompt."""


class _At(NamedTuple):
    """What a clean run leaves of a layer."""

    k: Float[Tensor, "row head pos d_head"]
    v: Float[Tensor, "row head pos d_head"]
    resid_pre: Float[Tensor, "row read d_model"]
    z: Float[Tensor, "row read head d_head"]


@torch.no_grad()
def outputs_at(model: HookedModel, rows: Rows) -> Float[Tensor, "layer row read head d_head"]:
    """z of every head at the positions that are read."""
    if rows.layout is not None and can_run(model):
        return torch.stack([at.z for at in _clean_run(model, rows, rows.layout)[0]])
    kept: list[Tensor] = []
    hooks: list[Hook] = [
        (f"blocks.{i}.attn.hook_z", lambda z, hook: kept.append(z[:, rows.read].clone()))
        for i in range(model.cfg.n_layers)
    ]
    final_residual(model, rows.tokens, hooks)
    return torch.stack(kept)


@torch.no_grad()
def changes(
    model: HookedModel,
    rows: Rows,
    outputs: Float[Tensor, "which layer row_or_1 place_or_1 head d_head"],
    of: Callable[[Float[Tensor, "row read d_model"]], Tensor],
    places: int | None = None,
) -> Float[Tensor, "which layer head *out"]:
    """How `of`, a tensor that follows from the final residual stream where it is read, changes when z of one head is
    put to `outputs` at the first `places` of the positions that are read (None: all). Of each head alone, `which` times
    over."""
    run = _packed if rows.layout is not None and can_run(model) else _hooked
    return run(model, rows, outputs, of, len(rows.read) if places is None else places)


def _clean_run(model: HookedTransformer, rows: Rows, layout: Layout) -> tuple[list[_At], Tensor]:
    """Each layer, and the final residual stream at the positions that are read."""
    left, x = [], embed(model, rows.tokens, layout)
    for i in range(model.cfg.n_layers):
        layer = Layer(model, i, layout)
        normed = layer.normed(x)
        k, v = layer.keys(normed), layer.values(normed)
        z = layer.attend(layer.queries(normed, None), k, v).transpose(1, 2)
        left.append(_At(k, v, x[:, rows.read], z[:, rows.read]))
        x = layer.resid_post(x, z)
    return left, x[:, rows.read]


def _packed(
    model: HookedModel, rows: Rows, outputs: Tensor, of: Callable[[Tensor], Tensor], places: int
) -> Float[Tensor, "which layer head *out"]:
    """Only the positions that are read run again, against the clean run's keys and values of all others."""
    assert rows.layout is not None
    assert isinstance(model, HookedTransformer)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    left, final = _clean_run(model, rows, rows.layout)
    clean = of(final)
    n, n_pos = rows.tokens.shape
    # Keys and values of every layer above are held for each row of each variant.
    size = max(1, ablation_bytes(model) // (16 * n * n_pos * n_heads * model.cfg.d_head))
    variants = [(which, head) for which in range(len(outputs)) for head in range(n_heads)]
    out = clean.new_zeros(len(outputs), n_layers, n_heads, *clean.shape)
    layers = [Layer(model, i, rows.layout) for i in range(n_layers)]
    for i, at in enumerate(left):
        for start in range(0, len(variants), size):
            some = variants[start : start + size]
            z = at.z.repeat(len(some), 1, 1, 1).unflatten(0, (len(some), n))
            for number, (which, head) in enumerate(some):
                z[number, :, :places, head] = outputs[which, i, :, :, head].to(z)
            x = layers[i].resid_post(at.resid_pre.repeat(len(some), 1, 1), z.flatten(0, 1))
            for layer, above in zip(layers[i + 1 :], left[i + 1 :], strict=True):
                normed = layer.normed(x)
                k, v = (held.repeat(len(some), 1, 1, 1) for held in (above.k, above.v))
                k[:, :, rows.read], v[:, :, rows.read] = layer.keys(normed, rows.read), layer.values(normed)
                mixed = layer.attend(layer.queries(normed, rows.read), k, v, rows.read)
                x = layer.resid_post(x, mixed.transpose(1, 2))
            for (which, head), final in zip(some, x.unflatten(0, (len(some), n)), strict=True):
                out[which, i, head] = of(final) - clean
    return out


def _hooked(
    model: HookedModel, rows: Rows, outputs: Tensor, of: Callable[[Tensor], Tensor], places: int
) -> Float[Tensor, "which layer head *out"]:
    """The same for any model: a hooked pass a head."""

    def answer(hooks: Sequence[Hook]) -> Tensor:
        return of(final_residual(model, rows.tokens, hooks)[:, rows.read])

    def put(z: Tensor, hook: Any, head: int, output: Tensor) -> Tensor:
        z = z.clone()
        z[:, rows.read[:places], head] = output.to(z)
        return z

    clean = answer([])
    out = clean.new_zeros(*outputs.shape[:2], outputs.shape[4], *clean.shape)
    for which, layer, head in torch.cartesian_prod(*map(torch.arange, out.shape[:3])).tolist():
        hook = partial(put, head=head, output=outputs[which, layer, :, :, head])
        out[which, layer, head] = answer([(f"blocks.{layer}.attn.hook_z", hook)]) - clean
    return out


@torch.no_grad()
def logprobs(
    model: HookedModel, residual: Float[Tensor, "row d_model"], tokens: Int[Tensor, "row token"]
) -> Float[Tensor, "row token"]:
    """Log-probabilities of these next tokens, in nats."""
    wanted = tokens.to(residual.device)
    size = max(1, logit_elements(model) // model.cfg.d_vocab)
    parts = []
    for some, right in zip(residual.split(size), wanted.split(size), strict=True):
        logits = logits_of(model, some)
        parts.append(logits.gather(1, right) - logits.logsumexp(dim=1, keepdim=True))
    return torch.cat(parts)
