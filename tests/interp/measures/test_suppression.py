"""Copy suppression: a head that lowers the token it attends to, one that raises it, and one that looks elsewhere."""

from typing import Any

import pytest
import torch
from handmade import CODE, induction_model, llama, saved

from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.measures.suppression import copy_suppression, copy_suppression_weights
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.training.errors import InputError

TOKENS = repeated_random_tokens(range(1, 400), 20, 6, 0, 0)


def duplicate_model(copies: float) -> Any:
    """The induction circuit, whose idle head (1, 1) attends to copies of its own token and writes `copies` times its
    code."""
    model: Any = induction_model(n_ctx=64)
    attention, token = model.blocks[1].attn, slice(0, CODE)
    attention.W_Q[1, token, :CODE] = 100 * torch.eye(CODE)
    attention.W_K[1, token, :CODE] = torch.eye(CODE)
    attention.W_V[1, token, :CODE] = torch.eye(CODE)
    attention.W_O[1, :CODE, token] = copies * torch.eye(CODE)
    return model


@pytest.mark.parametrize("copies", [20.0, -20.0])
def test_a_head_that_lowers_the_copy_it_looks_at(copies: float) -> None:
    model = duplicate_model(copies)
    score = copy_suppression(model, TOKENS)
    assert score.value[1, 1].item() == pytest.approx(-copies / 2, rel=0.1)  # half of its attention is on the copy
    assert (score.p[1, 1] < 0.001) == (copies < 0)
    assert abs(score.null[1, 1].item()) < 0.5
    assert abs(score.value[1, 0].item()) < 0.5  # it looks at what follows
    by_weights = copy_suppression_weights(model, torch.arange(1, 400))
    assert by_weights.value[1, 1].item() == float(copies < 0)
    assert by_weights.null[1, 1].item() < 0.1
    assert by_weights.value[0, 1].item() == 0  # writes nothing


def test_both_equal_slow_versions(tmp_path) -> None:
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    tokens = repeated_random_tokens(range(5, 85), 20, 4, 2, 1)
    score, weights = copy_suppression(model, tokens), head_weights(model).folded()
    _, cache = model.run_with_cache(tokens)
    direction = weights.W_U.T - weights.W_U.mean(dim=1)
    for layer in range(2):
        for head in range(4):
            total = 0.0
            for i in range(4):
                for q in range(21, 41):
                    k = q - 20
                    written = cache["v", layer][i, k, head // 2] @ weights.W_O[layer, head]
                    effect = written @ direction[tokens[i, k]] / cache["ln_final.hook_scale"][i, q, 0]
                    total -= (cache["pattern", layer][i, head, q, k] * effect).item() / 80
            assert score.value[layer, head].item() == pytest.approx(total, abs=1e-5)
    ids = torch.arange(5, 85)
    ids = ids[:60]
    by_weights = copy_suppression_weights(model, ids)
    for head in range(4):
        full = (weights.W_E @ weights.W_V[1, head] @ weights.W_O[1, head] @ weights.W_U)[ids]
        own = full[torch.arange(60), ids]
        share = ((full < own[:, None]).sum(dim=1) < 10).double().mean().item()
        assert by_weights.value[1, head].item() == pytest.approx(share)


def test_other_prompts_are_refused() -> None:
    model = induction_model(n_ctx=64)
    with pytest.raises(InputError, match=r"copy_suppression: .*twice"):
        copy_suppression(model, TOKENS.roll(1, 1))
    with pytest.raises(InputError, match="at least 2"):
        copy_suppression_weights(model, torch.tensor([3]))
