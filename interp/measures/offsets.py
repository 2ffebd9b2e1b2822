"""How far back a head looks, whatever the tokens are: the previous-token score among the other short offsets."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_OFFSET = 8
"""Offsets that are compared: 1 to this, or to a quarter of the prompt where that is less."""


def longest_offset(n_pos: int) -> int:
    """How many offsets are compared on prompts of `n_pos` tokens; at least 1."""
    return max(1, min(MAX_OFFSET, n_pos // 4))


def offset_queries(n_pos: int) -> Int[Tensor, " query"]:
    """The positions that have a key at each of these offsets beside position 0, where attention goes when a head has
    nothing to do."""
    return torch.arange(n_pos)[longest_offset(n_pos) + 1 :]


def offset_sums(
    pattern: Float[Tensor, "batch head query key"], longest: int, first_query: int = 0
) -> Float[Tensor, "batch head offset"]:
    """Attention to the key 1, 2, … `longest` back, summed over `offset_queries`; entry d - 1 is offset d.

    `pattern` may be a block: its queries begin at position `first_query`, its keys at position 0.
    """
    skipped = max(0, longest + 1 - first_query)
    n_batch, n_heads, n_queries, _ = pattern.shape
    if skipped >= n_queries:
        return pattern.new_zeros(n_batch, n_heads, longest)
    # A view whose rows are the `longest` keys before each query: one query further is one key further.
    batch, head, query, key = pattern.stride()
    start = pattern.storage_offset() + skipped * query + (first_query + skipped - longest) * key
    window = pattern.as_strided(
        (n_batch, n_heads, n_queries - skipped, longest), (batch, head, query + key, key), start
    )
    return window.sum(dim=2).flip(-1)


def attention_by_offset(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "head offset"]:
    """Mean attention of whole patterns at offsets 1 to 8 (or a quarter of the prompt), over `offset_queries`. In [0,
    1]; 0 where a prompt is too short for any."""
    n_pos = pattern.shape[2]
    sums = offset_sums(pattern.float(), longest_offset(n_pos)).mean(dim=0)
    return sums / max(1, len(offset_queries(n_pos)))


def best_offset(pattern: Float[Tensor, "batch head query key"]) -> Int[Tensor, " head"]:
    """How many positions back a head looks most, of 1 to 8 (or a quarter of the prompt).

    By itself it says nothing about how much: every head has one. Read it beside `best_offset_attention`. A head that
    looks at itself, at the first position or further back is not seen here.
    """
    return attention_by_offset(pattern).argmax(dim=-1) + 1


def best_offset_attention(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, " head"]:
    """Mean attention at the `best_offset`. In [0, 1]; near 1 for a head that always looks the same distance back,
    little above its neighbours for a head that looks at all that is near."""
    return attention_by_offset(pattern).amax(dim=-1)
