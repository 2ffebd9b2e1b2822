"""Attribution against finite differences of the loss, and its agreement with exact effects."""

import polars as pl
import pytest
import torch
from handmade import llama, saved

from copyscope.interp.ablation.attribution import agreement, attribute_heads
from copyscope.interp.ablation.donors import donors
from copyscope.interp.ablation.hooks import METHODS, sweep_heads
from copyscope.interp.measures.behavior import copying_test
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.training.errors import InputError

PROMPTS = repeated_random_tokens(range(2, 90), 20, 5, bos_id=1)


@pytest.fixture
def model(tmp_path):
    return load_hooked(saved(llama(num_hidden_layers=3, num_key_value_heads=2), tmp_path), prove=False)


@pytest.mark.parametrize("method", METHODS)
def test_estimates_are_derivatives_of_the_loss(model, method, monkeypatch):
    """Moving a head's output a little of the way changes the loss by that much of the estimate."""
    monkeypatch.setattr("copyscope.interp.forward.memory.PATTERN_ELEMENTS", 4 * 41 * 41 * 3)  # more than one batch
    table = attribute_heads(model, PROMPTS, [method], seed=3)
    assert table.height == 12
    _, cache = model.run_with_cache(PROMPTS)
    for layer, head in ((0, 1), (1, 3), (2, 2)):
        z = cache["z", layer][:, :, head]
        source = {
            "zero": torch.zeros_like(z),
            "frozen_patterns": torch.zeros_like(z),
            "mean": z.mean(dim=0),
            "mean_over_positions": z.mean(dim=(0, 1)),
            "resample": z[donors(5, 3)],
        }[method]

        def loss(share, layer=layer, head=head, z=z, source=source):
            def edit(value, hook):
                value[:, :, head] = z + share * (source - z)
                return value

            hooks = [(f"blocks.{layer}.attn.hook_z", edit)]
            if method == "frozen_patterns":
                hooks += [
                    (f"blocks.{i}.attn.hook_pattern", lambda p, hook, i=i: cache["pattern", i].clone())
                    for i in range(3)
                ]
            with model.hooks(fwd_hooks=hooks):
                return model(PROMPTS, return_type="loss", loss_per_token=True)[:, -20:].double().mean().item()

        slope = (loss(0.02) - loss(-0.02)) / 0.04
        got = table.filter(layer=layer, head=head)["value"].item()
        assert got == pytest.approx(slope, rel=0.02, abs=2e-5)


def test_agreement_with_exact_effects(model):
    with torch.no_grad():  # small outputs have small effects, for which the estimate is nearly exact
        for block in model.blocks:
            block.attn.W_O.mul_(0.02)
    test = copying_test(range(2, 90), 128, n_samples=2)
    exact = sweep_heads(model, test, ("zero", "mean"), repeated=PROMPTS)
    estimate = attribute_heads(model, PROMPTS, ["zero", "mean"])
    table = agreement(estimate, exact)
    assert table["method"].to_list() == ["zero", "mean"]
    assert table["heads"].to_list() == [12, 12]
    assert (table["pearson"] > 0.99).all()
    assert (table["spearman"] > 0.9).all()
    turned = agreement(estimate.with_columns(-pl.col("value")), exact)
    assert (turned["pearson"] < -0.99).all()


def test_the_model_is_left_as_it_was(model):
    attribute_heads(model, PROMPTS, ["zero", "frozen_patterns"])
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())


def test_bad_input(model):
    with pytest.raises(InputError, match="2 different contexts"):
        attribute_heads(model, PROMPTS[:1], ["resample"])
    with pytest.raises(InputError, match="n_ctx"):
        attribute_heads(model, torch.zeros(2, 200, dtype=torch.long))
