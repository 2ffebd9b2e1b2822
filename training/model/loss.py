"""The training loss of a `LlamaForCausalLM`, from its own weights but with fewer and larger operations.

transformers' forward is the reference (a test holds the two together). Here query, key and value are one product, and
what is left are the operations of `training.model.kernels`. On a CPU the batch is shared between threads
(`training.model.threads`), each of which goes through the model on its own. On a GPU it can be compiled.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from copyscope.training.model.interventions import Intervention, predictable
from copyscope.training.model.kernels import LEFT_OUT, causal_attention, gated_mlp, on_cpu, rms_norm, vocabulary_loss
from copyscope.training.model.threads import loss_in_parts

_EMBEDDING = "model.embed_tokens.weight"


class NextTokenLoss(torch.nn.Module):
    """Mean cross-entropy in nats of every next token. Holds the model, so that data parallelism can wrap it.

    Products are in `dtype`; the sum over the vocabulary is in fp32 whatever it is. Dropout, on attention probabilities
    and on what attention and MLP write into the residual stream, is active while `training`. With `compiled`, what is
    trained on goes through `torch.compile`; values outside `training` are computed as without.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        n_ctx: int,
        dtype: torch.dtype,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        compiled: bool = False,
    ):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.attention_dropout, self.residual_dropout = attention_dropout, residual_dropout
        self.intervention: Intervention | None = None
        config: Any = model.config  # transformers' modules are untyped to a checker
        self.kv_heads, self.d_head = config.num_key_value_heads, config.head_dim
        self.n_layers, self.norm_eps = config.num_hidden_layers, config.rms_norm_eps
        frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(0, self.d_head, 2).float() / self.d_head)
        angles = torch.outer(frequencies, torch.arange(n_ctx).float())
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", angles.cos().to(dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(dtype), persistent=False)
        self._compiled = (
            _Passes(torch.compile(self._cast_block, dynamic=False), torch.compile(self._cast_head, dynamic=False))
            if compiled
            else None
        )

    def forward(self, sequences: Int[Tensor, "batch pos_plus_1"]) -> Float[Tensor, ""]:
        parameters = dict(self.model.named_parameters())
        if self._compiled and self.training:
            return self._loss(parameters, sequences, self._compiled)
        if sequences.device.type == "cpu" and torch.is_grad_enabled():
            # Random numbers come from one generator, whose order two threads would not keep.
            random = self.training and bool(self.attention_dropout or self.residual_dropout)
            return loss_in_parts(self._loss, sequences, parameters, self._in_dtype, most_parts=1 if random else None)
        return self._loss(self._in_dtype(parameters), sequences)

    def _in_dtype(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The embedding stays as it is: its rows are cast once looked up, and their gradients are summed in fp32."""
        return {name: p if name == _EMBEDDING else p.to(self.dtype) for name, p in parameters.items()}

    def _loss(self, weights: Mapping[str, Tensor], sequences: Tensor, compiled: "_Passes | None" = None) -> Tensor:
        tokens, pos = sequences[:, :-1], sequences.shape[1] - 1
        cos, sin = self.cos[:, :pos], self.sin[:, :pos]
        x = F.embedding(tokens, weights[_EMBEDDING]).to(self.dtype)  # (batch, pos, d_model)
        for layer in range(self.n_layers):
            w = {name: weights[f"model.layers.{layer}.{name}.weight"] for name in _BLOCK}
            if self.intervention and layer in self.intervention.heads:
                held = partial(self.intervention.apply, layer)
                x = self._block(x, self._in_dtype(w) if compiled else w, cos, sin, held)
            else:
                x = (compiled.block if compiled else self._block)(x, w, cos, sin)
        w_u = weights.get("lm_head.weight", weights[_EMBEDDING])  # tied ones have one name
        targets, kept = sequences[:, 1:].flatten(), None
        if self.intervention and self.intervention.skip_predictable and self.training:
            kept = ~predictable(sequences).flatten()
            if compiled or not on_cpu(x):  # where choosing rows would wait for their number
                targets, kept = targets.masked_fill(~kept, LEFT_OUT), None
        return (compiled.head if compiled else self._head)(x, weights["model.norm.weight"], w_u, targets, kept)

    def _block(
        self,
        x: Tensor,
        w: Mapping[str, Tensor],
        cos: Tensor,
        sin: Tensor,
        held: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """A layer. `held` replaces outputs of heads, given also the normed input and the value matrices."""
        normed = rms_norm(x, w["input_layernorm"], self.norm_eps)
        w_qkv = torch.cat([w[f"self_attn.{name}_proj"] for name in "qkv"])
        dropout = self.attention_dropout if self.training else 0.0
        mixed = causal_attention(normed, w_qkv, cos, sin, self.kv_heads, dropout)
        if held:
            mixed = held(mixed, normed, w["self_attn.v_proj"])
        x = x + self._drop(F.linear(mixed.flatten(2), w["self_attn.o_proj"]))
        normed = rms_norm(x, w["post_attention_layernorm"], self.norm_eps)
        return x + self._drop(gated_mlp(normed, w["mlp.gate_proj"], w["mlp.up_proj"], w["mlp.down_proj"]))

    def _head(self, x: Tensor, norm: Tensor, w_u: Tensor, targets: Tensor, kept: Tensor | None) -> Tensor:
        """The loss from the last residual stream. Rows that are not `kept` count as loss 0."""
        rows = rms_norm(x, norm, self.norm_eps).flatten(0, 1)
        w_u = w_u.to(self.dtype)
        if kept is None:
            return vocabulary_loss(rows, w_u, targets)
        if not kept.any():
            return rows.sum() * 0.0
        return vocabulary_loss(rows[kept], w_u, targets[kept]) * kept.float().mean()

    def _cast_block(self, x: Tensor, w: Mapping[str, Tensor], cos: Tensor, sin: Tensor) -> Tensor:
        return self._block(x, self._in_dtype(w), cos, sin)

    def _cast_head(self, x: Tensor, norm: Tensor, w_u: Tensor, targets: Tensor, kept: Tensor | None) -> Tensor:
        return self._head(x, norm.to(self.dtype), w_u, targets, kept)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.residual_dropout) if self.residual_dropout and self.training else x


class _Passes(NamedTuple):
    """The compiled parts, which cast their weights themselves. A layer is compiled once for all layers, which takes
    seconds where the whole model takes a minute."""

    block: Callable[[Tensor, Mapping[str, Tensor], Tensor, Tensor], Tensor]
    head: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]


_BLOCK = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
