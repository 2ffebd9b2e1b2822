"""The training loss of a `LlamaForCausalLM`, from its own weights but with fewer and larger operations.

transformers' forward is the reference (a test holds the two together). Here query, key and value are one product, gate
and up another, and what is left are the operations of `training.kernels`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from training.kernels import causal_attention, gated_mlp, rms_norm, vocabulary_loss


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
        w_u = self.model.lm_head.weight.to(self.dtype)
        return vocabulary_loss(residual.flatten(0, 1), w_u, sequences[:, 1:].flatten())

    def final_residual(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The normed residual stream after the last block."""
        body: Any = self.model.model
        pos = tokens.shape[1]
        dropout = self.attention_dropout if self.training else 0.0
        x = F.embedding(tokens, body.embed_tokens.weight).to(self.dtype)
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            w_qkv = torch.cat([y.weight for y in (attention.q_proj, attention.k_proj, attention.v_proj)]).to(self.dtype)
            normed = self._norm(x, layer.input_layernorm.weight)
            mixed = causal_attention(normed, w_qkv, self.cos[:pos], self.sin[:pos], self.kv_heads, dropout)
            x = x + self._drop(F.linear(mixed.flatten(2), attention.o_proj.weight.to(self.dtype)))
            weights = (y.weight.to(self.dtype) for y in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            x = x + self._drop(gated_mlp(self._norm(x, layer.post_attention_layernorm.weight), *weights))
        return self._norm(x, body.norm.weight)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.to(self.dtype), self.model.config.rms_norm_eps)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.residual_dropout) if self.residual_dropout and self.training else x
