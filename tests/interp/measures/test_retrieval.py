"""The retrieval score and the rank of the right token, on the copying test: a known circuit, and a slow version."""

from typing import Any

import pytest
import torch
from handmade import induction_model, llama, saved

from copyscope.interp.measures.behavior import accuracy_of, copying_accuracy, copying_test
from copyscope.interp.measures.retrieval import retrieval_score
from copyscope.interp.models.hooked import load_hooked

TEST = copying_test(range(1, 600), 128, n_samples=20, seed=0, bos_id=0)


def test_only_the_induction_head_retrieves_what_is_copied() -> None:
    model = induction_model()
    hits, score = retrieval_score(model, TEST)
    token = accuracy_of(hits, TEST).token
    assert token - 0.1 < score.value[1, 0] <= token  # the rest are tokens that occur twice
    assert score.p[1, 0] < 1e-4
    assert score.null[1, 0] < 0.05
    for head in ((0, 0), (0, 1), (1, 1)):
        assert score.value[head] <= 0.05
        assert score.p[head] > 0.05
    assert retrieval_score(induction_model(copies=-1), TEST)[1].value[1, 0] < 0.05  # looks, but nothing is copied
    assert copying_accuracy(model, TEST).by_place.equals(accuracy_of(hits, TEST).by_place)


def test_retrieval_and_ranks_equal_one_pass_a_sample(tmp_path) -> None:
    model: Any = load_hooked(saved(llama(num_key_value_heads=2, spread=0.3), tmp_path))
    test = copying_test(range(5, 85), 128, n_samples=7, seed=1)
    hits, score = retrieval_score(model, test)
    looks = torch.zeros(7, 2, 4)
    for i in range(7):
        tokens = torch.cat([test.tokens[i], test.suffix[i, :-1]])[None]
        logits, cache = model.run_with_cache(tokens)
        for j in range(6):
            logit = logits[0, j - 6]
            wanted = logit[test.suffix[i, j]]
            assert hits.rank[i, j] == 1 + (logit > wanted).sum()
            place = 18 * int(test.index[i]) + 12 + j
            for layer in range(2):
                top = cache["pattern", layer][0, :, j - 6].argmax(dim=-1)
                looks[i, layer] += (top == place) & (hits.rank[i, j] == 1)
    by_context = torch.stack([looks[test.context == c].mean(dim=0) / 6 for c in test.context.unique()])
    assert torch.allclose(score.value.float(), by_context.mean(dim=0), atol=1e-6)
    result = accuracy_of(hits, test)
    assert result.mean_rank == pytest.approx(hits.rank.double().mean().item())
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):  # pass by pass, with whole patterns
        again, by_hooks = retrieval_score(model, test)
    assert torch.equal(again.rank, hits.rank)
    assert torch.equal(by_hooks.value, score.value)
    assert torch.equal(by_hooks.null, score.null)
