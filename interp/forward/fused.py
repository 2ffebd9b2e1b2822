"""Attention in one fused kernel, for runs of a `HookedTransformer` that do not read the attention pattern.
Hooks and gradients reach everything else.

TransformerLens writes out scores and patterns so that they can be hooked, which on a CPU costs more than the rest of a
small model. Queries, keys, values and z are still hooked here; only what lies between them is skipped. Without any
hooks, `interp.forward.layers` is faster still.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from copyscope.interp.models.families import FAMILIES
from copyscope.interp.models.lens import HookedTransformer


def can_fuse(model: HookedTransformer) -> bool:
    """Whether attention is plain causal softmax attention, which is all that the fused version computes."""
    c = model.cfg
    return (
        c.original_architecture in (None, *FAMILIES)
        and c.positional_embedding_type in ("rotary", "standard")
        and not (c.rotary_adjacent_pairs or c.use_normalization_before_and_after)
        and c.attention_dir == "causal"
        and c.attn_scores_soft_cap <= 0
        and c.clip_qkv is None
        and c.dtype in (torch.float32, torch.bfloat16)
        and c.n_devices == 1
        and not (c.use_attn_result or c.use_split_qkv_input or c.use_attn_in or c.use_hook_mlp_in)
        and not (c.use_local_attn or c.use_qk_norm or c.use_logn_attn or c.use_attention_sinks or c.load_in_4bit)
        and not (c.use_dynamic_ntk_rope or c.ungroup_grouped_query_attention)
    )


@contextmanager
def fused_attention(model: HookedTransformer, on: bool = True) -> Iterator[None]:
    """Replaces every layer's attention by the fused version inside its body; restores it whatever happens there."""
    layers: list[Any] = [model.blocks[i].attn for i in range(model.cfg.n_layers)] if on else []
    try:
        for attention in layers:
            attention.forward = _forward_of(attention)
        yield
    finally:
        for attention in layers:
            attention.__dict__.pop("forward", None)


def _forward_of(attention: Any) -> Callable[..., Tensor]:
    def forward(query_input: Tensor, key_input: Tensor, value_input: Tensor, **_: Any) -> Tensor:
        q, k, v = attention.calculate_qkv_matrices(query_input, key_input, value_input)
        if attention.cfg.positional_embedding_type == "rotary":
            q, k = attention.apply_rotary(q), attention.apply_rotary(k)
        groups = q.shape[2] // k.shape[2]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / float(attention.attn_scale))
        z = attention.hook_z(z.transpose(1, 2))  # (batch, query, head, d_head)
        return z.flatten(2) @ attention.W_O.flatten(0, 1) + attention.b_O

    return forward
