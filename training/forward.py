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


class NextTokenLoss(torch.nn.Module):
    """Mean cross-entropy in nats of every next token. Holds the model, so that data parallelism can wrap it.

    Products are in `dtype`; the sum over the vocabulary is in fp32 whatever it is. Dropout, on attention probabilities
    and on what attention and MLP write into the residual stream, is active while `training`.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        n_ctx: int,
        dtype: torch.dtype,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
    ):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.attention_dropout, self.residual_dropout = attention_dropout, residual_dropout
        config: Any = model.config  # transformers' modules are untyped to a checker
        self.heads, self.kv_heads, self.d_head = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, self.d_head, 2).float() / self.d_head)
        angles = torch.outer(torch.arange(n_ctx).float(), frequencies).repeat(1, 2)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)

    def forward(self, sequences: Int[Tensor, "batch pos_plus_1"]) -> Float[Tensor, ""]:
        residual = self.final_residual(sequences[:, :-1])
        logits = F.linear(residual, self.model.lm_head.weight.to(self.dtype)).float()
        return F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())

    def final_residual(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The normed residual stream after the last block."""
        body: Any = self.model.model
        batch, pos = tokens.shape
        heads, kv_heads = self.heads, self.kv_heads
        x = F.embedding(tokens, body.embed_tokens.weight).to(self.dtype)
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
            qkv = self._product(self._norm(x, layer.input_layernorm.weight), *projections)
            qkv = qkv.view(batch, pos, heads + 2 * kv_heads, self.d_head).transpose(1, 2)  # (batch, head, pos, d_head)
            qk = self._rotate(qkv[:, : heads + kv_heads])
            k, v = qk[:, heads:], qkv[:, heads + kv_heads :]
            if kv_heads != heads:
                k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
            mixed = causal_attention(qk[:, :heads], k, v, self.attention_dropout if self.training else 0.0)
            x = x + self._drop(self._product(mixed.transpose(1, 2).reshape(batch, pos, -1), attention.o_proj.weight))
            normed = self._norm(x, layer.post_attention_layernorm.weight)
            gate, up = self._product(normed, mlp.gate_proj.weight, mlp.up_proj.weight).chunk(2, dim=-1)
            x = x + self._drop(self._product(F.silu(gate) * up, mlp.down_proj.weight))
        return self._norm(x, body.norm.weight)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        config: Any = self.model.config
        return F.rms_norm(x, (config.hidden_size,), weight.to(self.dtype), config.rms_norm_eps)

    def _product(self, x: Tensor, *weights: Tensor) -> Tensor:
        return F.linear(x, torch.cat(weights).to(self.dtype))

    def _rotate(self, x: Tensor) -> Tensor:
        half = self.d_head // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * self.cos[: x.shape[-2]] + turned * self.sin[: x.shape[-2]]

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.residual_dropout) if self.residual_dropout and self.training else x


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


def native_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices natively (AMX, AVX512-BF16 or a GPU that does)."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
