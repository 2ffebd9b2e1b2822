"""Rules that a model may follow instead of copying, against loops; a model that follows one has no divergence."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from handmade import induction_model

from copyscope.interp.measures.text_rules import copy_rule_losses, pair_counts, rule_divergences, unigram_shares

WINDOWS = torch.randint(0, 6, (3, 20), generator=torch.Generator().manual_seed(0))
SHARES = unigram_shares(torch.tensor([5, 1, 0, 3, 4, 2]))


def test_the_copy_rule_against_a_loop() -> None:
    losses = copy_rule_losses(WINDOWS, SHARES)
    for window, row in zip(WINDOWS.tolist(), losses.tolist(), strict=True):
        for p, loss in enumerate(row):
            after = [window[i + 1] for i in range(p) if window[i] == window[p]]
            wanted = (after.count(window[p + 1]) + SHARES[window[p + 1]].item()) / (len(after) + 1)
            assert loss == pytest.approx(-math.log(wanted), rel=1e-9)


def test_pairs_are_counted_in_pieces() -> None:
    pieces = [np.array([1, 2, 1, 2, 3], np.uint16), np.array([2, 2, 5], np.uint16)]
    pairs = pair_counts(pieces, np.array([2, 1]), 6)
    assert pairs.first.tolist() == [1, 2]
    assert pairs.counts.toarray().tolist() == [[0, 0, 2, 0, 0, 0], [0, 1, 1, 1, 0, 1]]


def test_a_model_that_follows_a_rule_has_no_divergence_from_it() -> None:
    model: Any = induction_model(n_ctx=64, d_vocab=6)  # codes without overlap, so that logits can be set
    for parameter in model.parameters():
        parameter.zero_()
    pairs = pair_counts([WINDOWS.flatten().numpy()], np.arange(6), 6)
    counts = torch.from_numpy(pairs.counts.toarray()).double()
    bigram = (counts + SHARES) / (counts.sum(dim=1, keepdim=True) + 1)
    model.embed.W_E[:, :6] = torch.eye(6)
    model.unembed.W_U[:6] = bigram.log().float()
    found = rule_divergences(model, WINDOWS, SHARES, pairs)
    assert found.bigram.abs().max() < 1e-6
    assert found.unigram.min() > 0.01
    model.unembed.W_U[:6] = SHARES.log().float()
    found = rule_divergences(model, WINDOWS, SHARES, pairs)
    assert found.unigram.abs().max() < 1e-6
    wanted = (bigram * (bigram.log() - SHARES.log())).sum(dim=1)[WINDOWS[:, :-1]].mean(dim=1)
    assert torch.allclose(found.bigram, wanted, atol=1e-6)
