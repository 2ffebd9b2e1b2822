"""Attribution: what removing each head would do, estimated for all of them from one forward and one backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.donors import batches_of_groups, donor_groups, places_of_donors
from copyscope.interp.ablation.parts import METHODS
from copyscope.interp.forward.fused import fused_attention
from copyscope.interp.forward.layers import can_run
from copyscope.interp.forward.memory import for_sums, pattern_elements, within_memory
from copyscope.interp.forward.residual import Hook, differentiable_logits, to_device
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer


@within_memory
def attribute_heads(
    model: HookedModel,
    repeated: Int[Tensor, "prompt pos"],
    methods: Sequence[str] = ("zero",),
    *,
    seed: int = 0,
) -> pl.DataFrame:
    """First-order estimate of each head's effect on the copying loss: a table of layer, head, method, measure, value.

    The gradient of the loss (second half of `repeated`, nats) with respect to a head's output z, times the change of z
    that the method would make, summed (2310.10348 calls it attribution patching; the idea is the first term of a Taylor
    series). `value` estimates ablated - clean. For `frozen_patterns` no gradient flows through attention patterns.
    Good for small changes and for ranking; it fails where the loss is curved on the way, above all for heads of early
    layers, and where a pattern is saturated, since the gradient through a softmax at 1 is 0. So compare it with the
    exact effect (`agreement`) before believing it.
    """
    methods = check_names(methods, METHODS, "ablation method")
    check_tokens(model, repeated)
    n, pos = repeated.shape
    c = model.cfg
    size = max(2, pattern_elements(model) // (c.n_heads * pos * pos))
    where = for_sums(device_of(model))
    totals = {method: torch.zeros(c.n_layers, c.n_heads, **where) for method in methods}
    for frozen in sorted({method == "frozen_patterns" for method in methods}):
        z_sum: list[Any] = [0.0] * c.n_layers
        g_sum: list[Any] = [0.0] * c.n_layers
        own = torch.zeros(c.n_layers, c.n_heads, **where)
        for rows in batches_of_groups(donor_groups(n, seed), size):
            z, gradient = _of_copying_loss(model, repeated[rows], n, frozen)
            donor = places_of_donors(rows, n, seed) if "resample" in methods and not frozen else None
            for i in range(c.n_layers):
                own[i] += (z[i] * gradient[i]).sum(dim=(0, 1, 3)).to(own)
                z_sum[i], g_sum[i] = z_sum[i] + z[i].sum(dim=0), g_sum[i] + gradient[i].sum(dim=0)
                if donor is not None:
                    totals["resample"][i] += (z[i][donor] * gradient[i]).sum(dim=(0, 1, 3)).to(own)
        for method in methods:
            if (method == "frozen_patterns") != frozen:
                continue
            totals[method] -= own
            if method.startswith("mean"):
                for i in range(c.n_layers):
                    mean = z_sum[i] / n if method == "mean" else z_sum[i].mean(dim=0) / n
                    totals[method][i] += (mean * g_sum[i]).sum(dim=(0, 2)).to(own)
    totals = {method: total.cpu() for method, total in totals.items()}
    rows_out = [
        (layer, head, method, "copying_loss", totals[method][layer, head].item())
        for method in sorted(methods, key=METHODS.index)
        for layer in range(c.n_layers)
        for head in range(c.n_heads)
    ]
    schema = {"layer": pl.Int64, "head": pl.Int64, "method": pl.String, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows_out, schema=schema, orient="row")


def agreement(estimate: pl.DataFrame, exact: pl.DataFrame) -> pl.DataFrame:
    """How well `attribute_heads` foretells `sweep_heads`, over the heads in both: method, heads, pearson, spearman.

    A few strong heads can make a high Pearson correlation alone; Spearman's is of ranks.
    """
    keys = ["layer", "head", "method", "measure"]
    both = estimate.join(exact.select(*keys, exact=pl.col("value")), on=keys)
    return both.group_by("method", maintain_order=True).agg(
        pl.len().alias("heads"),
        pl.corr("value", "exact").alias("pearson"),
        pl.corr("value", "exact", method="spearman").alias("spearman"),
    )


def _of_copying_loss(
    model: HookedModel, tokens: Tensor, n_prompts: int, frozen: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """z of every layer, and the gradient of the batch's share of the mean loss with respect to it."""
    half = tokens.shape[1] // 2
    right = to_device(model, tokens)[:, -half:].flatten()

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1).float(), right, reduction="sum") / (half * n_prompts)

    return gradients_of_outputs(model, tokens, slice(-half - 1, -1), loss, frozen)


def gradients_of_outputs(
    model: HookedModel,
    tokens: Int[Tensor, "row pos"],
    read: slice,
    of: Callable[[Tensor], Tensor],
    frozen: bool = False,
) -> tuple[list[Float[Tensor, "row pos head d_head"]], list[Float[Tensor, "row pos head d_head"]]]:
    """z of every layer, and the gradient with respect to it of a number that follows from the logits at the positions
    `read`; `frozen`: not through attention patterns."""
    outputs: list[Tensor] = []

    def watch(z: Tensor, hook: Any) -> Tensor:
        # Weights are constants, so the first layer's z depends on nothing that a gradient is kept for.
        outputs.append(z if z.requires_grad else z.detach().requires_grad_())
        return outputs[-1]

    n_layers, tokens = model.cfg.n_layers, to_device(model, tokens)
    hooks: list[Hook] = [(f"blocks.{i}.attn.hook_z", watch) for i in range(n_layers)]
    if frozen:
        hooks += [(f"blocks.{i}.attn.hook_pattern", lambda p, hook: p.detach()) for i in range(n_layers)]
    fuse = can_run(model) and not frozen
    with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
        if isinstance(model, HookedTransformer):
            with fused_attention(model, fuse):
                residual = model(tokens, stop_at_layer=n_layers)[:, read]
            logits = differentiable_logits(model, residual)
        else:
            logits = model(tokens)[:, read]
        gradients = torch.autograd.grad(of(logits), outputs)
    return [z.detach() for z in outputs], list(gradients)
