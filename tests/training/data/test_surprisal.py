"""Surprisal is that of the pair counts, however the tokens are split and however many pairs fit in memory."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.data import surprisal
from copyscope.training.data.shards import ShardedArray
from copyscope.training.data.surprisal import bigram_surprisal


def computed(stream: np.ndarray, vocab_size: int, cuts: list[int]) -> np.ndarray:
    tokens = ShardedArray(np.split(stream, cuts), "uint16")
    into = [np.full(len(shard), 7, np.float16) for shard in tokens.shards]
    bigram_surprisal(tokens, vocab_size, into)
    return np.concatenate(into)


def at_once(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """All in memory."""
    before, after = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    _, which, pair_counts = np.unique(before * vocab_size + after, return_inverse=True, return_counts=True)
    given = np.bincount(before, minlength=vocab_size) + 0.01 * vocab_size
    values = np.log(given[before]) - np.log(pair_counts[which] + 0.01)
    return np.concatenate([[0.0], values]).astype(np.float16)


@given(
    stream=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    cuts=st.lists(st.integers(1, 199), max_size=3),
    pairs_at_once=st.integers(1, 60),
    tokens_at_once=st.integers(1, 60),
)
def test_the_values_do_not_depend_on_the_pieces(
    stream: list[int], cuts: list[int], pairs_at_once: int, tokens_at_once: int
) -> None:
    tokens = np.array(stream, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surprisal, "PAIRS_AT_ONCE", pairs_at_once)
        patch.setattr(surprisal, "_TOKENS_AT_ONCE", tokens_at_once)
        found = computed(tokens, 7, sorted({cut for cut in cuts if cut < len(stream)}))
    assert found.tolist() == at_once(tokens, 7).tolist()


def test_the_values_are_those_of_the_counts() -> None:
    stream = np.random.default_rng(0).integers(0, 5, 400).astype(np.uint16)
    found = computed(stream, 5, [150])
    assert found[0] == 0
    for i in (1, 77, 150, 399):
        a, b = stream[i - 1], stream[i]
        pairs = list(pairwise(stream))
        share = (pairs.count((a, b)) + 0.01) / (sum(x == a for x, _ in pairs) + 0.05)
        assert found[i] == pytest.approx(-np.log(share), rel=1e-2)
