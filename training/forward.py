"""The training loss of a `LlamaForCausalLM`, from its own weights but with fewer and larger operations.

transformers' forward is the reference (a test holds the two together). Here query, key and value are one product, gate
and up another, and attention goes through blocks of queries that read only the keys before them: on a CPU that takes
about half the time of the fused kernel, which does not use bf16 products.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

QUERY_BLOCK = 128
"""Queries a block: smaller ones waste the products, larger ones compute more of the masked triangle."""


class Rotary:
    """Cosines and sines of the rotary embedding, [pos, d_head] each, in the precision of the run."""

    def __init__(self, model: LlamaForCausalLM, length: int, dtype: torch.dtype):
        config: Any = model.config
        d_head = config.hidden_size // config.num_attention_heads
        device = model.device
        theta = config.rope_parameters["rope_theta"]
        frequencies = theta ** (-torch.arange(0, d_head, 2, device=device).float() / d_head)
        angles = torch.outer(torch.arange(length, device=device).float(), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos[: x.shape[-2]] + turned * self.sin[: x.shape[-2]]


def causal_attention(
    q: Float[Tensor, "batch head pos d_head"],
    k: Float[Tensor, "batch head pos d_head"],
    v: Float[Tensor, "batch head pos d_head"],
    dropout: float = 0.0,
) -> Float[Tensor, "batch head pos d_head"]:
    """Scaled dot-product attention to this and earlier positions, query block by query block."""
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    q = q * q.shape[-1] ** -0.5
    future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=q.dtype).triu(1)
    blocks = []
    for start in range(0, q.shape[2], QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, q.shape[2])
        scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
        scores[..., start:] += future[: end - start, : end - start]
        pattern = F.dropout(scores.softmax(dim=-1), dropout) if dropout else scores.softmax(dim=-1)
        blocks.append(pattern @ v[:, :, :end])
    return torch.cat(blocks, dim=2)


def final_residual(
    model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"], rotary: Rotary, dropout: float = 0.0
) -> Float[Tensor, "batch pos d_model"]:
    """The normed residual stream after the last block, in the precision of `rotary`."""
    body: Any = model.model  # transformers' modules are untyped to a checker
    config: Any = model.config
    batch, pos = tokens.shape
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    d_head = config.hidden_size // heads
    dtype = rotary.cos.dtype

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (config.hidden_size,), weight.to(dtype), config.rms_norm_eps)

    def fused(x: Tensor, *weights: Tensor) -> Tensor:
        return F.linear(x, torch.cat(weights).to(dtype))

    x = F.embedding(tokens, body.embed_tokens.weight).to(dtype)
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = fused(
            norm(x, layer.input_layernorm.weight),
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
        )
        qkv = qkv.view(batch, pos, heads + 2 * kv_heads, d_head).transpose(1, 2)  # (batch, head, pos, d_head)
        qk = rotary(qkv[:, : heads + kv_heads])
        k, v = qk[:, heads:], qkv[:, heads + kv_heads :]
        if kv_heads != heads:
            k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
        mixed = causal_attention(qk[:, :heads], k, v, dropout)
        x = x + fused(mixed.transpose(1, 2).reshape(batch, pos, -1), attention.o_proj.weight)
        gate_up = fused(norm(x, layer.post_attention_layernorm.weight), mlp.gate_proj.weight, mlp.up_proj.weight)
        gate, up = gate_up.chunk(2, dim=-1)
        x = x + fused(F.silu(gate) * up, mlp.down_proj.weight)
    return norm(x, body.norm.weight)


def next_token_loss(
    model: LlamaForCausalLM, batch: Int[Tensor, "batch pos_plus_1"], rotary: Rotary, dropout: float = 0.0
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of every next token; the sum over the vocabulary is in fp32 whatever the precision."""
    residual = final_residual(model, batch[:, :-1], rotary, dropout)
    logits = F.linear(residual, model.lm_head.weight.to(residual.dtype)).float()
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def native_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices natively (AMX, AVX512-BF16 or a GPU that does)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
