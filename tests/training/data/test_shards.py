"""Sharded arrays are the same as one array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.data import shards
from copyscope.training.data.shards import ShardedArray, tokens_file, write_shards

SLICES = st.tuples(st.none() | st.integers(-30, 30), st.none() | st.integers(-30, 30))


@given(st.lists(st.integers(0, 6), max_size=5), st.lists(SLICES, min_size=1, max_size=10))
def test_a_slice_is_that_of_the_whole(lengths: list[int], slices: list[tuple[int | None, int | None]]) -> None:
    whole = np.arange(sum(lengths), dtype=np.uint16)
    array = ShardedArray(np.split(whole, np.cumsum(lengths)[:-1]) if lengths else [], "uint16")
    assert len(array) == len(whole)
    for start, stop in slices:
        found = array[start:stop]
        assert found.tolist() == whole[start:stop].tolist()
        assert found.dtype == np.uint16


def test_only_steps_of_one() -> None:
    with pytest.raises(ValueError, match="step 1"):
        ShardedArray([np.arange(5)], "int64")[::2]


def test_shards_hold_whole_documents_up_to_their_size(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 10)
    lengths = [4, 6, 1, 30, 3, 3, 3, 3]
    documents = [np.full(length, number, np.uint16) for number, length in enumerate(lengths)]
    told = []
    found = write_shards(tmp_path, "train", documents, [], lambda done: told.append(len(done)))
    assert [shard.tokens for shard in found] == [10, 1, 30, 9, 3]
    assert [shard.documents for shard in found] == [2, 1, 1, 3, 1]
    assert told == [1, 2, 3, 4, 5]
    read = [np.fromfile(tokens_file(tmp_path, "train", number), np.uint16) for number in range(5)]
    assert np.concatenate(read).tolist() == np.concatenate(documents).tolist()
