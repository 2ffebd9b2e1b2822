"""A model's layers as plain functions of tensors, for runs without hooks.

Cut where measures and ablations reach in: at queries and keys, after the heads' outputs and after the MLP. Positions
may be packed, so that prompts with a common context share it. For models that `can_run` accepts: hook points are passed
by, which on a CPU saves more time than a small model's products take.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.fused import can_fuse
from copyscope.interp.forward.memory import tokens_at_once
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer


def is_hooked(model: HookedModel) -> bool:
    """Whether hooks are on the model, so that its activations may depend on batch and position."""
    return any(point.fwd_hooks for point in model.hook_dict.values()) or bool(model._forward_pre_hooks)


def can_run(model: HookedModel) -> TypeGuard[HookedTransformer]:
    """Whether layers may stand for the model: plain causal attention and no hooks on it."""
    return isinstance(model, HookedTransformer) and can_fuse(model) and not is_hooked(model)


def slices(model: HookedModel, n_rows: int, n_pos: int) -> Iterator[slice]:
    """Slices of `n_rows` rows of `n_pos` tokens, `tokens_at_once` each; at least one row."""
    size = max(1, tokens_at_once(model) // n_pos)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


class Layout:
    """How the positions of a row hang together: `context` of them, then blocks of `block` positions, each of which
    continues the context and sees nothing of the other blocks. Without blocks a row is one prompt. `device` and `dtype`
    are the model's."""

    def __init__(
        self,
        context: int,
        block: int = 0,
        length: int | None = None,
        device: Any = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.context, self.block, self.length = context, block, context if length is None else length
        self.device, self.dtype = torch.device(device or "cpu"), dtype

    @classmethod
    def of(cls, model: HookedModel, context: int, block: int = 0, length: int | None = None) -> "Layout":
        """For this model."""
        return cls(context, block, length, device_of(model), model.cfg.dtype)

    @cached_property
    def positions(self) -> Int[Tensor, " pos"]:
        """Where each token of a row stands in its own prompt."""
        n_blocks = (self.length - self.context) // max(1, self.block)
        inside = self.context + torch.arange(self.block, device=self.device).repeat(n_blocks)
        return torch.cat([torch.arange(self.context, device=self.device), inside])

    def rotary(self, attention: Any) -> tuple[Tensor, Tensor]:
        """Cosines and sines at these positions, (pos, rotary_dim) each."""
        longest = self.context + (self.block if self.length > self.context else 0)
        if longest > len(attention.rotary_cos):
            attention.apply_rotary(
                attention.rotary_cos.new_zeros(1, longest, 1, attention.cfg.d_head)
            )  # lengthens them
        tables = attention.rotary_cos, attention.rotary_sin
        cos, sin = (table[self.positions].to(self.dtype) for table in tables)
        return cos, sin

    @cached_property
    def mask(self) -> Float[Tensor, "query key"]:
        """0 where a query sees a key, else minus infinity: causal, and from a block only the context and the block."""
        block = torch.zeros(self.length, dtype=torch.long, device=self.device)
        if self.block:
            block[self.context :] = 1 + torch.arange(self.length - self.context, device=self.device) // self.block
        causal = torch.ones(self.length, self.length, dtype=torch.bool, device=self.device).tril()
        visible = causal & ((block[None] == 0) | (block[None] == block[:, None]))
        return torch.zeros(visible.shape, dtype=self.dtype, device=self.device).masked_fill_(~visible, float("-inf"))


class Layer:
    """Layer `index` of a model, for rows of one layout."""

    def __init__(self, model: HookedTransformer, index: int, layout: Layout) -> None:
        block: Any = model.blocks[index]
        self.layout, self.block, attention = layout, block, block.attn
        self.parallel, self.attn_only = model.cfg.parallel_attn_mlp, model.cfg.attn_only
        self.n_heads, self.d_head = model.cfg.n_heads, model.cfg.d_head
        self.scale = 1 / float(attention.attn_scale)
        # Grouped-query attention keeps one key and value head for several query heads under these names.
        w_k, w_v = getattr(attention, "_W_K", None), getattr(attention, "_W_V", None)
        b_k, b_v = getattr(attention, "_b_K", None), getattr(attention, "_b_V", None)
        w_k, w_v = attention.W_K if w_k is None else w_k, attention.W_V if w_v is None else w_v
        b_k, b_v = attention.b_K if b_k is None else b_k, attention.b_V if b_v is None else b_v
        self.w_q, self.b_q = _flat(attention.W_Q), _bias(attention.b_Q)
        self.w_k, self.b_k = _flat(w_k), _bias(b_k)
        self.w_v, self.b_v = _flat(w_v), _bias(b_v)
        self.w_o, self.b_o = attention.W_O, _bias(attention.b_O)
        self.rotary = layout.rotary(attention) if model.cfg.positional_embedding_type == "rotary" else None

    def normed(self, x: Float[Tensor, "n pos d_model"]) -> Float[Tensor, "n pos d_model"]:
        """What the heads read."""
        return normed(self.block.ln1, x)

    def queries(
        self, normed: Float[Tensor, "n query d_model"], at: Tensor | None
    ) -> Float[Tensor, "n head query d_head"]:
        """Queries at the positions `at` (None: all)."""
        return self._rotate(self._heads(normed, self.w_q, self.b_q), at).transpose(1, 2)

    def keys(
        self, normed: Float[Tensor, "n key d_model"], at: Tensor | None = None
    ) -> Float[Tensor, "n head key d_head"]:
        """Keys at the positions `at` (None: all); grouped ones repeated for each query head."""
        return self._repeated(self._rotate(self._heads(normed, self.w_k, self.b_k), at)).transpose(1, 2)

    def values(self, normed: Float[Tensor, "n key d_model"]) -> Float[Tensor, "n head key d_head"]:
        """Values at all positions; grouped ones repeated for each query head."""
        return self._repeated(self._heads(normed, self.w_v, self.b_v)).transpose(1, 2)

    def _heads(self, normed: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(normed, w, b).unflatten(2, (-1, self.d_head))

    def _repeated(self, x: Float[Tensor, "n pos group d_head"]) -> Float[Tensor, "n pos head d_head"]:
        groups = self.n_heads // x.shape[2]
        return x if groups == 1 else x.repeat_interleave(groups, dim=2)

    def _rotate(self, x: Float[Tensor, "n pos head d_head"], at: Tensor | None) -> Tensor:
        if self.rotary is None:
            return x
        cos, sin = (table[:, None] if at is None else table[at, None] for table in self.rotary)
        half = cos.shape[-1] // 2
        part = x[..., : 2 * half]
        turned = torch.empty_like(x) if 2 * half == x.shape[-1] else x.clone()
        torch.mul(part, cos, out=turned[..., : 2 * half])
        # The pair of dimension d is d + half: (a, b) → (a cos - b sin, b cos + a sin).
        turned[..., :half].addcmul_(part[..., half:], sin[..., :half], value=-1)
        turned[..., half : 2 * half].addcmul_(part[..., :half], sin[..., half:])
        return turned

    def z(
        self, x: Float[Tensor, "n pos d_model"], read: Int[Tensor, " query"] | None = None
    ) -> Float[Tensor, "n query head d_head"]:
        """The heads' outputs at the positions `read` (None: all)."""
        normed = self.normed(x)
        q = self.queries(normed if read is None else normed[:, read], read)
        return self.attend(q, self.keys(normed), self.values(normed), read).transpose(1, 2)

    def z_with_patterns_of_first(
        self, x: Float[Tensor, "n pos d_model"], n_first: int, read: Int[Tensor, " query"] | None = None
    ) -> Float[Tensor, "n query head d_head"]:
        """The heads' outputs if every row attended as the row in its place among the first `n_first` does; values are
        each row's own. The number of rows is a multiple of `n_first`."""
        normed = self.normed(x)
        first = normed[:n_first]
        q = self.queries(first if read is None else first[:, read], read)
        mask = self.layout.mask if read is None else self.layout.mask[read]
        scores = (q @ self.keys(first).transpose(2, 3)) * self.scale + mask
        pattern = scores.softmax(dim=-1, dtype=torch.float32).to(scores)
        values = self.values(normed).unflatten(0, (-1, n_first))  # (set of rows, first row, head, pos, d_head)
        return (pattern @ values).flatten(0, 1).transpose(1, 2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, read: Tensor | None = None
    ) -> Float[Tensor, "n head query d_head"]:
        """What queries at `read` (None: all) mix together: (n, head, query, d_head)."""
        if read is not None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.layout.mask[read], scale=self.scale)
        n = self.layout.context
        first = q[:, :, :n], k[:, :, :n], v[:, :, :n]
        context = F.scaled_dot_product_attention(*first, is_causal=True, scale=self.scale)
        if not self.layout.block:
            return context
        blocks = F.scaled_dot_product_attention(q[:, :, n:], k, v, attn_mask=self.layout.mask[n:], scale=self.scale)
        return torch.cat([context, blocks], dim=2)

    def attn_out(self, z: Float[Tensor, "*n query head d_head"]) -> Float[Tensor, "*n query d_model"]:
        """What the heads add to the residual stream."""
        out = z.flatten(-2) @ self.w_o.flatten(0, 1)
        return out if self.b_o is None else out + self.b_o

    def after_attention(
        self, resid_pre: Float[Tensor, "*n query d_model"], attn_out: Float[Tensor, "*m query d_model"]
    ) -> tuple[Tensor, Tensor | None]:
        """`resid_mid`, the residual stream after attention, and `mlp_out`, what the MLP adds to it (None if there is
        none).

        `attn_out` may have more leading dimensions than `resid_pre`. `mlp_out` has those of `resid_pre` where the MLP
        runs beside attention and does not see what it writes.
        """
        resid_mid = resid_pre + attn_out
        if self.attn_only:
            return resid_mid, None
        return resid_mid, _mlp(self.block.mlp, normed(self.block.ln2, resid_pre if self.parallel else resid_mid))

    def resid_post(
        self, resid_pre: Float[Tensor, "n query d_model"], z: Float[Tensor, "n query head d_head"]
    ) -> Float[Tensor, "n query d_model"]:
        """The residual stream after the layer, whose heads' outputs are `z`."""
        resid_mid, mlp_out = self.after_attention(resid_pre, self.attn_out(z))
        return resid_mid if mlp_out is None else resid_mid + mlp_out


def embed(
    model: HookedTransformer, tokens: Int[Tensor, "row pos"], layout: Layout, at: Int[Tensor, " pos"] | None = None
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before the first layer, of tokens at the positions `at` of a row (None: all)."""
    x = model.embed(tokens.to(layout.device))
    positions = layout.positions if at is None else layout.positions[at]
    return x + model.pos_embed.W_pos[positions] if model.cfg.positional_embedding_type == "standard" else x


@torch.no_grad()
def run_layers(
    model: HookedTransformer, tokens: Int[Tensor, "row pos"], layout: Layout, read: Int[Tensor, " read"] | None = None
) -> Float[Tensor, "row read d_model"]:
    """The residual stream after the last layer at the positions `read` (None: all), which are all that the last layer
    computes."""
    x = embed(model, tokens, layout)
    for i in range(model.cfg.n_layers):
        layer = Layer(model, i, layout)
        at = read if i == model.cfg.n_layers - 1 else None
        x = layer.resid_post(x if at is None else x[:, at], layer.z(x, at))
    return x


def normed(norm: Any, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    """`norm(x)`, a tenth of the time: TransformerLens' norms go over the tensor once for each step, to be hooked.

    Squares are summed in fp32 at least.
    """
    kind = type(norm).__name__  # TransformerLens 4 has no such classes to ask for
    if kind in ("RMSNorm", "RMSNormPre"):
        if x.device.type == "cuda":
            return F.rms_norm(x, x.shape[-1:], norm.w if kind == "RMSNorm" else None, norm.eps)
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        x = (x * squares.div_(x.shape[-1]).add_(norm.eps).rsqrt_()).to(x.dtype)
        return x.mul_(norm.w) if kind == "RMSNorm" else x
    if kind in ("LayerNorm", "LayerNormPre"):
        weights = (norm.w, norm.b) if kind == "LayerNorm" else (None, None)
        return F.layer_norm(x, x.shape[-1:], *weights, eps=norm.eps)
    return norm(x)


def _mlp(mlp: Any, x: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
    if type(mlp).__name__ != "GatedMLP" or mlp.cfg.is_layer_norm_activation():
        return mlp(x)
    inner = mlp.act_fn(x @ mlp.W_gate) * (x @ mlp.W_in)
    b_in, b_out = _bias(mlp.b_in), _bias(mlp.b_out)
    out = (inner if b_in is None else inner + b_in) @ mlp.W_out
    return out if b_out is None else out + b_out


def _flat(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "rows d_model"]:
    return W.detach().transpose(1, 2).flatten(0, 1).contiguous()


def _bias(b: Tensor) -> Tensor | None:
    """None for zeros, which Llama's biases are in TransformerLens; adding them would cost a pass over the output. On a
    GPU asking costs more than adding."""
    return b.detach().flatten() if b.device.type != "cpu" or bool(b.any()) else None
