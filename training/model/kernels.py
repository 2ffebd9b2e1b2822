"""Operations with a backward pass of their own: RMSNorm, causal attention, the gated MLP, the loss over the vocabulary.

On a CPU the step of a small model goes into moving memory rather than into products. These compute the same values and
gradients as plain operations under autograd (the reference in tests) with fewer and smaller intermediate tensors, in
layouts whose innermost dimension is long. On a GPU, and inside `torch.compile`, they are plain operations, which have
fused kernels there; only the loss over the vocabulary has a backward pass of its own there too, to bound its memory.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

QUERY_BLOCK = 128
"""Queries a block: smaller ones waste the products, larger ones compute more of the masked triangle."""
_ROWS_AT_ONCE = 256
"""Rows of logits held in fp32 at once: fewer waste the products, more leave the processor's cache."""
_LOGIT_BYTES = 32 << 20
"""Gradients of logits held at once."""
_GPU_LOGITS = 1 << 28
"""Logits held at once on a GPU: 1 GiB in fp32, and half as much twice in bf16."""
LEFT_OUT = -100
"""The target of a row that does not count (off the CPU; PyTorch's own number for it)."""
_REPEATABLE = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""Ways to compute attention whose backward pass can be told to add up in the same order each time; cuDNN's cannot."""


def rms_norm(
    x: Float[Tensor, "*rows d_model"], weight: Float[Tensor, " d_model"], eps: float
) -> Float[Tensor, "*rows d_model"]:
    """weight · x / sqrt(mean(x²) + eps) (Zhang and Sennrich 2019); the mean is in fp32 (or wider)."""
    if not on_cpu(x):
        return F.rms_norm(x, (len(weight),), weight, eps)
    result: Any = _RmsNorm.apply(x, weight, eps)
    return result


def causal_attention(
    x: Float[Tensor, "batch pos d_model"],
    w_qkv: Float[Tensor, "rows d_model"],
    cos: Float[Tensor, "half_d_head pos"],
    sin: Float[Tensor, "half_d_head pos"],
    kv_heads: int,
    dropout: float = 0.0,
) -> Float[Tensor, "batch pos head d_head"]:
    """Each head's mean of the values at this and earlier positions, with rotary positions (RoFormer, section 3.2.2).

    `w_qkv` holds, d_head rows each, the heads' queries, then `kv_heads` keys, then as many values; position p turns
    components i and i + d_head/2 by the angle whose cosine is `cos[i, p]`. `dropout` is on the attention probabilities.

    On a GPU this is `scaled_dot_product_attention`. Outside `torch.compile` its backward pass adds up in the same order
    each time (by default flash attention's does not), so that training can be repeated bit for bit.
    """
    if on_cpu(x):
        result: Any = _Attention.apply(x, w_qkv, cos, sin, kv_heads, dropout)
        return result
    qkv = F.linear(x, w_qkv).unflatten(2, (-1, 2 * len(cos))).transpose(1, 2)  # (batch, head, pos, d_head)
    heads = qkv.shape[1] - 2 * kv_heads
    qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
    qk = torch.addcmul(qk * cos.t().repeat(1, 2), _turned(qk), sin.t().repeat(1, 2))
    q, k = qk.split([heads, kv_heads], dim=1)
    if heads != kv_heads and x.dtype == torch.float32:  # for which only bf16 has a fused kernel
        k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
    grouped = k.shape[1] != heads
    repeatable = x.is_cuda and not torch.compiler.is_compiling()
    with sdpa_kernel(list(_REPEATABLE)) if repeatable else nullcontext():
        if repeatable and x.requires_grad:
            before = torch.are_deterministic_algorithms_enabled()
            q, k, v = _set_determinism_in_backward(before, q, k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=grouped)
        if repeatable and x.requires_grad:
            (mixed,) = _set_determinism_in_backward(True, mixed)
    return mixed.transpose(1, 2)


def gated_mlp(
    x: Float[Tensor, "*rows d_model"],
    w_gate: Float[Tensor, "d_mlp d_model"],
    w_up: Float[Tensor, "d_mlp d_model"],
    w_down: Float[Tensor, "d_model d_mlp"],
) -> Float[Tensor, "*rows d_model"]:
    """(silu(x·w_gateᵀ) · x·w_upᵀ)·w_downᵀ."""
    if not on_cpu(x):
        return F.linear(F.silu(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)
    result: Any = _GatedMlp.apply(x, w_gate, w_up, w_down)
    return result


def vocabulary_loss(
    x: Float[Tensor, "row d_model"], w_u: Float[Tensor, "d_vocab d_model"], target: Int[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of `target` under logits x·w_uᵀ. Products are in the inputs' type, sums in fp32 (or
    theirs, if wider); the logits of the whole batch are never held in fp32.

    Off the CPU a row whose target is `LEFT_OUT` counts as loss 0. Inside `torch.compile` the logits of all rows are
    held in the inputs' type.
    """
    if torch.compiler.is_compiling():
        logits = F.linear(x, w_u).to(_wide(x))
        return F.cross_entropy(logits, target, reduction="sum", ignore_index=LEFT_OUT) / len(x)
    if not on_cpu(x):
        on_gpu: Any = _VocabularyLossOnGpu.apply(x, w_u, target)
        return on_gpu
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
        along = grads[0] * normed
        d_weight = along.flatten(0, -2).sum(0)
        along = F.linear(along, weight[None] / -len(weight))  # -mean over the row of d_normed · normed
        return (grads[0] * weight).addcmul_(normed, along).mul_(scale), d_weight, None


class _Attention(Function):
    """Queries, keys and values lie as (batch, head, d_head, pos): rotations and slices of heads are then of long rows,
    and every product takes its operands as they lie."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int, dropout: float) -> Tensor:
        batch, pos, _ = x.shape
        d_head = 2 * len(cos)
        heads = len(w_qkv) // d_head - 2 * kv_heads
        qkv = torch.bmm(w_qkv.expand(batch, -1, -1), x.transpose(1, 2)).view(batch, -1, d_head, pos)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        _rotate_(q, cos * d_head**-0.5, sin * d_head**-0.5)
        _rotate_(k, cos, sin)
        if kv_heads != heads:
            k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
        q, k, v = (y.flatten(0, 1) for y in (q, k, v))  # (batch·head, d_head, pos)
        future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=x.dtype).triu_(1)
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
        d_qkv = x.new_empty(batch, 3 * heads, d_head, pos)
        d_q, d_k, d_v = d_qkv.chunk(3, dim=1)
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
            d_q[..., start:end] = (k[..., :end] @ d_scores.transpose(1, 2)).view(batch, heads, d_head, -1)
            for total, part in ((d_v, d_block.transpose(1, 2) @ used), (d_k, q[..., start:end] @ d_scores)):
                part = part.view(batch, heads, d_head, end)
                if end == pos:
                    total.copy_(part)
                else:
                    total[..., :end] += part
        _rotate_(d_q, cos * d_head**-0.5, -sin * d_head**-0.5)  # the inverse rotation
        if kv_heads != heads:
            d_k, d_v = (y.unflatten(1, (kv_heads, heads // kv_heads)).sum(dim=2) for y in (d_k, d_v))
            d_qkv = torch.cat((d_q, d_k, d_v), dim=1)
            d_k = d_qkv[:, heads : heads + kv_heads]
        _rotate_(d_k, cos, -sin)
        d_qkv = d_qkv.flatten(1, 2)  # (batch, rows, pos)
        d_x = torch.bmm(d_qkv.transpose(1, 2), w_qkv.expand(batch, -1, -1))
        d_w = torch.bmm(d_qkv, x).sum(dim=0)
        return d_x, d_w, None, None, None, None


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The rotary embedding of x (batch, head, d_head, pos) in place; of its gradient, with -sin."""
    a, b = x.chunk(2, dim=2)
    a_sin = a * sin
    a.mul_(cos).addcmul_(b, sin, value=-1)
    b.mul_(cos).add_(a_sin)


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


class _VocabularyLossOnGpu(Function):
    """As `_VocabularyLoss`, in blocks that are large enough to fill a GPU, with few passes over each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_u: Tensor, target: Tensor) -> Tensor:
        learn = any(ctx.needs_input_grad[:2])
        loss = torch.zeros((), dtype=_wide(x), device=x.device)
        d_x, d_w = torch.empty_like(x), torch.zeros_like(w_u, dtype=_wide(x))
        block = max(1, _GPU_LOGITS // len(w_u))
        for some, wanted, d_some in zip(x.split(block), target.split(block), d_x.split(block), strict=True):
            kept, index = (wanted != LEFT_OUT)[:, None], wanted.clamp(min=0)[:, None]
            logits = F.linear(some, w_u)
            share = logits.softmax(dim=-1, dtype=_wide(x))
            # log Σ exp(logits) by way of the largest logit, whose share is never too small for a logarithm
            largest, where = logits.max(dim=-1, keepdim=True)
            log_sum = largest.to(_wide(x)) - share.gather(1, where).log()
            loss += ((log_sum - logits.gather(1, index).to(_wide(x))) * kept).sum()
            if learn:
                share.scatter_add_(1, index, share.new_full((len(share), 1), -1.0))
                d_logits = logits.copy_(share)
                torch.mm(d_logits, w_u, out=d_some)
                d_some *= kept
                d_w += d_logits.t() @ (some * kept)
        ctx.save_for_backward(d_x, d_w)
        ctx.w_dtype = w_u.dtype
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _VocabularyLoss.backward(ctx, *grads)


class _SetDeterminism(Function):
    """The tensors as they are; its backward pass says how later operations of the backward pass add up."""

    @staticmethod
    def forward(ctx: Any, deterministic: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.deterministic = deterministic
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Only around attention: for products PyTorch would want CUBLAS_WORKSPACE_CONFIG set before the first of them.
        torch._C._set_deterministic_algorithms(ctx.deterministic, warn_only=False)
        return None, *grads


def _set_determinism_in_backward(deterministic: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    result: Any = _SetDeterminism.apply(deterministic, *tensors)
    return result


def on_cpu(x: Tensor) -> bool:
    """Whether the hand-written operations are the fast ones."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
