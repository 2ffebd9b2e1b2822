"""The order of data is a pure function of seed and step."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.data.batches import batch, windows
from copyscope.training.data.repeats import repeat_value
from copyscope.training.errors import InputError

STREAM = np.arange(1001, dtype=np.uint16)


@given(st.integers(0, 5), st.integers(0, 400), st.integers(1, 3))
def test_the_stream_is_the_same_for_every_batch_size(seed: int, step: int, choice: int) -> None:
    one = torch.cat([batch(STREAM, 10, 1, seed, 6 * step + i, choice) for i in range(6)])
    two = torch.cat([batch(STREAM, 10, 2, seed, 3 * step + i, choice) for i in range(3)])
    assert torch.equal(one, batch(STREAM, 10, 6, seed, step, choice))
    assert torch.equal(one, two)


def test_an_epoch_reads_the_whole_text_once_and_the_next_cuts_it_elsewhere() -> None:
    epochs = [
        [int(batch(STREAM, 10, 4, 0, s)[i, 0]) for s in range(25 * e, 25 * e + 25) for i in range(4)] for e in range(9)
    ]
    assert sorted(epochs[0]) == list(range(0, 1000, 10))
    offsets = [min(epoch) for epoch in epochs]
    assert len(set(offsets)) > 4
    for epoch, offset in zip(epochs, offsets, strict=True):
        # The last window has no room to move by the offset.
        assert sorted(epoch) == sorted([*range(offset, 980 + offset + 1, 10), 990])
        assert epoch != sorted(epoch)
    assert epochs[0] != [int(batch(STREAM, 10, 4, 1, s)[i, 0]) for s in range(25) for i in range(4)]


def test_a_sequence_has_the_token_after_it() -> None:
    rows = batch(STREAM, 10, 8, 3, 2)
    assert rows.shape == (8, 11)
    assert torch.equal(rows[:, 1:], rows[:, :-1] + 1)


def test_repeat_value_of_known_windows() -> None:
    rows = np.array([[1, 2, 3, 4, 5], [1, 2, 1, 2, 1], [7, 7, 7, 7, 7]])
    assert repeat_value(rows).tolist() == [0, 2, 3]  # of the second: the second (1, 2) and the second (2, 1)
    assert repeat_value(rows[1:2], np.array([[9, 9, 0.5, 0.25]])).tolist() == [0.75]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30))
def test_repeat_value_is_that_of_a_walk_through_the_window(tokens: list[int]) -> None:
    weights = np.random.default_rng(0).random(len(tokens) - 1)
    seen, value = set(), 0.0
    for pair, weight in zip(pairwise(tokens), weights, strict=True):
        value += weight if pair in seen else 0.0
        seen.add(pair)
    assert repeat_value(np.array([tokens]), weights[None])[0] == pytest.approx(value)


@pytest.mark.parametrize("weighted", [False, True])
def test_repeat_choice_takes_the_candidate_worth_most(weighted: bool) -> None:
    draw = np.random.default_rng(0)
    stream = draw.integers(0, 6, 2001).astype(np.uint16)
    surprisal = draw.random(2001).astype(np.float16) if weighted else None
    place = {stream[s : s + 21].tobytes(): s for s in range(1981)}

    def value(row: torch.Tensor) -> float:
        window = row.numpy().astype(np.uint16)
        at = place[window.tobytes()]
        return repeat_value(window[None], None if surprisal is None else surprisal[None, at + 1 : at + 21])[0]

    plain = [batch(stream, 20, 1, 5, i)[0] for i in range(30)]
    for i in range(10):
        chosen = batch(stream, 20, 1, 5, i, 3, surprisal)[0]
        assert value(chosen) == max(value(row) for row in plain[3 * i : 3 * i + 3])


def test_too_little_text_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"too small.*one batch needs 200"):
        batch(STREAM, 10, 200, 0, 0)
    with pytest.raises(InputError, match="held-out"):
        windows(STREAM[:5], 10, 4, 0)
