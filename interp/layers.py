"""A model's layers as plain functions of tensors, for runs that nobody's hooks watch.

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
from transformer_lens import HookedTransformer

from interp.fused import can_fuse
from interp.models import HookedModel

TOKENS_AT_ONCE = 2048
"""Tokens of a batch: fewer waste the products of a small model, more fill memory with activations of a large one."""


def is_hooked(model: HookedModel) -> bool:
    """Whether somebody's hooks are on the model, so that its activations may depend on batch and position."""
    return any(point.fwd_hooks for point in model.hook_dict.values()) or bool(model._forward_pre_hooks)


def can_run(model: HookedModel) -> TypeGuard[HookedTransformer]:
    """Whether layers may stand for the model: plain causal attention and nobody's hooks on it."""
    return isinstance(model, HookedTransformer) and can_fuse(model) and not is_hooked(model)


def slices(n_rows: int, n_pos: int) -> Iterator[slice]:
    """Slices of `n_rows` rows of `n_pos` tokens, `TOKENS_AT_ONCE` tokens each; at least one row."""
    size = max(1, TOKENS_AT_ONCE // n_pos)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))


class Layout:
    """How the positions of a row hang together: `context` of them, then blocks of `block` positions, each of which
    continues the context and sees nothing of the other blocks. Without blocks a row is one prompt."""

    def __init__(self, context: int, block: int = 0, length: int | None = None, device: Any = "cpu") -> None:
        self.context, self.block, self.length = context, block, context if length is None else length
        self.device = torch.device(device or "cpu")

    @cached_property
    def positions(self) -> Int[Tensor, "pos"]:
        """Where each token of a row stands in its own prompt."""
        n_blocks = (self.length - self.context) // max(1, self.block)
        inside = self.context + torch.arange(self.block, device=self.device).repeat(n_blocks)
        return torch.cat([torch.arange(self.context, device=self.device), inside])

    @cached_property
    def mask(self) -> Float[Tensor, "query key"]:
        """0 where a query sees a key, else minus infinity: causal, and from a block only the context and the block."""
        block = torch.zeros(self.length, dtype=torch.long, device=self.device)
        if self.block:
            block[self.context :] = 1 + torch.arange(self.length - self.context, device=self.device) // self.block
        causal = torch.ones(self.length, self.length, dtype=torch.bool, device=self.device).tril()
        visible = causal & ((block[None] == 0) | (block[None] == block[:, None]))
        return torch.zeros(visible.shape, device=self.device).masked_fill_(~visible, float("-inf"))


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
        self.w_q, self.b_q = _flat(attention.W_Q), attention.b_Q.flatten()
        self.w_kv, self.b_kv = torch.cat([_flat(w_k), _flat(w_v)]), torch.cat([b_k.flatten(), b_v.flatten()])
        self.w_o, self.b_o = attention.W_O, attention.b_O
        self.rotary = None
        if model.cfg.positional_embedding_type == "rotary":
            longest = int(layout.positions.max()) + 1
            attention.apply_rotary(self.w_q.new_zeros(1, longest, 1, self.d_head))  # lengthens the tables if need be
            self.rotary = attention.rotary_cos[layout.positions], attention.rotary_sin[layout.positions]
            self.turned, self.rotary_dim = attention.rotate_every_two, model.cfg.rotary_dim

    def queries(
        self, normed: Float[Tensor, "n query d_model"], at: Tensor | None
    ) -> Float[Tensor, "n head query d_head"]:
        """Queries (n, head, query, d_head) at the positions `at` (None: all)."""
        q = F.linear(normed, self.w_q, self.b_q).unflatten(2, (self.n_heads, self.d_head))
        return self._rotate(q, at).transpose(1, 2)

    def keys_values(self, normed: Float[Tensor, "n key d_model"]) -> tuple[Tensor, Tensor]:
        """Keys and values, (n, head, key, d_head) each."""
        k, v = F.linear(normed, self.w_kv, self.b_kv).unflatten(2, (2, -1, self.d_head)).unbind(dim=2)
        k = self._rotate(k, None)
        if k.shape[2] != self.n_heads:
            groups = self.n_heads // k.shape[2]
            k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        return k.transpose(1, 2), v.transpose(1, 2)

    def inputs(self, x: Float[Tensor, "n pos d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values at all positions, (n, head, pos, d_head) each."""
        normed = self.block.ln1(x)
        return self.queries(normed, None), *self.keys_values(normed)

    def _rotate(self, x: Float[Tensor, "n pos head d_head"], at: Tensor | None) -> Tensor:
        if self.rotary is None:
            return x
        cos, sin = (table[:, None] if at is None else table[at, None] for table in self.rotary)
        part = x[..., : self.rotary_dim]
        turned = torch.addcmul(part * cos, self.turned(part), sin)
        return turned if self.rotary_dim == x.shape[-1] else torch.cat([turned, x[..., self.rotary_dim :]], dim=-1)

    def z(
        self, x: Float[Tensor, "n pos d_model"], read: Int[Tensor, "query"] | None = None, held: int = 0
    ) -> Float[Tensor, "n query head d_head"]:
        """The heads' outputs at the positions `read` (None: all).

        With `held`, attention patterns are those of the first `held` rows, for every `held` rows after them too.
        """
        normed = self.block.ln1(x)
        k, v = self.keys_values(normed[:held] if held else normed)
        if held:
            v = self.keys_values(normed)[1]
            normed = normed[:held]
        q = self.queries(normed if read is None else normed[:, read], read)
        if held:
            mask = self.layout.mask if read is None else self.layout.mask[read]
            pattern = ((q @ k.transpose(2, 3)) * self.scale + mask).softmax(dim=-1)
            mixed = pattern @ v.unflatten(0, (-1, held))
            return mixed.flatten(0, 1).transpose(1, 2)
        return self.attend(q, k, v, read).transpose(1, 2)

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

    def write(self, z: Float[Tensor, "*n query head d_head"]) -> Float[Tensor, "*n query d_model"]:
        """What the heads add to the residual stream."""
        return z.flatten(-2) @ self.w_o.flatten(0, 1) + self.b_o

    def rest(
        self, x: Float[Tensor, "*n query d_model"], attention: Float[Tensor, "*m query d_model"]
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream after attention, and what the MLP adds to it (None if there is none).

        `attention` may have more leading dimensions than `x`.
        """
        mid = x + attention
        if self.attn_only:
            return mid, None
        return mid, self.block.mlp(self.block.ln2(x if self.parallel else mid))


def embed(model: HookedTransformer, tokens: Int[Tensor, "row pos"], layout: Layout) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before the first layer."""
    x = model.embed(tokens.to(layout.device))
    return x + model.pos_embed.W_pos[layout.positions] if model.cfg.positional_embedding_type == "standard" else x


@torch.no_grad()
def run_layers(
    model: HookedTransformer, tokens: Int[Tensor, "row pos"], layout: Layout, read: Int[Tensor, "read"] | None = None
) -> Float[Tensor, "row read d_model"]:
    """The residual stream after the last layer at the positions `read` (None: all), which are all that the last layer
    computes."""
    x = embed(model, tokens, layout)
    for i in range(model.cfg.n_layers):
        layer = Layer(model, i, layout)
        at = read if i == model.cfg.n_layers - 1 else None
        attention = layer.write(layer.z(x, at))
        mid, written = layer.rest(x if at is None else x[:, at], attention)
        x = mid if written is None else mid + written
    return x


def _flat(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "rows d_model"]:
    return W.detach().transpose(1, 2).flatten(0, 1).contiguous()
