"""A head's weights over chosen tokens: which token it would copy to which (OV) and which would look at which (QK)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.models.lens import HookedModel
from copyscope.training.errors import InputError

MAX_TOKENS = 48
"""Tokens on a side; the first of a prompt."""
DIGITS = 4


@torch.no_grad()
def head_matrices(
    model: HookedModel, layer: int, head: int, ids: Sequence[int], words: Callable[[Sequence[int]], list[str]]
) -> dict[str, Any]:
    """The full OV and QK circuits of one head (Elhage et al. 2021) over the different tokens of `ids`, JSON-safe.

    `tokens`: as text, `MAX_TOKENS` at most; `ov`[source][target]: by how much attending to the source raises the
    target's logit above the mean over the vocabulary, before the final norm's scale; `qk`[query][key]: the attention
    score of the pair, before softmax and at no distance (rotary positions left out). Both take each embedding at unit
    root mean square, with norm weights folded in. Raises InputError for a head that the model has not got. Cannot tell:
    what earlier layers add to the stream that the head reads, which for a later head is most of it.
    """
    w = head_weights(model).folded()
    n_layers, n_heads = w.W_V.shape[:2]
    if not (0 <= layer < n_layers and 0 <= head < n_heads):
        raise InputError(f"L{layer}H{head}: no such head; this model has L0H0 to L{n_layers - 1}H{n_heads - 1}")
    distinct = list(dict.fromkeys(ids))[:MAX_TOKENS]
    rows = w.W_E[distinct].float()
    if w.centred:
        rows = rows - rows.mean(-1, keepdim=True)
    rows = rows / rows.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
    directions = w.W_U.float().T[distinct] - w.W_U.float().mean(dim=1)
    W_Q, W_K, W_V, W_O = (matrix[layer, head].float() for matrix in (w.W_Q, w.W_K, w.W_V, w.W_O))
    ov = rows @ W_V @ W_O @ directions.T
    qk = (rows @ W_Q) @ (rows @ W_K).T / W_Q.shape[-1] ** 0.5
    rounded = [[[round(value, DIGITS) for value in row] for row in matrix.tolist()] for matrix in (ov, qk)]
    return {"tokens": words(distinct), "ov": rounded[0], "qk": rounded[1]}
