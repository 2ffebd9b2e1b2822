"""config.json and tensors of another model are told apart; real families are not accused."""

from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from copyscope.training.checkpoints.sizes import why_sizes_differ

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 40}


def config_and_shapes(family: str, **values: Any) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    config = AutoConfig.for_model(family, **(SIZES | values))
    shapes = {
        name: tuple(tensor.shape) for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
    }
    return config.to_dict(), shapes


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8}),
        ("gpt_neox", {}),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 4}),
        ("opt", {"word_embed_proj_dim": 8, "ffn_dim": 24}),
        ("olmoe", {"num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ],
)
def test_a_model_as_it_is(family: str, values: dict[str, Any]) -> None:
    assert why_sizes_differ(*config_and_shapes(family, **values)) is None


@pytest.mark.parametrize(
    ("entry", "value", "tensor"),
    [
        ("vocab_size", 41, "embed_tokens"),
        ("hidden_size", 20, "embed_tokens"),
        ("num_hidden_layers", 3, "layer 2"),
        ("num_hidden_layers", 1, "layer 1"),
        ("num_key_value_heads", 4, "k_proj"),
        ("intermediate_size", 32, "gate_proj"),
    ],
)
def test_the_entry_and_the_tensor_that_differ_are_named(entry: str, value: int, tensor: str) -> None:
    config, shapes = config_and_shapes("llama", num_key_value_heads=2, head_dim=4)
    why = why_sizes_differ(config | {entry: value}, shapes)
    assert why is not None
    assert f"{entry}={value}" in why
    assert tensor in why


def test_what_cannot_be_told_is_no_difference() -> None:
    config, shapes = config_and_shapes("llama")
    assert why_sizes_differ({}, shapes) is None
    assert why_sizes_differ(config | {"vocab_size": "40", "hidden_size": None, "num_hidden_layers": -2}, shapes) is None
    assert why_sizes_differ(config | {"vocab_size": 9, "vision_config": {}}, shapes) is None


def test_queries_may_carry_a_gate() -> None:
    config, shapes = config_and_shapes("llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    rows, columns = shapes[name]
    assert why_sizes_differ(config, shapes | {name: (2 * rows, columns)}) is None
    assert why_sizes_differ(config, shapes | {name: (3 * rows, columns)}) is not None
