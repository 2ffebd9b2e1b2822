"""Prompts: which tokens are drawn, that they repeat as they should, and that the copying test has one right answer."""

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from copyscope.interp.measures.behavior import copying_test
from copyscope.interp.prompts.generate import natural_windows, random_token_vocab, repeated_random_tokens
from copyscope.training.errors import InputError


def test_vocab_by_count_leaves_out_both_ends_specials_and_the_unseen():
    counts = torch.arange(200)  # token i occurs i times; token 0 never
    vocab = random_token_vocab(counts, 200, special_ids=[199], drop=0.1)
    # 198 tokens occur and are not special; 20 go at each end.
    assert vocab.tolist() == list(range(21, 179))


def test_vocab_without_counts_goes_by_id():
    assert random_token_vocab(None, 103, special_ids=[0, 1, 2], drop=0.05).tolist() == list(range(8, 98))


def test_vocab_too_small():
    with pytest.raises(InputError, match="only 18 of 20"):
        random_token_vocab(None, 20)
    with pytest.raises(InputError, match="counts has 3 entries"):
        random_token_vocab(torch.tensor([1, 2, 3]), 20)


@examples(30)
@given(
    length=st.integers(1, 30),
    repeats=st.integers(1, 4),
    seed=st.integers(0, 1000),
    bos=st.sampled_from([None, 0]),
    size=st.integers(2, 60),
)
def test_repeated_random_tokens(length, repeats, seed, bos, size):
    vocab = torch.arange(100, 100 + size)
    tokens = repeated_random_tokens(vocab, length, 3, seed, bos, repeats)
    first = int(bos is not None)
    assert tokens.shape == (3, first + length * repeats)
    assert bos is None or (tokens[:, 0] == bos).all()
    parts = tokens[:, first:].view(3, repeats, length)
    assert (parts == parts[:, :1]).all()
    assert torch.isin(tokens[:, first:], vocab).all()
    if size >= length:
        assert all(len(set(row.tolist())) == length for row in parts[:, 0])
    assert torch.equal(tokens, repeated_random_tokens(vocab, length, 3, seed, bos, repeats))


def test_seeds_differ():
    vocab = torch.arange(1000)
    assert not torch.equal(repeated_random_tokens(vocab, 20, 2, 0), repeated_random_tokens(vocab, 20, 2, 1))


def occurrences(part, context):
    n = len(part)
    return sum(context[i : i + n] == part for i in range(len(context) - n + 1))


@pytest.mark.parametrize(
    ("n_ctx", "bos", "wanted"), [(1024, None, 50), (1024, 7, 50), (512, 7, 27), (55, 7, 2), (54, None, 2)]
)
def test_copying_test(n_ctx, bos, wanted):
    test = copying_test(torch.arange(10, 400), n_ctx, n_samples=23, seed=3, bos_id=bos)
    first = int(bos is not None)
    assert test.n_subsequences == wanted
    assert test.has_bos == (bos is not None)
    assert test.tokens.shape == (23, first + 18 * wanted + 12)
    assert test.tokens.shape[1] + 6 <= n_ctx
    asked = list(range(0, wanted, 5))
    assert test.index.tolist() == (asked * 23)[:23]
    for tokens, suffix, index in zip(test.tokens.tolist(), test.suffix.tolist(), test.index.tolist(), strict=True):
        context, prefix = tokens[first:-12], tokens[-12:]
        assert context[18 * index : 18 * index + 18] == prefix + suffix
        for i in range(wanted):
            assert occurrences(context[18 * i : 18 * i + 12], context) == 1
            assert occurrences(context[18 * i + 12 : 18 * i + 18], context) == 1
    assert test.context.tolist() == [i // len(asked) for i in range(23)]


def test_copying_test_rejects_contexts_with_repeats():
    # With 3 ids most contexts hold some 6-gram twice, so an unchecked draw would fail here.
    test = copying_test([0, 1, 2], 54, n_samples=20, seed=0)
    for tokens in test.tokens.tolist():
        assert all(occurrences(tokens[18 * i + 12 : 18 * i + 18], tokens[:36]) == 1 for i in range(2))


def test_copying_test_bad_input():
    with pytest.raises(InputError, match="at least 55 positions"):
        copying_test(range(100), 54, bos_id=0)
    with pytest.raises(InputError, match="too few"):
        copying_test([0, 1], 1024)
    with pytest.raises(InputError, match="vocab"):
        copying_test([5, 5], 1024)


def test_natural_windows():
    windows = torch.randint(0, 50, (2, 10))
    assert torch.equal(natural_windows(windows.int(), 50, 16), windows)
    for bad, message in [
        (windows[:0], "none"),
        (windows, "n_ctx=8"),
        (windows + 50, "outside 0 to 49"),
        (windows[:, :3], "3 tokens"),
    ]:
        with pytest.raises(InputError, match=message):
            natural_windows(bad, 50, 8 if "n_ctx" in message else 16)
