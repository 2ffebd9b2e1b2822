"""What a model may do instead of copying: predict by how common tokens and pairs are, or by the text just read."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from copyscope.interp.forward.memory import logit_elements, within_memory
from copyscope.interp.forward.residual import final_residual, logits_of
from copyscope.interp.models.lens import HookedModel


class PairCounts(NamedTuple):
    """How often tokens followed each of some tokens in a corpus."""

    first: Int[np.ndarray, " first"]
    """The tokens that pairs begin with, in rising order."""
    counts: csr_array
    """(first, d_vocab): how often each token came next."""


class Divergences(NamedTuple):
    """KL divergence of the model from each rule, window by window, in nats."""

    unigram: Float[Tensor, " window"]
    bigram: Float[Tensor, " window"]


def unigram_shares(counts: Int[Tensor, " d_vocab"]) -> Float[Tensor, " d_vocab"]:
    """Share of each token in the corpus, one added to each count."""
    return (counts.double() + 1) / (counts.sum() + len(counts))


def copy_rule_losses(
    windows: Int[Tensor, "window pos"], shares: Float[Tensor, " d_vocab"]
) -> Float[Tensor, "window pos_less_1"]:
    """Loss of the in-context copy rule on natural text, in nats: a baseline without a model.

    The rule predicts t after a with (times t followed a in this window so far + share of t in the corpus) / (times a
    was followed + 1): what followed before, and how common tokens are where nothing did. Entry p is the loss of token
    p + 1.
    """
    before, after = windows[:, :-1], windows[:, 1:]
    earlier = torch.ones(before.shape[1], before.shape[1], dtype=torch.bool).tril(-1)
    same = (before[:, :, None] == before[:, None, :]) & earlier  # (window, place, earlier place)
    followed = (same & (after[:, :, None] == after[:, None, :])).sum(dim=2)
    return -((followed + shares[after]) / (same.sum(dim=2) + 1)).log()


@within_memory
@torch.no_grad()
def rule_divergences(
    model: HookedModel, windows: Int[Tensor, "window pos"], shares: Float[Tensor, " d_vocab"], pairs: PairCounts
) -> Divergences:
    """KL divergence from the corpus's unigram and bigram rules to the model, mean over the places of each window of
    natural text (after Edelman et al. 2024, arXiv 2402.11004, who take chains of their own): Σ r ln(r / p), p the
    model's next-token distribution.

    Unigram: r(t) the token's share in the corpus. Bigram: r(t | a) = (count of a t + share of t) / (count of a + 1).
    0 for a model that predicts by the rule. A model that has learnt more than a rule leaves it again.
    """
    u = shares / shares.sum()
    entropy_of_u = (u * u.log()).sum()
    out = torch.zeros(2, len(windows), dtype=torch.float64)
    size = max(1, logit_elements(model) // (4 * model.cfg.d_vocab))
    for i, window in enumerate(windows):
        residual = final_residual(model, window[None])[0, :-1]
        contexts = np.searchsorted(pairs.first, window[:-1].numpy())
        for start in range(0, len(residual), size):
            part = slice(start, start + size)
            logp = logits_of(model, residual[part]).float().log_softmax(dim=-1).double().cpu()
            counts = torch.from_numpy(pairs.counts[contexts[part]].toarray()).double()
            r = (counts + u) / (counts.sum(dim=1, keepdim=True) + 1)
            out[0, i] += (entropy_of_u - logp @ u).sum()
            out[1, i] += (r * (r.log() - logp)).sum()
        out[:, i] /= len(residual)
    return Divergences(*out)


def pair_counts(pieces: list[np.ndarray], first: Int[np.ndarray, " first"], d_vocab: int) -> PairCounts:
    """Counts the pairs of a token stream, given in pieces, that begin with one of `first`; pairs across pieces are left
    out."""
    first = np.unique(first)
    number = np.full(d_vocab, -1)
    number[first] = np.arange(len(first))
    total = csr_array((len(first), d_vocab), dtype=np.int64)
    for piece in pieces:
        row = number[piece[:-1]]
        held = row >= 0
        after = piece[1:][held].astype(np.int64)
        ones = np.ones(len(after), np.int64)
        total = total + csr_array((ones, (row[held], after)), shape=total.shape)  # equal places are added up
    return PairCounts(first, csr_array(total))
