"""Runs a model only as far as a measure reads: residual streams, logits at chosen rows, contexts shared by many
queries.

Nothing here holds an activation cache over all layers; what a caller wants to see, it takes with hooks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from interp.fused import can_fuse, fused_attention
from interp.models import HookedModel, key_value_cache, repeat_cache

Hook = tuple[str | Callable[..., Any], Callable[..., Any]]

PATTERN_ELEMENTS = 2**21
"""Elements of one layer's attention pattern in a batch: 8 MB in fp32, which stays in the caches of a laptop CPU."""
LOGIT_ELEMENTS = 2**24
"""Elements of logits held at once: 64 MB in fp32."""


def batches(model: HookedModel, n_rows: int, n_pos: int) -> Iterator[slice]:
    """Slices of `n_rows` sequences of `n_pos` tokens, each small enough for memory; at least one row each."""
    size = max(1, PATTERN_ELEMENTS // (model.cfg.n_heads * n_pos * n_pos))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


def to_device(model: HookedModel, tokens: Tensor) -> Tensor:
    """`tokens` on the model's device."""
    return tokens.to(torch.device(model.cfg.device or "cpu"))


def is_hooked(model: HookedModel) -> bool:
    """Whether somebody's hooks are on the model, so that its activations may depend on batch and position."""
    return any(point.fwd_hooks for point in model.hook_dict.values()) or bool(model._forward_pre_hooks)


@torch.no_grad()
def final_residual(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], hooks: Sequence[Hook] = ()
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream after the last block, with `hooks` on during the run; logits only where unavoidable."""
    tokens = to_device(model, tokens)
    if isinstance(model, HookedTransformer):
        fuse = not hooks and not is_hooked(model) and can_fuse(model)
        with fused_attention(model, fuse), model.hooks(fwd_hooks=list(hooks)):
            return model(tokens, stop_at_layer=model.cfg.n_layers)
    # A bridge runs transformers' own forward, which cannot be stopped after the last block.
    caught: list[Tensor] = []
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with model.hooks(fwd_hooks=[*hooks, (last, lambda x, hook: caught.append(x))]):
        model(tokens)
    return caught[-1]


@torch.no_grad()
def logits_of(model: HookedModel, residual: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
    """Final norm and unembedding of any rows of the final residual stream."""
    rows = residual.reshape(1, -1, residual.shape[-1])
    if model.cfg.normalization_type is not None:
        rows = model.ln_final(rows)
    return model.unembed(rows).reshape(*residual.shape[:-1], -1)


@torch.no_grad()
def losses_of(
    model: HookedModel, residual: Float[Tensor, "batch pos d_model"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """Next-token loss in nats; entry p is the loss of predicting token p + 1."""
    rows = residual[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten().to(rows.device)
    size = max(1, LOGIT_ELEMENTS // model.cfg.d_vocab)
    losses = [
        torch.nn.functional.cross_entropy(
            logits_of(model, rows[i : i + size]).float(), targets[i : i + size], reduction="none"
        )
        for i in range(0, len(rows), size)
    ]
    return torch.cat(losses).view(tokens.shape[0], -1)


@torch.no_grad()
def token_losses(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos-1"]:
    """Next-token loss of every token but the first, in nats, batch by batch; on the CPU."""
    parts = []
    for rows in batches(model, *tokens.shape):
        chunk = to_device(model, tokens[rows])
        parts.append(losses_of(model, final_residual(model, chunk), chunk).cpu())
    return torch.cat(parts)


class Stage(NamedTuple):
    """A block of positions that runs at once. Queries that share a context run as a second stage on its keys and
    values."""

    tokens: Int[Tensor, "row pos"]
    parent: Int[Tensor, "row"] | None
    """Which row of the stage before each row goes on from; None for the first stage."""
    offset: int
    """Position of the first token."""


class _ReadEnoughError(Exception):
    """Raised in a hook once the keys and values that the next stage needs are stored."""


def _stop(scores: Tensor, hook: Any) -> None:
    raise _ReadEnoughError


@torch.no_grad()
def run_stages(
    model: HookedTransformer,
    stages: Sequence[Stage],
    hooks: Sequence[Sequence[Hook]] | None = None,
    start: int = 0,
    residuals: Sequence[Tensor] | None = None,
    whole: bool = False,
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream after the last block at the last stage's positions.

    Args:
        hooks: hooks to be on during each stage.
        start: the first layer to run. Above 0, `residuals` gives each stage's residual stream before that layer;
            what the layers before it do must not differ from the run that `residuals` came from.
        whole: run the last layer to its end in every stage, so that hooks see all of it. Otherwise earlier stages
            leave the last layer once its keys and values are stored: nothing reads the rest.
    """
    n_layers = model.cfg.n_layers
    cache = key_value_cache(model, stages[0].tokens.shape[0]) if len(stages) > 1 else None
    out = torch.empty(0)
    for i, stage in enumerate(stages):
        if cache is not None and stage.parent is not None:
            cache = repeat_cache(cache, stage.parent)
        embedded = model.hook_embed(model.embed(stage.tokens))
        residual, shortformer = model.get_residual(embedded, stage.offset, tokens=stage.tokens)
        if residuals is not None:
            residual = residuals[i]
        active = list(hooks[i]) if hooks is not None else []
        fuse = not any("pattern" in str(name) or "scores" in str(name) for name, _ in active) and can_fuse(model)
        if not whole and i + 1 < len(stages):
            # The fused version leaves at z, the written-out one already at the scores; keys are stored before both.
            point = "hook_z" if fuse else "hook_attn_scores"
            active.append((f"blocks.{n_layers - 1}.attn.{point}", _stop))
        with fused_attention(model, fuse), model.hooks(fwd_hooks=active):
            try:
                out = model(
                    residual,
                    start_at_layer=start,
                    stop_at_layer=n_layers,
                    past_kv_cache=cache,
                    shortformer_pos_embed=shortformer,
                )
            except _ReadEnoughError:
                continue
    return out
