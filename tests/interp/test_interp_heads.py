"""Attention measures: perfect heads score 1, uniform ones what uniform attention gets; equal to a slow version."""

import pytest
import torch
from handmade import induction_model, llama, saved
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.heads import (
    ATTENTION_MEASURES,
    MEASURES,
    attention_weights,
    duplicate_token,
    induction_attention,
    null_weights,
    prefix_matching_mean,
    prefix_matching_sum,
    previous_token,
    score_heads,
    uniform_value,
)
from interp.models import load_hooked
from interp.prompts import repeated_random_tokens
from training.checkpoints import InputError

FUNCTIONS = {
    f.__name__: f
    for f in (induction_attention, prefix_matching_sum, prefix_matching_mean, previous_token, duplicate_token)
}


def looking_at(tokens, target):
    """Pattern of one head that puts all attention where `target(row, i)` says, on itself where that is None."""
    batch, n = tokens.shape
    pattern = torch.zeros(batch, 1, n, n)
    for b, row in enumerate(tokens.tolist()):
        for i in range(n):
            j = target(row, i)
            pattern[b, 0, i, i if j is None else j] = 1
    return pattern


def after_first(row, i):
    return row.index(row[i]) + 1 if row[i] in row[:i] else None


def uniform(batch, n):
    visible = torch.ones(n, n).tril()
    return (visible / visible.sum(dim=1, keepdim=True)).expand(batch, 1, n, n)


PAIRS = repeated_random_tokens(torch.arange(1, 50), 8, 3, bos_id=0)
QUADS = repeated_random_tokens(torch.arange(1, 50), 5, 3, bos_id=0, repeats=4)


def test_perfect_induction_head():
    head = looking_at(PAIRS, after_first)
    assert induction_attention(head, PAIRS).item() == pytest.approx(1)
    assert prefix_matching_sum(head, PAIRS).item() == pytest.approx(1)
    assert prefix_matching_mean(head, PAIRS).item() == pytest.approx(1)
    assert previous_token(head, PAIRS).item() == 0
    assert duplicate_token(head, PAIRS).item() == 0


def test_perfect_induction_head_on_four_repeats():
    head = looking_at(QUADS, after_first)
    assert induction_attention(head, QUADS).item() == pytest.approx(1)
    assert prefix_matching_sum(head, QUADS).item() == pytest.approx(1)
    # One of 1, 2 and 3 targets is hit in the second, third and fourth repeat.
    assert prefix_matching_mean(head, QUADS).item() == pytest.approx(3 / 6)


def test_previous_and_duplicate_heads():
    previous = looking_at(PAIRS, lambda row, i: i - 1 if i else None)
    assert previous_token(previous, PAIRS).item() == pytest.approx(1)
    duplicate = looking_at(PAIRS, lambda row, i: row.index(row[i]) if row[i] in row[:i] else None)
    assert duplicate_token(duplicate, PAIRS).item() == pytest.approx(1)
    assert induction_attention(duplicate, PAIRS).item() == 0


def test_uniform_head_scores_one_over_position():
    n, half = PAIRS.shape[1], 8
    flat = uniform(3, n)
    second_half = torch.tensor([1 / (i + 1) for i in range(1 + half, n)])
    assert induction_attention(flat, PAIRS).item() == pytest.approx(second_half.mean().item())
    all_but_first = torch.tensor([1 / (i + 1) for i in range(1, n)])
    assert previous_token(flat, PAIRS).item() == pytest.approx(all_but_first.mean().item())
    for name, function in FUNCTIONS.items():
        for tokens in (PAIRS, QUADS):
            value = function(uniform(3, tokens.shape[1]), tokens).item()
            assert value == pytest.approx(uniform_value(attention_weights(name, tokens)))


def test_nothing_repeats():
    tokens = torch.arange(10)[None]
    for name in set(FUNCTIONS) - {"previous_token"}:
        assert FUNCTIONS[name](uniform(1, 10), tokens).item() == 0


def targets(name, row, i):
    earlier = [j for j in range(i) if row[j] == row[i]]
    if name == "previous_token":
        return [i - 1] if i else []
    if name == "duplicate_token":
        return earlier
    if name == "induction_attention":
        earlier = earlier[:1]
    return [j + 1 for j in earlier if j + 1 < i]


def slow(name, pattern, tokens):
    sums, pairs = [], []
    for b, row in enumerate(tokens.tolist()):
        for i in range(len(row)):
            hit = [pattern[b, 0, i, j].item() for j in targets(name, row, i)]
            pairs += hit
            sums += [sum(hit)] if hit else []
    values = pairs if name == "prefix_matching_mean" else sums
    return sum(values) / len(values) if values else 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=1, max_size=3), st.integers(0, 99))
def test_equal_to_a_slow_version(rows, seed):
    tokens = torch.tensor(rows)
    noise = torch.randn(len(rows), 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    pattern = noise.masked_fill(torch.ones(9, 9).triu(1).bool(), -1e9).softmax(dim=-1)
    for name, function in FUNCTIONS.items():
        value = function(pattern, tokens).item()
        assert value == pytest.approx(slow(name, pattern, tokens), abs=1e-6)
        assert 0 <= value <= 1 + 1e-6


@pytest.mark.parametrize("name", ATTENTION_MEASURES)
@pytest.mark.parametrize("tokens", [PAIRS, QUADS])
def test_null_has_as_many_targets_elsewhere(name, tokens):
    true, null = attention_weights(name, tokens) > 0, null_weights(name, tokens, seed=1) > 0
    assert not (true & null).any()
    assert not null[:, :, 0].any()
    n = tokens.shape[1]
    assert not (null & torch.ones(n, n, dtype=torch.bool).triu()).any()
    kept = null.any(dim=-1)
    assert kept.any()
    assert torch.equal(null.sum(dim=-1)[kept], true.sum(dim=-1)[kept])
    assert torch.equal(null, null_weights(name, tokens, seed=1) > 0)
    assert not torch.equal(null, null_weights(name, tokens, seed=2) > 0)


def test_hand_built_circuit_through_score_heads():
    table = score_heads(induction_model(), vocab=range(1, 600), bos_id=0, n_prompts=3)
    value = {(r["layer"], r["head"], r["measure"]): r["value"] for r in table.iter_rows(named=True)}
    assert len(value) == 4 * len(MEASURES)
    assert value[0, 0, "previous_token"] > 0.99
    assert value[1, 0, "induction_attention"] > 0.99
    assert value[1, 0, "prefix_matching_sum"] > 0.99
    assert value[1, 0, "eigenvalue_positivity_raw"] == pytest.approx(1, abs=1e-4)
    assert value[1, 0, "induction_score"] > 0.99
    assert value[1, 0, "induction_attention_null"] < 0.01
    assert value[1, 0, "induction_attention_selectivity"] > 50
    assert value[0, 1, "induction_attention_selectivity"] == pytest.approx(1, abs=1e-3)
    assert value[0, 1, "induction_attention_null"] == pytest.approx(value[0, 1, "induction_attention"], rel=0.01)
    assert value[0, 1, "eigenvalue_positivity_raw"] == 0


def test_score_heads_equals_patterns_from_a_cache(tmp_path):
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    vocab = torch.arange(5, 85)
    table = score_heads(model, ["induction_attention", "prefix_matching_mean"], seed=4, vocab=vocab, n_prompts=5)
    for name, length, repeats in (("induction_attention", 64, 2), ("prefix_matching_mean", 25, 4)):
        tokens = repeated_random_tokens(vocab, length, 5, 4, None, repeats)
        _, cache = model.run_with_cache(tokens)
        for layer in range(2):
            wanted = FUNCTIONS[name](cache["pattern", layer], tokens)
            got = table.filter(measure=name, layer=layer).sort("head")["value"].to_torch()
            assert torch.allclose(got.float(), wanted, atol=1e-6)


def test_only_what_is_asked_for(tmp_path):
    model = load_hooked(saved(llama(), tmp_path))
    table = score_heads(model, ["induction_score", "previous_token_null"])
    assert table["measure"].unique(maintain_order=True).to_list() == ["induction_score", "previous_token_null"]
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_unknown_measure_and_short_context(tmp_path):
    model = load_hooked(saved(llama(), tmp_path))
    with pytest.raises(InputError, match="did you mean 'induction_attention'"):
        score_heads(model, ["induction_atention"])
    model.cfg.n_ctx = 7
    with pytest.raises(InputError, match="at least 8"):
        score_heads(model)
