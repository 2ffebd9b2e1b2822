"""Direct effects on the right next token: a known induction head, and logits that they add up to."""

from typing import Any

import pytest
import torch
from handmade import induction_model
from untrained import untrained

from copyscope.interp.measures.logit_attribution import induction_logit_attribution
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.training.errors import InputError

TOKENS = repeated_random_tokens(range(1, 400), 20, 6, 0, 0)


@pytest.mark.parametrize("copies", [1.0, -1.0])
def test_the_induction_head_alone_raises_or_lowers_the_right_token(copies: float) -> None:
    found = induction_logit_attribution(induction_model(n_ctx=64, copies=copies), TOKENS)
    assert found.value[1, 0].item() == pytest.approx(20 * copies, rel=0.1)  # it writes the token's code 20 times
    others = [found.value[0, 0], found.value[0, 1], found.value[1, 1]]
    assert max(abs(value.item()) for value in others) < 0.5
    assert abs(found.null[1, 0].item()) < 2
    assert (found.p[1, 0] < 0.001) == (copies > 0)
    assert 0 <= found.se[1, 0] < 0.5


def test_effects_add_up_to_the_logit_without_its_other_parts() -> None:
    """Of a model without MLPs: heads and embedding give the whole logit. Also by hooks."""
    model: Any = untrained(0, 0.1, n_layers=2, n_ctx=64)
    for name, parameter in model.named_parameters():
        if "mlp" in name:
            parameter.zero_()
    found = induction_logit_attribution(model, TOKENS)
    read, right = torch.arange(21, 40), TOKENS[:, 22:]
    logits, cache = model.run_with_cache(TOKENS)
    centred = logits[:, read] - logits[:, read].mean(dim=2, keepdim=True)
    whole = centred.gather(2, right[..., None]).mean()
    x = cache["blocks.0.hook_resid_pre"][:, read] / cache["ln_final.hook_scale"][:, read]
    directions = (model.ln_final.w[:, None] * model.W_U).T
    of_embedding = (x * (directions[right] - directions.mean(dim=0))).sum(dim=2).mean()
    assert found.value.sum().item() == pytest.approx((whole - of_embedding).item(), abs=1e-3)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        assert torch.allclose(induction_logit_attribution(model, TOKENS).value, found.value, atol=1e-4)


def test_other_prompts_are_refused() -> None:
    model = induction_model(n_ctx=64)
    for tokens in (TOKENS[:1], TOKENS[:, :-1], TOKENS.roll(1, 1)):
        with pytest.raises(InputError, match="twice"):
            induction_logit_attribution(model, tokens)
