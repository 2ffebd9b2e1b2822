"""Models with random weights, and how often their heads seem to do something."""

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence

import polars as pl
import pytest
import torch

from copyscope.interp.ablation.entity_copying import causal_copying, concept_copying_prompts, token_copying_prompts
from copyscope.interp.ablation.function_vectors import function_vector, labels_prompts
from copyscope.interp.measures.behavior import copying_test
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.measures.heads import MEASURES, ON_REQUEST, score_heads
from copyscope.interp.measures.retrieval import retrieval_score
from copyscope.interp.measures.successors import LISTS, successor_score
from copyscope.interp.models.lens import HAS_HOOKED, HookedTransformer, HookedTransformerConfig
from copyscope.interp.tasks.questions import Source

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


def _source(seed: int, n_prompts: int) -> Source:
    """Names are two to four tokens each, the same whenever they are asked for."""

    def encode(text: str) -> list[int]:
        generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        length = int(torch.randint(2, 5, (), generator=generator))
        return (1 + torch.randperm(399, generator=generator)[:length]).tolist()

    return Source(vocab=torch.arange(1, 400), n_ctx=256, bos_id=0, n_prompts=n_prompts, seed=seed, encode=encode)


def _lists(seed: int) -> list[torch.Tensor]:
    """As many lists as there are, as long as they are, of random tokens."""
    order = torch.randperm(399, generator=torch.Generator().manual_seed(seed)) + 1
    lengths = [len(text.split()) for text in LISTS]
    return [*order[: sum(lengths)].split(lengths)]


OF_PASSES: Mapping[str, Callable[[HookedTransformer, int], HeadScore]] = {
    "retrieval_score": lambda m, seed: retrieval_score(m, copying_test(range(1, 400), 256, 50, seed, 0), seed)[1],
    "successor_score": lambda m, seed: successor_score(m, _lists(seed), seed),
    "token_copying": lambda m, seed: causal_copying(m, token_copying_prompts(_source(seed, 64))),
    "concept_copying": lambda m, seed: causal_copying(m, concept_copying_prompts(_source(seed, 64))),
    "function_vector": lambda m, seed: function_vector(m, *labels_prompts(_source(seed, 128))).exact,
}
"""Measures with prompts of their own, as many as `score` takes (of the copying test, a tenth)."""


def false_positives_of_passes(n_models: int, std: float, names: Sequence[str]) -> dict[str, int]:
    """As `false_positives`, of `OF_PASSES`."""
    counts = dict.fromkeys(names, 0)
    for seed in range(n_models):
        model = untrained(seed, std)
        for name in names:
            counts[name] += bool((OF_PASSES[name](model, seed).p < LEVEL).any())
    return counts
