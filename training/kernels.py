"""Three operations with a backward pass of their own: causal attention, gated SiLU, the loss over the vocabulary.

On a CPU the step of a small model goes into moving memory rather than into products: autograd fills a zero tensor for
every slice, keeps fp32 logits of the whole batch, and copies on every transposition. These compute the same values and
gradients with fewer and smaller intermediate tensors. Plain operations, run under autograd, are the reference in tests.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

QUERY_BLOCK = 128
"""Queries a block: smaller ones waste the products, larger ones compute more of the masked triangle."""
_LOSS_BYTES = 1 << 20
"""fp32 logits held at once: what stays in a core's cache."""


def causal_attention(
    qkv: Float[Tensor, "batch pos heads_and_kv d_head"],
    cos: Float[Tensor, "pos d_head"],
    sin: Float[Tensor, "pos d_head"],
    kv_heads: int,
    dropout: float = 0.0,
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions and attention to this and earlier positions.

    `qkv` holds the heads' queries, then `kv_heads` keys, then as many values. `dropout` is on the probabilities.
    """
    if qkv.device.type == "cpu":
        result: Any = _Attention.apply(qkv, cos, sin, kv_heads, dropout)
        return result
    heads = qkv.shape[2] - 2 * kv_heads
    q, k, v = qkv.transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    q, k = (torch.addcmul(x * cos, torch.cat(_turned(x), dim=-1), sin) for x in (q, k))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=heads != kv_heads)
    return mixed.transpose(1, 2)


def gated_silu(gate_up: Float[Tensor, "*rows two_d_mlp"]) -> Float[Tensor, "*rows d_mlp"]:
    """silu(gate) · up, of the two halves of the last dimension."""
    result: Any = _GatedSilu.apply(gate_up)
    return result


def vocabulary_loss(
    x: Float[Tensor, "row d_model"], w_u: Float[Tensor, "d_vocab d_model"], target: Int[Tensor, "row"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of `target` under logits x·w_uᵀ. Products are in the inputs' type, sums in fp32 (or
    theirs, if wider); the logits of the whole batch are never held."""
    result: Any = _VocabularyLoss.apply(x, w_u, target)
    return result


def _turned(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.shape[-1] // 2
    return -x[..., half:], x[..., :half]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotary embedding (RoFormer, section 3.2.2) of x into `out`; with -sin it is the inverse, and the gradient."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, dropout: float) -> Tensor:
        batch, pos, rows, d_head = qkv.shape
        heads = rows - 2 * kv_heads
        group, scale = heads // kv_heads, d_head**-0.5
        by_head = qkv.transpose(1, 2)  # (batch, head, pos, d_head)
        qk = qkv.new_empty(batch, heads + kv_heads, pos, d_head)
        _rotate(by_head[:, : heads + kv_heads], cos, sin, qk)
        q, k = qk[:, :heads].mul_(scale), qk[:, heads:]
        v = by_head[:, heads + kv_heads :].contiguous()
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=qkv.dtype).triu(1)
        out = qkv.new_empty(batch, pos, heads, d_head)
        patterns, masks = [], []
        for start in range(0, pos, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, pos)
            scores = q[:, :, start:end] @ k[:, :, :end].transpose(-1, -2)
            scores[..., start:] += future[: end - start, : end - start]
            pattern = scores.softmax(dim=-1)
            patterns.append(pattern)
            if dropout:
                masks.append(F.dropout(torch.ones_like(pattern), dropout))
                pattern = pattern * masks[-1]
            out[:, start:end] = (pattern @ v[:, :, :end]).transpose(1, 2)
        ctx.save_for_backward(q, k, v, cos, sin, *patterns, *masks)
        ctx.kv_heads, ctx.scale = kv_heads, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, *saved = ctx.saved_tensors
        batch, heads, pos, d_head = q.shape
        kv_heads: int = ctx.kv_heads
        blocks = range(0, pos, QUERY_BLOCK)
        patterns, masks = saved[: len(blocks)], saved[len(blocks) :]
        d_out = grads[0].transpose(1, 2).contiguous()
        d_qk = q.new_empty(batch, 2 * heads, pos, d_head)
        d_q, d_k, d_v = d_qk[:, :heads], d_qk[:, heads:], torch.empty_like(v)
        for number in reversed(range(len(blocks))):  # the last block reaches every key, so nothing need be zeroed
            start = blocks[number]
            end = min(start + QUERY_BLOCK, pos)
            pattern, d_block = patterns[number], d_out[:, :, start:end]
            d_pattern = d_block @ v[:, :, :end].transpose(-1, -2)
            used = pattern
            if masks:
                d_pattern *= masks[number]
                used = pattern * masks[number]
            d_scores = torch.ops.aten._softmax_backward_data(d_pattern, pattern, -1, pattern.dtype)
            d_q[:, :, start:end] = d_scores @ k[:, :, :end]
            for total, part in (
                (d_v, used.transpose(-1, -2) @ d_block),
                (d_k, d_scores.transpose(-1, -2) @ q[:, :, start:end]),
            ):
                if end == pos:
                    total.copy_(part)
                else:
                    total[:, :, :end] += part
        d_q *= ctx.scale
        if kv_heads != heads:
            d_k, d_v = (y.unflatten(1, (kv_heads, heads // kv_heads)).sum(dim=2) for y in (d_k, d_v))
            d_qk = torch.cat((d_q, d_k), dim=1)
        d_qkv = q.new_empty(batch, pos, heads + 2 * kv_heads, d_head)
        _rotate(d_qk, cos, -sin, d_qkv[:, :, : heads + kv_heads].transpose(1, 2))
        d_qkv[:, :, heads + kv_heads :] = d_v.transpose(1, 2)
        return d_qkv, None, None, None, None


class _GatedSilu(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        d_gate_up = torch.empty_like(gate_up)
        d_gate, d_up = d_gate_up.chunk(2, dim=-1)
        torch.mul(grads[0], F.silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return d_gate_up


class _VocabularyLoss(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_u: Tensor, target: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=x.device)
        rows = max(1, _LOSS_BYTES // (4 * len(w_u)))
        learn = any(ctx.needs_input_grad[:2])
        d_x, d_w = torch.empty_like(x), torch.zeros_like(w_u, dtype=wide)
        for some, wanted, d_some in zip(x.split(rows), target.split(rows), d_x.split(rows), strict=True):
            logits = F.linear(some, w_u).to(wide)
            norm = logits.logsumexp(dim=-1, keepdim=True)
            loss += (norm - logits.gather(1, wanted[:, None])).sum()
            if learn:  # the gradient of the mean, while the logits are at hand
                d_logits = logits.sub_(norm).exp_()
                d_logits.scatter_add_(1, wanted[:, None], d_logits.new_full((len(wanted), 1), -1.0))
                d_logits = d_logits.mul_(1 / len(x)).to(x.dtype)
                torch.mm(d_logits, w_u, out=d_some)
                d_w += d_logits.t() @ some
        ctx.save_for_backward(d_x, d_w)
        ctx.w_dtype = w_u.dtype
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_x, d_w = ctx.saved_tensors
        return d_x * grads[0].to(d_x.dtype), (d_w * grads[0]).to(ctx.w_dtype), None
