"""What a model predicts after each token of a prompt: the right token's probability and loss, the five most probable
tokens, and the same read from the residual stream after each layer (logit lens)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.models.lens import HookedModel

TOP = 5
"""Tokens listed after each position."""
DIGITS = 4
"""Decimals of a probability."""


@torch.no_grad()
def predictions(model: HookedModel, ids: Sequence[int], words: Callable[[Sequence[int]], list[str]]) -> dict[str, Any]:
    """JSON-safe predictions of `model` on a prompt of tokens `ids`; `words` turns ids into text that can be shown.

    `loss` (nats) and `p` (in [0, 1]) of the right next token, after each token but the last; `top`: after each token,
    the `TOP` most probable next ones as [text, probability]; `layers`: for the embedding and after each layer, `p` and
    `top` ([text, probability], one a token) as if the residual stream there were the last: final norm, then unembedding
    (nostalgebraist 2020). Cannot tell: what a layer computes for later ones in a form that the unembedding cannot read.
    """
    tokens = torch.tensor([list(ids)], dtype=torch.long, device=next(model.parameters()).device)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers))]
    streams: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any) -> None:
        streams[hook.name] = value.detach()

    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, keep) for name in names])
    log_probs = _log_probs(logits)
    right = torch.tensor(list(ids[1:]), dtype=torch.long, device=log_probs.device)
    lenses = [_log_probs(model.unembed(model.ln_final(streams[name]))) for name in names]
    return {
        "loss": _rounded(-_of(log_probs, right)),
        "p": _rounded(_of(log_probs, right).exp()),
        "top": [list(map(list, zip(*row, strict=True))) for row in zip(*_top(log_probs, TOP, words), strict=True)],
        "layers": [
            {
                "p": _rounded(_of(lens, right).exp()),
                "top": [[row[0], value[0]] for row, value in zip(*_top(lens, 1, words), strict=True)],
            }
            for lens in lenses
        ],
    }


def _log_probs(logits: Float[Tensor, "1 pos d_vocab"]) -> Float[Tensor, "pos d_vocab"]:
    return logits[0].float().log_softmax(-1)


def _of(log_probs: Float[Tensor, "pos d_vocab"], right: Int[Tensor, " next"]) -> Float[Tensor, " next"]:
    """Log-probability of each right token, told after the token before it."""
    return log_probs[:-1].gather(1, right[:, None])[:, 0]


def _top(
    log_probs: Float[Tensor, "pos d_vocab"], count: int, words: Callable[[Sequence[int]], list[str]]
) -> tuple[list[list[str]], list[list[float]]]:
    """The most probable tokens as text, and their probabilities, a row a position."""
    best = log_probs.topk(min(count, log_probs.shape[-1]), dim=-1)
    return [words(row) for row in best.indices.tolist()], [_rounded(row.exp()) for row in best.values]


def _rounded(values: Float[Tensor, " value"]) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
