"""Interventions during training: heads silenced or clamped, and the loss of predictable tokens left out."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copyscope.training.config import InterventionConfig


class Intervention(NamedTuple):
    """What is done in an update."""

    heads: dict[int, list[int]]
    """Layer → heads."""
    mode: str
    skip_predictable: bool

    def apply(
        self,
        layer: int,
        mixed: Float[Tensor, "batch pos head d_head"],
        normed: Float[Tensor, "batch pos d_model"],
        w_v: Float[Tensor, "rows d_model"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        """The heads' outputs of a layer, with those of the chosen heads replaced.

        `w_v`: the value matrices, d_head rows a key-value head; `normed`: what they read. A clamped head keeps its
        values and its output matrix, and learns both; its queries and keys get no gradient.
        """
        chosen = self.heads.get(layer)
        if not chosen:
            return mixed
        _, _, n_heads, d_head = mixed.shape
        per_value = n_heads // (len(w_v) // d_head)
        mixed = mixed.clone()
        for heads, value_heads in _indices(chosen, per_value, mixed.device):
            if self.mode == "zero":
                mixed[:, :, heads] = 0.0
                continue
            rows = w_v.unflatten(0, (-1, d_head))[value_heads].flatten(0, 1)
            values = F.linear(normed, rows).unflatten(2, (-1, d_head))
            if self.mode == "previous_token":
                mixed[:, :, heads] = torch.cat([values[:, :1], values[:, :-1]], dim=1)
            else:
                mixed[:, :, heads] = _running_mean(values)
        return mixed


def _indices(chosen: list[int], per_value: int, device: torch.device) -> list[tuple[Any, Any]]:
    """Which heads, and their value heads, at a time: all at once on a CPU; on a GPU, to which a list of them would be
    copied while the CPU waits, one by one."""
    if device.type == "cpu":
        return [(chosen, [head // per_value for head in chosen])]
    return [(slice(head, head + 1), slice(head // per_value, head // per_value + 1)) for head in chosen]


def _running_mean(values: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
    """At each position the mean of the values up to it."""
    pos = values.shape[1]
    if values.device.type == "cpu":
        sums = values.float().cumsum(dim=1)
    else:  # where cumsum need not add up in the same order each time
        earlier = torch.ones(pos, pos, device=values.device).tril()
        sums = torch.einsum("qk,bkhd->bqhd", earlier, values.float())
    visible = torch.arange(1, pos + 1, device=values.device)[:, None, None]
    return (sums / visible).to(values.dtype)


def active(config: InterventionConfig, step: int) -> Intervention | None:
    """What is done in the update that starts from `step`; None for plain training."""
    if step < config.from_step or (config.until_step is not None and step >= config.until_step):
        return None
    if not config.heads and not config.skip_predictable:
        return None
    heads: dict[int, list[int]] = {}
    for layer, head in config.heads:
        heads.setdefault(layer, []).append(head)
    return Intervention(heads, config.mode, config.skip_predictable)


def predictable(sequences: Int[Tensor, "batch pos_plus_1"]) -> Bool[Tensor, "batch pos"]:
    """Which next tokens a perfect induction head could get right: entry p says whether the pair of tokens p, p + 1
    occurred earlier in the sequence. `data.repeats.pair_occurred_earlier`, where the tokens are."""
    pairs = sequences[:, :-1] << 32 | sequences[:, 1:]
    order = pairs.argsort(dim=1, stable=True)  # equal pairs side by side, the earliest first
    ranked = pairs.gather(1, order)
    earlier = torch.zeros_like(pairs, dtype=torch.bool)
    return earlier.scatter_(1, order[:, 1:], ranked[:, 1:] == ranked[:, :-1])
