"""Behaviour: copying, its loss, the ICL score; shared contexts give what one pass a sample gives."""

import pytest
import torch
from examples import examples
from handmade import induction_model, llama, saved
from hypothesis import given
from hypothesis import strategies as st

from copyscope.interp.measures.behavior import (
    copying_accuracy,
    copying_hits,
    copying_loss,
    copying_test,
    icl_score,
    induction_predictable,
    natural_loss,
    natural_losses,
    shuffled_copying_loss,
    split_loss,
)
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.training.errors import InputError


@pytest.fixture(scope="module")
def circuit():
    return induction_model()


@pytest.fixture
def small(tmp_path):
    return load_hooked(saved(llama(num_key_value_heads=2), tmp_path))


def greedy(model, tokens, n):
    for _ in range(n):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(dim=-1)], dim=1)
    return tokens[:, -n:]


def test_the_circuit_copies(circuit):
    test = copying_test(range(1, 600), 128, n_samples=20, seed=0, bos_id=0)
    result = copying_accuracy(circuit, test)
    # Tokens drawn with replacement sometimes occur twice, and one token back is all that the circuit looks at.
    assert result.token > 0.85
    assert result.by_index["index"].to_list() == [0, 5]
    assert result.by_index["samples"].sum() == 20
    right = greedy(circuit, test.tokens, 6) == test.suffix
    assert right.all(dim=1).double().mean().item() == pytest.approx(result.exact)
    assert right.double().mean().item() == pytest.approx(result.greedy)
    assert result.exact <= result.greedy <= result.token
    assert result.by_place["greedy"].to_list() == pytest.approx(right.double().mean(dim=0).tolist())
    assert result.by_place["token"][0] == result.by_place["greedy"][0]
    for index, share in result.by_index.select("index", "greedy").rows():
        assert share == pytest.approx(right[test.index == index].double().mean().item())


def test_the_circuit_copies_everything_if_tokens_are_distinct(circuit):
    tokens = torch.randperm(599, generator=torch.Generator().manual_seed(0))[:108][None] + 1
    test = copying_test(range(1, 600), 128, n_samples=1)
    test = test._replace(tokens=torch.cat([tokens, tokens[:, 90:102]], dim=1), suffix=tokens[:, 102:])
    assert copying_accuracy(circuit, test).exact == 1


@pytest.mark.parametrize("bos", [None, 0])
def test_shared_contexts_equal_one_pass_a_sample(circuit, small, bos, monkeypatch):
    # Small batches, so that samples of one context meet and batches end between contexts.
    monkeypatch.setattr("copyscope.interp.forward.memory.PATTERN_ELEMENTS", 100_000)
    monkeypatch.setattr("copyscope.interp.forward.memory.TOKENS_AT_ONCE", 500)
    for model, vocab in ((circuit, range(1, 600)), (small, range(1, 90))):
        test = copying_test(vocab, 128, n_samples=23, seed=1, bos_id=bos)
        full = torch.cat([test.tokens, test.suffix], dim=1)
        plain = model(full)[:, -7:-1].argmax(dim=-1) == test.suffix
        generated = greedy(model, test.tokens, 6) == test.suffix
        assert torch.equal(generated.all(dim=1), plain.all(dim=1))
        for hooks in ([], [("hook_embed", lambda x, hook: None)]):
            with model.hooks(fwd_hooks=hooks):
                hits = copying_hits(model, test)
            assert torch.equal(hits.forced, plain)
            # 10 of the 12 contexts, two samples each, are generated.
            assert torch.equal(hits.greedy, generated[:20])


def test_a_fifth_of_the_contexts_is_generated(monkeypatch):
    circuit = induction_model()
    monkeypatch.setattr("copyscope.interp.measures.behavior.MIN_GREEDY_CONTEXTS", 1)
    monkeypatch.setattr("copyscope.interp.forward.memory.TOKENS_AT_ONCE", 500)  # three contexts at a time
    circuit.unembed.W_U.data[:, 1::7] = 0.0  # some tokens are never the most likely
    test = copying_test(range(1, 600), 128, n_samples=41, seed=2, bos_id=0)
    right = greedy(circuit, test.tokens, 6) == test.suffix
    result = copying_accuracy(circuit, test)
    assert result.greedy_samples == 10  # 5 of 21 contexts, the last of which has a single sample
    assert result.greedy == pytest.approx(right[:10].double().mean().item())
    assert result.greedy_se == pytest.approx(
        right[:10].double().mean(dim=1).view(5, 2).mean(dim=1).std().item() / 5**0.5
    )
    assert result.exact == pytest.approx(right.all(dim=1).double().mean().item())
    assert result.by_index["samples"].to_list() == [21, 20]
    assert result.by_index["greedy_samples"].to_list() == [5, 5]
    assert result.by_index["greedy"].to_list() == pytest.approx([right[i:10:2].double().mean().item() for i in (0, 1)])
    assert result.by_place["greedy_samples"].to_list() == [10] * 6


def test_one_wrong_token_costs_the_rest_of_what_is_generated():
    """Without its last repeat of a token the circuit loses the thread; given the right token it finds it again."""
    circuit = induction_model()
    test = copying_test(range(1, 600), 128, n_samples=8, seed=0, bos_id=0)
    with torch.no_grad():
        wrong = test.suffix[:, 2]
        circuit.unembed.W_U[:, wrong] = 0.0  # these tokens are never the likeliest
    result = copying_accuracy(circuit, test)
    assert result.exact == 0
    assert result.by_place["token"][2] == 0
    generated, forced = (float(result.by_place[kind][3:].to_numpy().mean()) for kind in ("greedy", "token"))
    assert generated < 0.5 < forced
    assert result.greedy < result.token


def test_a_circuit_that_copies_in_order_loses_by_a_shuffled_copy(circuit, small):
    prompts = repeated_random_tokens(range(1, 600), 40, 4, bos_id=0)
    loss, (shuffled, error) = copying_loss(circuit, prompts), shuffled_copying_loss(circuit, prompts)
    assert shuffled > loss.first_half > loss.second_half + 3
    assert 0 < error < 1
    assert shuffled_copying_loss(circuit, prompts, n_prompts=2)[0] != shuffled
    prompts = repeated_random_tokens(range(1, 90), 40, 4, bos_id=0)
    assert shuffled_copying_loss(small, prompts)[0] == pytest.approx(copying_loss(small, prompts).second_half, abs=0.3)


def test_copying_loss(circuit, small):
    prompts = repeated_random_tokens(range(1, 600), 40, 4, bos_id=0)
    copying = copying_loss(circuit, prompts)
    assert copying.difference < -3
    for bos in (None, 0):
        prompts = repeated_random_tokens(range(1, 90), 40, 4, bos_id=bos)
        loss = small(prompts, return_type="loss", loss_per_token=True)
        result = copying_loss(small, prompts)
        assert result.second_half == pytest.approx(loss[:, -40:].mean().item(), abs=1e-5)
        assert result.first_half == pytest.approx(loss[:, :-40].mean().item(), abs=1e-5)
        assert result.difference == pytest.approx(result.second_half - result.first_half)
        assert loss[:, :-40].shape[1] == (39 if bos is None else 40)


def test_icl_score_and_natural_loss(small):
    windows = torch.randint(0, 90, (5, 100), generator=torch.Generator().manual_seed(0))
    loss = small(windows, return_type="loss", loss_per_token=True)
    result = icl_score(small, windows)
    assert (result.early_position, result.late_position, result.positions) == (9, 92, 16)
    # Tokens 84 to 99, with all before them and with 1 to 16 tokens before them.
    early = small(windows[:, 83:], return_type="loss", loss_per_token=True)
    assert result.late_loss == pytest.approx(loss[:, 83:].mean().item(), abs=1e-5)
    assert result.early_loss == pytest.approx(early.mean().item(), abs=1e-5)
    assert result.score == pytest.approx(result.late_loss - result.early_loss)
    assert natural_loss(small, windows) == pytest.approx(loss.mean().item(), abs=1e-5)
    assert result == icl_score(small, windows, natural_losses(small, windows))
    differences = (loss[:, 83:] - early).mean(dim=1)
    assert result.score_se == pytest.approx(differences.std().item() / 5**0.5, abs=1e-5)


def test_a_token_that_all_windows_begin_with_begins_the_short_ones(small):
    windows = torch.randint(1, 90, (5, 100), generator=torch.Generator().manual_seed(0))
    windows[:, 0] = 0
    short = torch.cat([windows[:, :1], windows[:, 84:]], dim=1)
    early = small(short, return_type="loss", loss_per_token=True)
    assert icl_score(small, windows).early_loss == pytest.approx(early.mean().item(), abs=1e-5)


@pytest.mark.parametrize("length", [4, 5, 12, 31, 60, 128])
def test_icl_score_of_short_windows(small, length):
    windows = torch.randint(0, 90, (3, length), generator=torch.Generator().manual_seed(0))
    result = icl_score(small, windows)
    assert 1 <= result.early_position < result.late_position < length
    assert torch.isfinite(torch.tensor([result.score, result.early_loss, result.late_loss])).all()


def test_context_helps_a_circuit_that_copies(circuit):
    """Text that repeats after 60 tokens: early in a context nothing has repeated yet."""
    tokens = torch.randint(1, 600, (8, 60), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    result = icl_score(circuit, tokens)
    assert result.score < -3
    assert result.score_se < 0.5


def test_standard_errors_are_over_contexts_and_prompts(circuit):
    test = copying_test(range(1, 600), 128, n_samples=20, seed=0, bos_id=0)
    result, hits = copying_accuracy(circuit, test), copying_hits(circuit, test).forced.double()
    contexts = torch.stack([hits[test.context == i].mean() for i in range(10)])
    assert result.token_se == pytest.approx(contexts.std().item() / 10**0.5)
    prompts = repeated_random_tokens(range(1, 600), 40, 4, bos_id=0)
    each = torch.tensor([copying_loss(circuit, row[None]).difference for row in prompts])
    assert copying_loss(circuit, prompts).difference_se == pytest.approx(each.std().item() / 2, rel=1e-4)
    assert copying_loss(circuit, prompts[:1]).difference_se != copying_loss(circuit, prompts[:1]).difference_se  # NaN


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=4))
@examples(50)
def test_loss_split_equals_a_slow_version(rows):
    windows = torch.tensor(rows)
    losses = torch.rand(len(rows), 7, generator=torch.Generator().manual_seed(0))
    wanted = {True: [], False: []}
    for row, values in zip(rows, losses.tolist(), strict=True):
        for p, value in enumerate(values):
            wanted[(row[p], row[p + 1]) in [(row[j], row[j + 1]) for j in range(p)]].append((p + 1, value))
    got = split_loss(losses, induction_predictable(windows))
    assert got.share == pytest.approx(len(wanted[True]) / losses.numel())
    for mean, kind in ((got.predictable, True), (got.other, False)):
        values = [value for _, value in wanted[kind]]
        assert mean == pytest.approx(sum(values) / len(values)) if values else mean != mean
        for position in range(1, 8):
            here = [value for at, value in wanted[kind] if at == position]
            row = got.by_position.filter(position=position, kind="predictable" if kind else "other")
            assert row["count"].sum() == len(here)
            assert row["loss"].to_list() == ([pytest.approx(sum(here) / len(here))] if here else [])


def test_the_circuit_gains_on_what_induction_predicts(circuit):
    tokens = torch.randint(1, 600, (8, 60), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    split = split_loss(natural_losses(circuit, tokens), induction_predictable(tokens))
    assert split.share == pytest.approx(0.5, abs=0.02)
    assert split.predictable < split.other - 3


def test_bad_input(small):
    with pytest.raises(InputError, match="same tokens twice"):
        copying_loss(small, torch.arange(10)[None])
    with pytest.raises(InputError, match="n_ctx=128"):
        copying_accuracy(small, copying_test(range(90), 256, n_samples=2))
    with pytest.raises(InputError, match="vocabulary of 90"):
        copying_accuracy(small, copying_test(range(100, 300), 128, n_samples=2))
    with pytest.raises(InputError, match="n_ctx=128"):
        icl_score(small, torch.zeros(1, 200, dtype=torch.long))
