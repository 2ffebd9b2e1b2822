"""Fused attention gives what TransformerLens' written-out attention gives, and goes away."""

import pytest
import torch
from handmade import induction_model, llama, saved
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from interp.fused import can_fuse, fused_attention
from interp.models import load_hooked
from interp.runs import Stage, run_stages

MODELS = {
    "llama": lambda: llama(),
    "grouped queries": lambda: llama(num_key_value_heads=2),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=90,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            scale_attn_by_inverse_layer_idx=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=90,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
    "hand-built": None,
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_with_and_without_shared_context(name, tmp_path):
    build = MODELS[name]
    model = induction_model() if build is None else load_hooked(saved(build(), tmp_path))
    assert can_fuse(model)
    generator = torch.Generator().manual_seed(0)
    context, rest = (torch.randint(0, 90, shape, generator=generator) for shape in ((2, 20), (5, 9)))
    parent = torch.tensor([0, 0, 1, 1, 1])
    whole = torch.cat([context[parent], rest], dim=1)
    plain = model(whole, stop_at_layer=2)
    with fused_attention(model):
        assert torch.allclose(model(whole, stop_at_layer=2), plain, atol=1e-5)
    stages = [Stage(context, None, 0), Stage(rest, parent, 20)]
    assert torch.allclose(run_stages(model, stages), plain[:, 20:], atol=1e-5)
    assert torch.allclose(run_stages(model, stages, whole=True), plain[:, 20:], atol=1e-5)
    looking = [[(f"blocks.{i}.attn.hook_pattern", lambda p, hook: None) for i in range(2)]] * 2
    assert torch.allclose(run_stages(model, stages, looking), plain[:, 20:], atol=1e-5)


def test_restored_after_an_error():
    model = induction_model()
    with pytest.raises(ZeroDivisionError), fused_attention(model):
        raise ZeroDivisionError
    assert all("forward" not in vars(block.attn) for block in model.blocks)


def test_what_it_cannot_compute():
    model = induction_model()
    model.cfg.attn_scores_soft_cap = 30.0
    assert not can_fuse(model)
