"""From which layer on the copied token leads: a known circuit, and each layer's logits one by one."""

import math

import pytest
import torch
from handmade import induction_model, llama, saved

from copyscope.interp.measures.logit_lens import copied_token_layer, layer_of
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens

TOKENS = repeated_random_tokens(range(1, 400), 20, 4, 0, 0)


def test_the_circuit_copies_in_its_last_layer() -> None:
    found = copied_token_layer(induction_model(n_ctx=64), TOKENS)
    assert found.layer == 2
    assert found.share > 0.9
    nothing = copied_token_layer(induction_model(n_ctx=64, copies=-1), TOKENS)
    assert math.isnan(nothing.layer)
    assert nothing.share == 0


def test_the_layer_after_which_it_never_loses_the_lead() -> None:
    leads = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]).bool()  # (layer, place)
    found = layer_of(leads[:, None])
    assert found.layer == pytest.approx((0 + 1 + 2) / 3)  # the last place is not right in the end
    assert found.share == 0.75


def test_equals_logits_of_each_layer(tmp_path) -> None:
    model = load_hooked(saved(llama(spread=0.3, vocab_size=30), tmp_path))
    tokens = repeated_random_tokens(range(5, 25), 15, 40, 0)
    found = copied_token_layer(model, tokens)
    _, cache = model.run_with_cache(tokens)
    residuals = [cache["resid_pre", 0], cache["resid_post", 0], cache["resid_post", 1]]
    best = [model.unembed(model.ln_final(x[:, 15:29])).argmax(dim=-1) for x in residuals]
    leads = torch.stack([b == tokens[:, 16:] for b in best])
    assert found == layer_of(leads)
    assert 0 < found.share < 1
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        assert copied_token_layer(model, tokens) == found
