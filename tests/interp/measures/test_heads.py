"""Attention measures: perfect heads score 1, uniform ones what uniform attention gets; equal to a slow version."""

import math
from collections import Counter

import pytest
import torch
from examples import examples
from handmade import induction_model, llama, needs_hooked, saved
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from copyscope.interp.ablation.hooks import ablate_heads
from copyscope.interp.measures.heads import (
    MEASURES,
    anti_induction,
    attention_entropy,
    bos_sink,
    duplicate_token,
    induction_attention,
    prefix_matching_mean,
    prefix_matching_sum,
    previous_token,
    score_heads,
)
from copyscope.interp.measures.pattern_scores import above_null, value_weighted
from copyscope.interp.measures.patterns import read_patterns
from copyscope.interp.measures.targets import TARGET_MEASURES, null_targets, targets
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.interp.prompts.varied import varied_repeats
from copyscope.training.errors import InputError

FUNCTIONS = {
    f.__name__: f
    for f in (
        *(induction_attention, prefix_matching_sum, prefix_matching_mean),
        *(previous_token, duplicate_token, anti_induction),
    )
}

TARGETED = {name: function for name, function in FUNCTIONS.items() if name != "previous_token"}


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
    later = torch.tensor([1 / (i + 1) for i in range(5, n)])  # 17 positions: offsets 1 to 4 are compared
    assert previous_token(flat, PAIRS).item() == pytest.approx(later.mean().item())
    for name, function in TARGETED.items():
        for tokens in (PAIRS, QUADS):
            value = function(uniform(3, tokens.shape[1]), tokens).item()
            assert value == pytest.approx(targets(name, tokens).uniform())


def test_nothing_repeats():
    tokens = torch.arange(10)[None]
    for function in TARGETED.values():
        assert function(uniform(1, 10), tokens).item() == 0


def slow_targets(name, row, i):
    earlier = [j for j in range(i) if row[j] == row[i]]
    if name == "previous_token":
        return [i - 1] if i > len(row) // 4 else []
    if name == "duplicate_token":
        places = earlier
    elif name == "anti_induction":
        places = [j - 1 for j in earlier[:1] if j > 1]
    else:
        places = [j + 1 for j in (earlier[:1] if name == "induction_attention" else earlier) if j + 1 < i]
    other = [j for j in range(1, i) if j not in places]
    return places if len(places) <= len(other) else []  # a query that cannot have a null is left out


def slow(name, pattern, tokens):
    sums, pairs = [], []
    for b, row in enumerate(tokens.tolist()):
        for i in range(len(row)):
            hit = [pattern[b, 0, i, j].item() for j in slow_targets(name, row, i)]
            pairs += hit
            sums += [sum(hit)] if hit else []
    values = pairs if name == "prefix_matching_mean" else sums
    return sum(values) / len(values) if values else 0.0


@examples(40)
@given(st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=1, max_size=3), st.integers(0, 99))
def test_equal_to_a_slow_version(rows, seed):
    tokens = torch.tensor(rows)
    noise = torch.randn(len(rows), 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    pattern = noise.masked_fill(torch.ones(9, 9).triu(1).bool(), -1e9).softmax(dim=-1)
    for name, function in FUNCTIONS.items():
        value = function(pattern, tokens).item()
        assert value == pytest.approx(slow(name, pattern, tokens), abs=1e-6)
        assert 0 <= value <= 1 + 1e-6


@pytest.mark.parametrize("name", TARGET_MEASURES)
@pytest.mark.parametrize("tokens", [PAIRS, QUADS])
def test_null_has_as_many_targets_elsewhere(name, tokens):
    def places(some):
        return set(zip(some.prompt.tolist(), some.query.tolist(), some.key.tolist(), strict=True))

    true, null = places(targets(name, tokens)), places(null_targets(name, tokens, seed=1))
    assert null
    assert not true & null
    assert all(0 < key < query for _, query, key in null)
    of_true, of_null = (Counter(place[:2] for place in some) for some in (true, null))
    assert of_true == of_null  # the same queries
    assert null == places(null_targets(name, tokens, seed=1))
    assert null != places(null_targets(name, tokens, seed=2))


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
    assert value[1, 0, "anti_induction"] < 0.01
    # The codes of 24 other tokens in 64 dimensions overlap by 0.05 on average where they do: 1 / (1 + 24 · 0.05).
    assert value[1, 0, "copying_score"] == pytest.approx(2 / 2.2 - 1, abs=0.1)
    assert value[0, 0, "copying_score"] == -1  # it writes where no logit reads
    for head, measure in ((0, "previous_token"), (1, "induction_attention")):
        assert value[head, 0, f"{measure}_p"] < 1e-3
        assert value[head, 0, f"{measure}_se"] < 0.01
        assert value[head, 0, f"{measure}_value_weighted"] > 0.99
    assert value[0, 0, "attention_entropy"] < 0.05
    assert value[0, 1, "attention_entropy"] == pytest.approx(
        sum(math.log(i + 1) for i in range(1, 127)) / 126, rel=1e-3
    )
    assert value[1, 0, "bos_sink"] < value[1, 1, "bos_sink"]
    assert value[1, 1, "induction_attention_p"] > 0.05


def test_score_heads_equals_patterns_from_a_cache(tmp_path):
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    vocab = torch.arange(5, 85)
    table = score_heads(model, ["induction_attention", "prefix_matching_mean"], seed=4, vocab=vocab, n_prompts=5)
    for name, length, repeats in (("induction_attention", 100, 2), ("prefix_matching_mean", 25, 4)):
        tokens = varied_repeats(vocab, length, 5, 4, None, repeats, n_ctx=128)
        _, cache = model.run_with_cache(tokens)
        for layer in range(2):
            wanted = FUNCTIONS[name](cache["pattern", layer], tokens)
            got = table.filter(measure=name, layer=layer).sort("head")["value"].to_torch()
            assert torch.allclose(got.float(), wanted, atol=1e-6)


def test_every_calibration_equals_patterns_from_a_cache(tmp_path):
    """Small blocks, grouped heads: every number against patterns of a whole cache and prompt after prompt."""
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    vocab, n = torch.arange(5, 85), 6
    table = score_heads(model, None, seed=4, vocab=vocab, bos_id=1, n_prompts=n)
    got = {(r["measure"], r["layer"], r["head"]): r["value"] for r in table.iter_rows(named=True)}
    p_values = {}
    for name in TARGET_MEASURES:
        length, repeats = (25, 4) if name.startswith("prefix") else (100, 2)
        tokens = varied_repeats(vocab, length, n, 4, 1, repeats, n_ctx=128)
        true, null = targets(name, tokens), null_targets(name, tokens, 4)
        _, cache = model.run_with_cache(tokens)
        for layer in range(2):
            pattern = cache["pattern", layer]
            values = cache["v", layer].repeat_interleave(2, dim=2)
            written = torch.einsum("bkhd,hdm->bhkm", values, model.W_O[layer]).norm(dim=-1)
            by_value = pattern * written[:, :, None]
            by_value = by_value / by_value.sum(dim=-1, keepdim=True)
            size = true.weight.sum()
            mine = [t.of(pattern) / t.weight.sum() * size for t in each_prompt(true, n)]
            others = [t.of(pattern) / t.weight.sum() * size for t in each_prompt(null, n)]
            one_by_one, difference = torch.stack(mine), torch.stack(mine) - torch.stack(others)
            t_value = difference.mean(dim=0) / (difference.std(dim=0) / n**0.5)
            for head in range(4):
                at = (layer, head)
                p_values[name, *at] = stats.t.sf(t_value[head].item(), n - 1)
                assert got[name, *at] == pytest.approx(true.of(pattern)[head].item(), abs=1e-6)
                assert got[f"{name}_null", *at] == pytest.approx(null.of(pattern)[head].item(), abs=1e-6)
                assert got[f"{name}_value_weighted", *at] == pytest.approx(true.of(by_value)[head].item(), abs=1e-6)
                spread = one_by_one.std(dim=0)[head].item() / n**0.5
                assert got[f"{name}_se", *at] == pytest.approx(spread, abs=1e-6)
                assert got[f"{name}_selectivity", *at] == pytest.approx(got[name, *at] / true.uniform(), rel=1e-4)
            if name == "induction_attention":
                for head in range(4):
                    check_offsets(got, pattern, by_value, layer, head)
                    rest = pattern[:, head, 1:]
                    assert got["bos_sink", layer, head] == pytest.approx(rest[..., 0].mean().item(), abs=1e-6)
                    entropy = -(rest * rest.clamp(min=1e-30).log()).sum(dim=-1).mean().item()
                    assert got["attention_entropy", layer, head] == pytest.approx(entropy, abs=1e-5)
    for name in TARGET_MEASURES:
        mine = sorted((p, at) for (measure, *at), p in p_values.items() if measure == name)
        holm = [min(1.0, p * (8 - rank)) for rank, (p, _) in enumerate(mine)]
        for rank, (_, at) in enumerate(mine):
            assert got[f"{name}_p", *at] == pytest.approx(max(holm[: rank + 1]), rel=1e-3, abs=1e-6)


def check_offsets(got, pattern, by_value, layer, head):
    """Previous-token score and best offset against a loop over queries; p-values without the correction for heads."""

    def at(d, pattern=pattern, head=head):
        queries = range(9, pattern.shape[2])
        return torch.stack([pattern[:, head, q, q - d] for q in queries]).double().mean(dim=0)  # (prompt)

    means = [at(d).mean().item() for d in range(1, 9)]
    best = max(range(8), key=lambda i: means[i])
    assert got["best_offset", layer, head] == best + 1
    for name, place, tried in (("previous_token", 0, 1), ("best_offset_attention", best, 8)):
        others = torch.tensor(means[:place] + means[place + 1 :])
        assert got[name, layer, head] == pytest.approx(means[place], abs=1e-6)
        assert got[f"{name}_null", layer, head] == pytest.approx(others.mean().item(), abs=1e-6)
        assert got[f"{name}_se", layer, head] == pytest.approx(at(place + 1).std().item() / 6**0.5, abs=1e-6)
        weighted = at(place + 1, by_value).mean().item()
        assert got[f"{name}_value_weighted", layer, head] == pytest.approx(weighted, abs=1e-6)
        t = (means[place] - others.mean().item()) / (others.std().item() * (1 + 1 / 7) ** 0.5)
        assert got[f"{name}_p", layer, head] >= min(1.0, tried * stats.t.sf(t, 6)) - 1e-6
        even = sum(1 / (q + 1) for q in range(9, pattern.shape[2])) / (pattern.shape[2] - 9)
        assert got[f"{name}_selectivity", layer, head] == pytest.approx(means[place] / even, rel=1e-4)


def each_prompt(some, n):
    """One list of targets a prompt."""
    return [type(some)(*(column[some.prompt == i] for column in some)) for i in range(n)]


def test_p_value_of_noise_and_of_a_signal():
    generator = torch.Generator().manual_seed(0)
    below = 0
    for _ in range(400):
        below += int((above_null(torch.randn(16, 10, generator=generator)) < 0.05).any())
    assert below / 400 < 0.08  # 5 % over all ten heads together
    shifted = torch.randn(16, 10, generator=generator) + torch.tensor([5.0] + [0.0] * 9)
    assert (above_null(shifted) < 0.05).tolist() == [True] + [False] * 9
    assert above_null(torch.zeros(4, 3)).tolist() == [1.0] * 3
    assert above_null(torch.ones(4, 3)).tolist() == [0.0] * 3


def test_entropy_and_sink_of_known_patterns():
    flat = uniform(2, 8)
    assert attention_entropy(flat).item() == pytest.approx(sum(math.log(i + 1) for i in range(1, 8)) / 7)
    assert bos_sink(flat).item() == pytest.approx(sum(1 / (i + 1) for i in range(1, 8)) / 7)
    sink = torch.zeros(2, 1, 8, 8)
    sink[..., 0] = 1
    assert (attention_entropy(sink).item(), bos_sink(sink).item()) == (0, 1)


def test_value_weighted_pattern_leaves_out_what_writes_nothing():
    pattern = torch.tensor([[[[1.0, 0, 0], [0.5, 0.5, 0], [0.9, 0.05, 0.05]]]])
    values = torch.tensor([[[[0.0]], [[1.0]], [[-3.0]]]])  # the sink writes nothing
    weighted = value_weighted(pattern, values.transpose(1, 2), torch.tensor([[[2.0, 0.0]]]))
    assert weighted[0, 0, 1].tolist() == pytest.approx([0, 1, 0])
    assert weighted[0, 0, 2].tolist() == pytest.approx([0, 0.25, 0.75])


@needs_hooked
def test_blocks_are_the_whole_pattern(tmp_path, monkeypatch):
    model = load_hooked(saved(llama(num_key_value_heads=1), tmp_path))
    tokens = torch.randint(0, 90, (7, 50), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("copyscope.interp.forward.memory.TOKENS_AT_ONCE", 150)
    monkeypatch.setattr("copyscope.interp.forward.memory.BLOCK_ELEMENTS", 1)
    _, cache = model.run_with_cache(tokens)
    whole = torch.zeros(2, *cache["pattern", 0].shape)
    seen = []

    def read(block):
        seen.append((block.layer, block.rows, block.first_query))
        queries = slice(block.first_query, block.first_query + block.pattern.shape[2])
        whole[block.layer, block.rows, :, queries, : block.pattern.shape[3]] = block.pattern
        wanted = cache["v", block.layer][block.rows].repeat_interleave(4, dim=2).transpose(1, 2)
        assert torch.allclose(block.values, wanted, atol=1e-6)

    read_patterns(model, tokens, read)
    assert len(seen) == 3 * 4 * 2  # batches, blocks of queries, layers
    assert torch.allclose(whole, torch.stack([cache["pattern", i] for i in range(2)]), atol=1e-6)


def test_layers_after_the_last_are_not_run(tmp_path):
    model = load_hooked(saved(llama(num_hidden_layers=3), tmp_path))
    ran = []
    model.blocks[1].mlp.register_forward_hook(lambda *_: ran.append(1))
    model.blocks[2].register_forward_hook(lambda *_: ran.append(2))
    some = score_heads(model, ["previous_token", "copying_score"], layers=[1])
    assert not ran
    every = score_heads(model, ["previous_token", "copying_score"])
    every = every.filter(layer=1)
    assert some.drop("value").equals(every.drop("value"))
    assert some["value"].to_list() == pytest.approx(every["value"].to_list(), abs=1e-6)
    with pytest.raises(InputError, match="layers 0 to 2"):
        score_heads(model, ["previous_token"], layers=[3])


def test_somebodys_hooks_are_heeded():
    model = induction_model()
    clean = score_heads(model, ["induction_attention"], vocab=range(1, 600), bos_id=0, n_prompts=2)
    with ablate_heads(model, [(0, 0)]):
        without = score_heads(model, ["induction_attention"], vocab=range(1, 600), bos_id=0, n_prompts=2)
    assert clean.filter(layer=1, head=0)["value"].item() > 0.99
    assert without.filter(layer=1, head=0)["value"].item() < 0.05


def test_one_prompt_has_no_spread():
    model = induction_model()
    assert len(score_heads(model, ["previous_token"], vocab=range(1, 600), n_prompts=1)) == 4
    with pytest.raises(InputError, match="at least 2 prompts"):
        score_heads(model, ["previous_token_p"], vocab=range(1, 600), n_prompts=1)


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
