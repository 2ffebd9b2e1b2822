"""Layers as functions, and fused attention, give what TransformerLens' own forward pass gives."""

import pytest
import torch
from handmade import induction_model, llama, needs_hooked, saved
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from copyscope.interp.forward.fused import can_fuse, fused_attention
from copyscope.interp.forward.layers import Layout, can_run, run_layers
from copyscope.interp.forward.residual import final_residual
from copyscope.interp.models.hooked import load_hooked

pytestmark = needs_hooked

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
def test_equal_to_attention_written_out(name, tmp_path):
    build = MODELS[name]
    model = induction_model() if build is None else load_hooked(saved(build(), tmp_path))
    tokens = torch.randint(0, 90, (5, 29), generator=torch.Generator().manual_seed(0))
    plain = model(tokens, stop_at_layer=2)
    assert can_run(model)
    with fused_attention(model):
        assert torch.allclose(model(tokens, stop_at_layer=2), plain, atol=1e-5)
    assert torch.allclose(final_residual(model, tokens), plain, atol=1e-5)
    read = torch.tensor([3, 28])
    assert torch.allclose(run_layers(model, tokens, Layout(29), read), plain[:, read], atol=1e-5)


def test_restored_after_an_error():
    model = induction_model()
    with pytest.raises(ZeroDivisionError), fused_attention(model):
        raise ZeroDivisionError
    assert all("forward" not in vars(block.attn) for block in model.blocks)


def test_what_it_cannot_compute():
    model = induction_model()
    model.cfg.attn_scores_soft_cap = 30.0
    assert not can_fuse(model)
