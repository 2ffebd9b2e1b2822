"""One layer of a model, cut where ablations reach in: after the heads' outputs and after the MLP.

Works on packed rows (`interp.questions`), computes only the queries that are read, and can hold attention patterns.
For models that `interp.fused.can_fuse` accepts and nobody's hooks are on: hook points are passed by.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from interp.questions import Question


class Layout:
    """What all layers need to know of a question's rows, on the model's device."""

    def __init__(self, question: Question, device: torch.device) -> None:
        self.context, self.block = question.context, question.block
        self.positions = question.positions.to(device)
        self.visible = question.visible.to(device)
        self.mask = torch.zeros(self.visible.shape, device=device).masked_fill_(~self.visible, float("-inf"))


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


def _flat(W: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "rows d_model"]:
    return W.detach().transpose(1, 2).flatten(0, 1).contiguous()
