"""Runs a model only as far as a measure reads: residual streams, logits and losses at chosen rows.

Nothing here holds an activation cache over all layers; what a caller wants to see, it takes with hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layout, can_run, normed, run_layers, slices
from copyscope.interp.forward.memory import logit_elements, pattern_elements, within_memory
from copyscope.interp.models.bridge import finished
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer

Hook = tuple[str | Callable[..., Any], Callable[..., Any]]


def batches(model: HookedModel, n_rows: int, n_pos: int) -> Iterator[slice]:
    """Slices of `n_rows` sequences of `n_pos` tokens, each small enough for memory with attention patterns written out;
    at least one row each."""
    size = max(1, pattern_elements(model) // (model.cfg.n_heads * n_pos * n_pos))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def to_device(model: HookedModel, tokens: Tensor) -> Tensor:
    """`tokens` on the model's device."""
    return tokens.to(device_of(model))


@torch.no_grad()
def final_residual(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], hooks: Sequence[Hook] = ()
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last block, with `hooks` on during the run; logits only where unavoidable."""
    if not hooks and can_run(model):
        return run_layers(model, tokens, Layout.of(model, tokens.shape[1]))
    tokens = to_device(model, tokens)
    if isinstance(model, HookedTransformer):
        with model.hooks(fwd_hooks=list(hooks)):
            return model(tokens, stop_at_layer=model.cfg.n_layers)
    # A bridge runs transformers' own forward, which only an exception ends after the last block: the unembedding of
    # every position would take more memory than all the rest.
    caught: list[Tensor] = []

    def take(residual: Tensor, hook: Any) -> None:
        caught.append(residual)
        raise LastBlockError

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with model.hooks(fwd_hooks=[*hooks, (last, take)]), suppress(LastBlockError):
        model(tokens)
    return caught[-1]


class LastBlockError(Exception):
    """Raised once the last block's residual stream has been taken."""


@torch.no_grad()
def logits_of(model: HookedModel, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
    """The model's logits for any rows of the final residual stream: final norm, unembedding, and scale and soft cap
    where a family has them. In fp32 also for a bf16 model, whose best logits would often be equal."""
    if not can_run(model):
        return differentiable_logits(model, residual)
    rows = residual.reshape(1, -1, residual.shape[-1])
    rows = rows if model.cfg.normalization_type is None else normed(model.ln_final, rows)
    logits = _product_in_fp32(rows, model.W_U)
    biased = logits.device.type != "cpu" or bool(model.b_U.any())
    logits = finished(model, logits + model.b_U if biased else logits)
    return logits.reshape(*residual.shape[:-1], -1)


def ranks_of(logits: Float[Tensor, "*rows d_vocab"], right: Int[Tensor, " *rows"]) -> Float[Tensor, " *rows"]:
    """Place of the right token among all by its logit, from 1; the middle of those that are equally likely."""
    wanted = logits.gather(-1, right[..., None])
    return ((logits > wanted).sum(dim=-1) + (logits >= wanted).sum(dim=-1) + 1) / 2


def _product_in_fp32(rows: Float[Tensor, "one row d_model"], W: Float[Tensor, "d_model d_vocab"]) -> Tensor:
    if rows.device.type == "cuda" and rows.dtype == torch.bfloat16 and torch.cuda.is_available():
        return torch.mm(rows[0], W, out_dtype=torch.float32)[None]  # at the speed of bf16
    return rows.float() @ W.float()


def differentiable_logits(
    model: HookedModel, residual: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows d_vocab"]:
    """`logits_of` through the model's own modules, hooks and gradients included."""
    rows = residual.reshape(1, -1, residual.shape[-1])
    logits = model.unembed(rows if model.cfg.normalization_type is None else model.ln_final(rows))
    return finished(model, logits).reshape(*residual.shape[:-1], -1)


@torch.no_grad()
def losses_of(
    model: HookedModel, residual: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Next-token loss in nats; entry p is the loss of predicting token p + 1."""
    rows = residual[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten().to(rows.device).long()
    size = max(1, logit_elements(model) // model.cfg.d_vocab)
    losses = [
        torch.nn.functional.cross_entropy(
            logits_of(model, rows[i : i + size]).float(), targets[i : i + size], reduction="none"
        )
        for i in range(0, len(rows), size)
    ]
    return torch.cat(losses).view(tokens.shape[0], -1)


@within_memory
@torch.no_grad()
def token_losses(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos-1"]:
    """Next-token loss of every token but the first, in nats, batch by batch; on the CPU."""
    parts = []
    for rows in slices(model, *tokens.shape) if can_run(model) else batches(model, *tokens.shape):
        chunk = to_device(model, tokens[rows])
        parts.append(losses_of(model, final_residual(model, chunk), chunk))
    return torch.cat(parts).cpu()
