"""N-gram induction: prompts whose last token does not tell, a head that finds the pair, one that matches one token."""

import pytest
import torch
from handmade import induction_model, llama, saved

from copyscope.interp.measures.ngrams import model_ngram_induction, ngram_induction
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.ngrams import ngram_prompts
from copyscope.training.errors import InputError

PROMPTS = ngram_prompts(range(1, 400), 3, 5, 0, n_ctx=256)


def test_every_pair_stands_twice_and_decoys_share_its_last_token_only() -> None:
    tokens, query, places = PROMPTS
    assert tokens.shape == (3, 193)
    for row, queries, keys in zip(tokens.tolist(), query.tolist(), places.tolist(), strict=True):
        assert sorted(row[1:97]) == sorted(row[97:])
        for q, (true, *decoys) in zip(queries, keys, strict=True):
            assert q > 97
            assert row[q - 1 : q + 2] == row[true - 2 : true + 1]
            assert len({true, *decoys}) == 4
            for decoy in decoys:
                assert decoy < 97
                assert row[decoy - 1] == row[q]
                assert row[decoy - 2] != row[q - 1]
                assert row[decoy] != row[true]


def test_a_pair_finder_scores_1_and_a_matcher_of_single_tokens_0() -> None:
    pattern = torch.zeros(3, 3, 193, 193)  # head 0 finds the pair, 1 spreads over the group, 2 finds a decoy
    for i in range(3):
        for q, keys in zip(PROMPTS.query[i].tolist(), PROMPTS.places[i].tolist(), strict=True):
            pattern[i, 0, q, keys[0]] = 1
            pattern[i, 1, q, keys] = 0.25
            pattern[i, 2, q, keys[1]] = 1
    assert ngram_induction(pattern, PROMPTS).tolist() == pytest.approx([1, 0, -1 / 3], abs=1e-6)


def test_the_circuit_of_two_heads_matches_single_tokens(tmp_path) -> None:
    score = model_ngram_induction(induction_model(n_ctx=64), ngram_prompts(range(1, 600), 6, 0, 0, n_ctx=64))
    assert abs(score.value[1, 0]) < 0.1
    assert score.p[1, 0] > 0.05
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    prompts = ngram_prompts(range(5, 85), 4, 1, None, n_ctx=128)
    score = model_ngram_induction(model, prompts)
    _, cache = model.run_with_cache(prompts.tokens)
    for layer in range(2):
        assert torch.allclose(score.value[layer].float(), ngram_induction(cache["pattern", layer], prompts), atol=1e-6)


def test_where_not_one_group_fits() -> None:
    with pytest.raises(InputError, match="24"):
        ngram_prompts(range(1, 400), 3, n_ctx=23)
    assert ngram_prompts(range(1, 10), 2, n_ctx=24).tokens.shape == (2, 24)
