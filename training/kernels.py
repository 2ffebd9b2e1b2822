"""Operations with a backward pass of their own: RMSNorm, causal attention, the gated MLP, the loss over the vocabulary.

On a CPU the step of a small model goes into moving memory rather than into products. These compute the same values and
gradients as plain operations under autograd (the reference in tests) with fewer and smaller intermediate tensors, in
layouts whose innermost dimension is long.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

QUERY_BLOCK = 128
"""Queries a block: smaller ones waste the products, larger ones compute more of the masked triangle."""
_ROWS_AT_ONCE = 256
"""Rows of logits held in fp32 at once: fewer waste the products, more leave the processor's cache."""
_LOGIT_BYTES = 32 << 20
"""Gradients of logits held at once."""


def rms_norm(
    x: Float[Tensor, "*rows d_model"], weight: Float[Tensor, "d_model"], eps: float
) -> Float[Tensor, "*rows d_model"]:
    """weight · x / sqrt(mean(x²) + eps) (Zhang and Sennrich 2019); the mean is in fp32 (or wider)."""
    result: Any = _RmsNorm.apply(x, weight, eps)
    return result


def causal_attention(
    x: Float[Tensor, "batch pos d_model"],
    w_qkv: Float[Tensor, "rows d_model"],
    cos: Float[Tensor, "pos d_head"],
    sin: Float[Tensor, "pos d_head"],
    kv_heads: int,
    dropout: float = 0.0,
) -> Float[Tensor, "batch pos head d_head"]:
    """Each head's mean of the values at this and earlier positions, with rotary positions (RoFormer, section 3.2.2).

    `w_qkv` holds, d_head rows each, the heads' queries, then `kv_heads` keys, then as many values. `dropout` is on the
    attention probabilities.
    """
    if x.device.type == "cpu":
        result: Any = _Attention.apply(x, w_qkv, cos, sin, kv_heads, dropout)
        return result
    qkv = F.linear(x, w_qkv).unflatten(2, (-1, cos.shape[1])).transpose(1, 2)  # (batch, head, pos, d_head)
    heads = qkv.shape[1] - 2 * kv_heads
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    q, k = (torch.addcmul(y * cos, _turned(y), sin) for y in (q, k))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=heads != kv_heads)
    return mixed.transpose(1, 2)


def gated_mlp(
    x: Float[Tensor, "*rows d_model"],
    w_gate: Float[Tensor, "d_mlp d_model"],
    w_up: Float[Tensor, "d_mlp d_model"],
    w_down: Float[Tensor, "d_model d_mlp"],
) -> Float[Tensor, "*rows d_model"]:
    """(silu(x·w_gateᵀ) · x·w_upᵀ)·w_downᵀ."""
    result: Any = _GatedMlp.apply(x, w_gate, w_up, w_down)
    return result


def vocabulary_loss(
    x: Float[Tensor, "row d_model"], w_u: Float[Tensor, "d_vocab d_model"], target: Int[Tensor, "row"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of `target` under logits x·w_uᵀ. Products are in the inputs' type, sums in fp32 (or
    theirs, if wider); the logits of the whole batch are never held in fp32."""
    result: Any = _VocabularyLoss.apply(x, w_u, target)
    return result


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x))
        scale = (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, weight = ctx.saved_tensors
        d_weight = (grads[0] * normed).flatten(0, -2).sum(0)
        d_normed = grads[0] * weight
        along = (d_normed * normed).mean(dim=-1, keepdim=True)
        return d_normed.addcmul_(normed, along, value=-1).mul_(scale), d_weight, None


class _Attention(Function):
    """Queries, keys and values lie as (batch, head, d_head, pos): rotations and slices of heads are then of long rows,
    and every product takes its operands as they lie."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, dropout: float) -> Tensor:
        batch, pos, _ = x.shape
        d_head = cos.shape[1]
        heads = len(w_qkv) // d_head - 2 * kv_heads
        cos, sin = cos.t().contiguous(), sin.t().contiguous()
        w_batch = w_qkv.expand(batch, -1, -1)
        qkv = torch.bmm(w_batch, x.transpose(1, 2)).view(batch, -1, d_head, pos)
        qk = _rotated(qkv[:, : heads + kv_heads], cos, sin)
        q, k, v = qk[:, :heads] * d_head**-0.5, qk[:, heads:], qkv[:, heads + kv_heads :]
        q, k, v = (_shared(y, heads).flatten(0, 1) for y in (q, k, v))  # (batch·head, d_head, pos)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=x.dtype).triu(1)
        out = x.new_empty(batch, pos, heads, d_head)
        patterns, masks = [], []
        for start in range(0, pos, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, pos)
            scores = q[..., start:end].transpose(1, 2) @ k[..., :end]
            scores[..., start:] += future[: end - start, : end - start]
            pattern = scores.softmax(dim=-1)
            patterns.append(pattern)
            if dropout:
                masks.append(F.dropout(torch.ones_like(pattern), dropout))
                pattern = pattern * masks[-1]
            mixed = pattern @ v[..., :end].transpose(1, 2)
            out[:, start:end] = mixed.unflatten(0, (batch, heads)).transpose(1, 2)
        ctx.save_for_backward(x, w_qkv, q, k, v, cos, sin, *patterns, *masks)
        ctx.kv_heads = kv_heads
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w_qkv, q, k, v, cos, sin, *saved = ctx.saved_tensors
        batch, pos, heads, d_head = grads[0].shape
        kv_heads: int = ctx.kv_heads
        blocks = range(0, pos, QUERY_BLOCK)
        patterns, masks = saved[: len(blocks)], saved[len(blocks) :]
        d_out = grads[0].transpose(1, 2).flatten(0, 1)  # (batch·head, pos, d_head)
        d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for number in reversed(range(len(blocks))):  # the last block reaches every key, so nothing need be zeroed
            start = blocks[number]
            end = min(start + QUERY_BLOCK, pos)
            pattern, d_block = patterns[number], d_out[:, start:end]
            d_pattern = d_block @ v[..., :end]
            used = pattern
            if masks:
                d_pattern *= masks[number]
                used = pattern * masks[number]
            d_scores = torch.ops.aten._softmax_backward_data(d_pattern, pattern, -1, pattern.dtype)
            d_q[..., start:end] = k[..., :end] @ d_scores.transpose(1, 2)
            for total, part in ((d_v, d_block.transpose(1, 2) @ used), (d_k, q[..., start:end] @ d_scores)):
                if end == pos:
                    total.copy_(part)
                else:
                    total[..., :end] += part
        d_q *= d_head**-0.5
        d_q, d_k, d_v = (y.unflatten(0, (batch, heads)) for y in (d_q, d_k, d_v))
        if kv_heads != heads:
            d_k, d_v = (y.unflatten(1, (kv_heads, heads // kv_heads)).sum(dim=2) for y in (d_k, d_v))
        d_qk = _rotated(torch.cat((d_q, d_k), dim=1), cos, -sin)  # the inverse rotation
        d_qkv = torch.cat((d_qk, d_v), dim=1).flatten(1, 2)  # (batch, rows, pos)
        d_x = torch.bmm(d_qkv.transpose(1, 2), w_qkv.expand(batch, -1, -1))
        d_w = torch.bmm(d_qkv, x).sum(dim=0)
        return d_x, d_w, None, None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of x (batch, head, d_head, pos); of its gradient, with -sin."""
    out, half = torch.empty_like(x, memory_format=torch.contiguous_format), x.shape[2] // 2
    (a, b), (out_a, out_b) = x.split(half, dim=2), out.split(half, dim=2)
    torch.mul(a, cos[:half], out=out_a).addcmul_(b, sin[:half], value=-1)
    torch.mul(b, cos[half:], out=out_b).addcmul_(a, sin[half:])
    return out


def _shared(x: Tensor, heads: int) -> Tensor:
    """Keys or values (batch, kv_head, d_head, pos) for every head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class _GatedMlp(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
        gate, up = F.linear(x, w_gate), F.linear(x, w_up)
        lit = F.silu(gate)
        hidden = lit * up
        ctx.save_for_backward(x, w_gate, w_up, w_down, gate, up, lit, hidden)
        return F.linear(hidden, w_down)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w_gate, w_up, w_down, gate, up, lit, hidden = (y.flatten(0, -2) for y in ctx.saved_tensors)
        d_out = grads[0].flatten(0, -2)
        d_hidden = d_out @ w_down
        d_up = d_hidden * lit
        d_gate = torch.ops.aten.silu_backward(d_hidden.mul_(up), gate)
        d_x = torch.addmm(d_gate @ w_gate, d_up, w_up)
        return d_x.view_as(grads[0]), d_gate.t() @ x, d_up.t() @ x, d_out.t() @ hidden


class _VocabularyLoss(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_u: Tensor, target: Tensor) -> Tensor:
        learn = any(ctx.needs_input_grad[:2])
        loss = torch.zeros((), dtype=_wide(x), device=x.device)
        d_x, d_w = torch.empty_like(x), torch.zeros_like(w_u, dtype=_wide(x))
        block = max(_ROWS_AT_ONCE, _LOGIT_BYTES // (x.element_size() * len(w_u)))
        for some, wanted, d_some in zip(x.split(block), target.split(block), d_x.split(block), strict=True):
            d_logits = some.new_empty(len(some), len(w_u)) if learn else some.new_empty(0)
            for start in range(0, len(some), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                logits, index = F.linear(some[rows], w_u).to(_wide(x)), wanted[rows, None]
                share = logits.softmax(dim=-1)
                # log Σ exp(logits), without another pass of exponentials
                log_sum = logits.amax(dim=-1) - share.amax(dim=-1).log()
                loss += (log_sum - logits.gather(1, index)[:, 0]).sum()
                if learn:  # the gradient of the sum, while the logits are at hand
                    d_logits[rows] = share.scatter_add_(1, index, share.new_full((len(share), 1), -1.0))
            if learn:
                torch.mm(d_logits, w_u, out=d_some)
                d_w += d_logits.t() @ some
        ctx.save_for_backward(d_x, d_w)
        ctx.w_dtype = w_u.dtype
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_w = ctx.saved_tensors
        share = grads[0] / len(d_x)
        return d_x * share.to(d_x.dtype), (d_w * share).to(ctx.w_dtype), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
