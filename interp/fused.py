"""Attention in one fused kernel, for runs of a `HookedTransformer` in which nobody reads the attention pattern.

TransformerLens writes out scores and patterns so that they can be hooked, which on a CPU costs more than the rest of a
small model. Queries, keys, values and z are still hooked here; only what lies between them is skipped.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens import HookedTransformer


def can_fuse(model: HookedTransformer) -> bool:
    """Whether attention is plain causal softmax attention, which is all that the fused version computes."""
    c = model.cfg
    return (
        c.original_architecture
        in (None, "LlamaForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM", "OlmoForCausalLM")
        and c.positional_embedding_type in ("rotary", "standard")
        and c.attention_dir == "causal"
        and c.attn_scores_soft_cap <= 0
        and c.clip_qkv is None
        and c.dtype == torch.float32
        and c.n_devices == 1
        and not (c.use_attn_result or c.use_split_qkv_input or c.use_attn_in or c.use_hook_mlp_in)
        and not (c.use_local_attn or c.use_qk_norm or c.use_logn_attn or c.use_attention_sinks or c.load_in_4bit)
        and not (c.use_dynamic_ntk_rope or c.ungroup_grouped_query_attention)
    )


Observer = Callable[[int, Tensor, Tensor], None]
"""Called with the first query of a block, its pattern (batch, head, query, key), whose keys end at the block's last
query, and all values (batch, head, pos, d_head)."""


@contextmanager
def fused_attention(
    model: HookedTransformer,
    on: bool = True,
    observers: Mapping[int, Observer] | None = None,
    queries_at_once: int = 128,
) -> Iterator[None]:
    """Replaces every layer's attention by the fused version inside its body; restores it whatever happens there.

    Layers with an observer compute their pattern in blocks of `queries_at_once`, each of which the observer sees.
    """
    layers: list[Any] = [model.blocks[i].attn for i in range(model.cfg.n_layers)] if on else []
    try:
        for layer, attention in enumerate(layers):
            attention.forward = _forward_of(attention, (observers or {}).get(layer), queries_at_once)
        yield
    finally:
        for attention in layers:
            attention.__dict__.pop("forward", None)


def _forward_of(attention: Any, observe: Observer | None, queries_at_once: int) -> Callable[..., Tensor]:
    def forward(
        query_input: Tensor, key_input: Tensor, value_input: Tensor, past_kv_cache_entry: Any = None, **_: Any
    ) -> Tensor:
        q, k, v = attention.calculate_qkv_matrices(query_input, key_input, value_input)
        offset = 0
        if past_kv_cache_entry is not None:
            offset = past_kv_cache_entry.past_keys.shape[1]
            k, v = past_kv_cache_entry.append(k, v)
        if attention.cfg.positional_embedding_type == "rotary":
            q, k = attention.apply_rotary(q, offset), attention.apply_rotary(k, 0)
        groups = q.shape[2] // k.shape[2]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scale = 1 / float(attention.attn_scale)
        if observe is None:
            seen = None
            if offset:
                seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(offset)
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, scale=scale)
        else:
            z = _in_blocks(q * scale, k, v, observe, queries_at_once)
        z = attention.hook_z(z.transpose(1, 2))  # (batch, query, head, d_head)
        return z.flatten(2) @ attention.W_O.flatten(0, 1) + attention.b_O

    return forward


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, observe: Observer, queries_at_once: int) -> Tensor:
    """Attention of whole sequences, (batch, head, pos, d_head) each."""
    z = torch.empty_like(q)
    for start in range(0, q.shape[2], queries_at_once):
        end = min(start + queries_at_once, q.shape[2])
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(2, 3)
        future = torch.full((end - start, end - start), float("-inf"), device=q.device).triu_(1)
        scores[..., start:] += future
        pattern = scores.softmax(dim=-1)
        observe(start, pattern, v)
        z[:, :, start:end] = pattern @ v[:, :, :end]
    return z
