"""Models with random weights, and how often their heads seem to do something."""

import warnings
from collections.abc import Sequence

import polars as pl
import pytest
import torch

from copyscope.interp.measures.heads import MEASURES, ON_REQUEST, score_heads
from copyscope.interp.models.lens import HAS_HOOKED, HookedTransformer, HookedTransformerConfig

P_VALUES = [name for name in MEASURES if name.endswith("_p")]
ON_REQUEST_P_VALUES = [name for name in ON_REQUEST if name.endswith("_p")]
LEVEL = 0.05


def untrained(
    seed: int, std: float = 0.05, *, n_layers: int = 4, n_heads: int = 4, d_head: int = 32, n_ctx: int = 256
) -> HookedTransformer:
    """A Llama-like model (rotary positions, RMSNorm, gated MLP) whose weights are all drawn from one normal."""
    if not HAS_HOOKED:
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    config = HookedTransformerConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_head=d_head,
        d_model=n_heads * d_head,
        d_mlp=2 * n_heads * d_head,
        d_vocab=400,
        n_ctx=n_ctx,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_adjacent_pairs=False,
        original_architecture="LlamaForCausalLM",
        device="cpu",
        seed=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "W_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def false_positives(
    n_models: int, std: float = 0.05, n_prompts: int = 16, names: Sequence[str] = P_VALUES, **shape: int
) -> dict[str, int]:
    """Of each p-value: in how many untrained models, each with weights and prompts of its own, any head is below 5 %.
    One in twenty should be, since p-values are corrected for the number of heads."""
    counts = dict.fromkeys(names, 0)
    for seed in range(n_models):
        model = untrained(seed, std, **shape)
        table = score_heads(model, names, seed, vocab=range(1, 400), bos_id=0, n_prompts=n_prompts)
        smallest = table.group_by("measure").agg(pl.col("value").min())
        for name, p in smallest.iter_rows():
            counts[name] += p < LEVEL
    return counts
