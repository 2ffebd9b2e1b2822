"""How TransformerLens' `HookedTransformer` is set up for the families it computes as transformers does, one function a
family. Models of all other families, and settings that a function declines, load as a `TransformerBridge`.
"""

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]
"""Arguments of a `HookedTransformerConfig`."""


def llama(c: Any) -> Fields | None:
    """Llama, SmolLM2, Amber, TinyLlama: RMSNorm, rotary positions, gated MLP, no biases."""
    rope = _rope(c)
    if rope is None or getattr(c, "attention_bias", False) or getattr(c, "mlp_bias", False):
        return None
    return _rms_and_rotary(c) | rope


def mistral(c: Any) -> Fields | None:
    """Llama's layers, each of which may see only the last `sliding_window` tokens."""
    fields = llama(c)
    window = getattr(c, "sliding_window", None)
    if fields is None or window is None or window >= c.max_position_embeddings:
        return fields
    return fields | {"use_local_attn": True, "window_size": window, "attn_types": ["local"] * c.num_hidden_layers}


def qwen2(c: Any) -> Fields | None:
    """Llama's layers with biases on queries, keys and values. TransformerLens' converter wants grouped heads named."""
    rope = _rope(c)
    if rope is None or getattr(c, "use_sliding_window", False):
        return None
    return _rms_and_rotary(c) | rope | {"n_key_value_heads": c.num_key_value_heads}


def qwen3(c: Any) -> Fields | None:
    """Llama's layers with a norm on each head's queries and keys."""
    rope = _rope(c)
    if rope is None or getattr(c, "use_sliding_window", False) or getattr(c, "attention_bias", False):
        return None
    return _rms_and_rotary(c) | rope | {"use_qk_norm": True}


def olmo(c: Any) -> Fields | None:
    """OLMo 1: LayerNorm without weights, rotary positions, gated MLP."""
    rope = _rope(c)
    grouped = c.num_key_value_heads != c.num_attention_heads
    if rope is None or c.attention_bias or c.clip_qkv or grouped:
        return None
    return (
        _sizes(c)
        | {
            "d_mlp": c.intermediate_size,
            "act_fn": c.hidden_act,
            "eps": 1e-5,
            "normalization_type": "LN",
            "gated_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": c.hidden_size // c.num_attention_heads,
            "rotary_adjacent_pairs": False,
        }
        | rope
    )


def gpt2(c: Any) -> Fields | None:
    """GPT-2: LayerNorm, learned positions, biases everywhere."""
    if getattr(c, "add_cross_attention", False):
        return None
    return _sizes(c) | {
        "d_mlp": c.n_inner or 4 * c.hidden_size,
        "act_fn": c.activation_function,
        "eps": c.layer_norm_epsilon,
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "use_attn_scale": c.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
    }


def neox(c: Any) -> Fields | None:
    """GPT-NeoX and Pythia: LayerNorm, rotary positions on a part of each head, attention beside the MLP."""
    rope = _rope(c)
    if rope is None:
        return None
    parameters = dict(getattr(c, "rope_parameters", None) or {})
    share = parameters.get("partial_rotary_factor", getattr(c, "rotary_pct", 0.25))
    return (
        _sizes(c)
        | {
            "d_mlp": c.intermediate_size,
            "act_fn": c.hidden_act,
            "eps": c.layer_norm_eps,
            "normalization_type": "LN",
            "positional_embedding_type": "rotary",
            "rotary_dim": int(share * (c.hidden_size // c.num_attention_heads)),
            "rotary_adjacent_pairs": False,
            "parallel_attn_mlp": c.use_parallel_residual,
            "default_prepend_bos": False,
        }
        | rope
    )


FAMILIES: dict[str, Callable[[Any], Fields | None]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "OlmoForCausalLM": olmo,
    "GPT2LMHeadModel": gpt2,
    "GPTNeoXForCausalLM": neox,
}
"""By transformers' class; each takes transformers' config, and returns None for settings of it that
`HookedTransformer` has not got."""


def _sizes(c: Any) -> Fields:
    return {
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "d_model": c.hidden_size,
        "d_head": c.hidden_size // c.num_attention_heads,
        "d_vocab": c.vocab_size,
        "n_ctx": c.max_position_embeddings,
    }


def _rms_and_rotary(c: Any) -> Fields:
    d_head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    grouped = c.num_key_value_heads != c.num_attention_heads
    return _sizes(c) | {
        "d_head": d_head,
        "d_mlp": c.intermediate_size,
        # TransformerLens reads any number here as grouped-query attention, even one pair a head.
        "n_key_value_heads": c.num_key_value_heads if grouped else None,
        "act_fn": c.hidden_act,
        "eps": c.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": d_head,
        "rotary_adjacent_pairs": False,
    }


def _rope(c: Any) -> Fields | None:
    """The rotary fields; transformers 5 keeps them in `rope_parameters`. None for a scaling that is not there."""
    rope = dict(getattr(c, "rope_parameters", None) or {})
    fields: Fields = {"rotary_base": rope.get("rope_theta") or getattr(c, "rope_theta", 10000.0)}
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return fields | {"rotary_scaling_factor": float(rope["factor"])}
    if kind == "llama3":
        return fields | {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    return fields if kind == "default" else None
