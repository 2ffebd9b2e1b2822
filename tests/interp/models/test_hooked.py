"""load_hooked: equal logits for every supported architecture, in place for a series, one clear line for bad input."""

import json
import warnings
from typing import Any

import pytest
import torch
from handmade import NO_SPECIAL, jitter, llama, needs_hooked, saved
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
)

from copyscope.interp.models.hooked import (
    LOGIT_TOLERANCE,
    load_hooked,
    load_weights_into,
    logit_difference,
    prove_conversion,
)
from copyscope.training.errors import InputError

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def gpt2():
    config = GPT2Config(vocab_size=90, n_positions=64, n_embd=32, n_layer=2, n_head=4, n_inner=70, **NO_SPECIAL)
    return GPT2LMHeadModel(config)


def neox(**changes):
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 50,
    }
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=90, max_position_embeddings=64, **size, **NO_SPECIAL, **changes))


def olmo(**changes):
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 50,
    }
    return OlmoForCausalLM(OlmoConfig(vocab_size=90, max_position_embeddings=64, **size, **NO_SPECIAL, **changes))


MODELS = {
    "llama": lambda: llama(),
    "llama grouped queries": lambda: llama(num_key_value_heads=2),
    "llama tied": lambda: llama(tie_word_embeddings=True),
    "llama head_dim": lambda: llama(head_dim=16),
    "llama linear rotary scaling": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    ),
    "llama3 rotary scaling": lambda: llama(rope_parameters=LLAMA3),
    "gpt2": gpt2,
    "neox": neox,
    "neox sequential": lambda: neox(use_parallel_residual=False),
    "olmo": olmo,
}


@needs_hooked
@pytest.mark.parametrize("fold_norms", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name, fold_norms, tmp_path):
    reference = MODELS[name]()
    jitter(reference)
    model = load_hooked(saved(reference, tmp_path), fold_norms=fold_norms)
    tokens = torch.randint(0, 90, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = reference.eval()(tokens).logits.log_softmax(dim=-1)
    assert (model(tokens).log_softmax(dim=-1) - wanted).abs().max() < 1e-5
    assert prove_conversion(model, tmp_path) < 1e-5
    kind = "RMS" if name.startswith("llama") else "LN"
    assert model.cfg.normalization_type == (kind + "Pre" if fold_norms else kind)


@needs_hooked
@pytest.mark.parametrize("fold_norms", [False, True])
def test_weights_load_in_place(fold_norms, tmp_path):
    first, second = saved(llama(0), tmp_path / "a"), saved(llama(1), tmp_path / "b")
    model = load_hooked(first, fold_norms=fold_norms)
    before = model.blocks[0].attn.W_Q
    assert load_weights_into(model, second, prove=True) is model
    assert model.blocks[0].attn.W_Q is before
    fresh = load_hooked(second, fold_norms=fold_norms).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_proof_fails_on_other_weights(tmp_path):
    first, second = saved(llama(0), tmp_path / "a"), saved(llama(1), tmp_path / "b")
    model = load_hooked(first)
    with pytest.raises(InputError, match="logits differ"):
        prove_conversion(model, second)


@needs_hooked
def test_rounding_alone_is_no_difference(tmp_path):
    """Queries and keys so large that the last digit of a rotation shows in the logits."""
    model: Any = llama(0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 80
            layer.self_attn.k_proj.weight *= 80
    sharp = saved(model, tmp_path / "a")
    loaded: Any = load_hooked(sharp)
    difference = logit_difference(loaded)
    assert difference is not None
    assert difference > LOGIT_TOLERANCE[torch.float32]
    with torch.no_grad():
        loaded.blocks[0].attn.W_O *= 2
    with pytest.raises(InputError, match="logits differ"):
        prove_conversion(loaded, sharp)


def test_series_with_differing_configs(tmp_path):
    first, second = saved(llama(0), tmp_path / "a"), saved(llama(0, num_key_value_heads=2), tmp_path / "b")
    model = load_weights_into(load_hooked(first), second)
    assert model.cfg.n_key_value_heads == 2
    tokens = torch.arange(20)[None]
    assert torch.allclose(model(tokens), load_hooked(second)(tokens))


def test_no_bar_is_left_behind_while_weights_load(tmp_path, capsys):
    from transformers.utils import logging

    path = saved(llama(), tmp_path)
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        capsys.readouterr()
        load_hooked(path, prove=False)
        assert capsys.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled()  # the caller's own choice stays
    finally:
        if not before:
            logging.disable_progress_bar()


@needs_hooked
def test_a_directory_called_llama_and_no_warning(tmp_path):
    # TransformerLens' own loader guesses the architecture from a name like this.
    jittered = gpt2()
    path = saved(jittered, tmp_path / "meta-llama-7b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_hooked(path, prove=False)
    assert model.cfg.original_architecture == "GPT2LMHeadModel"
    assert model.tokenizer is None


def test_shards(tmp_path):
    whole = saved(llama(), tmp_path)
    tensors = load_file(whole / "model.safetensors")
    names = sorted(tensors)
    parts = {"one.safetensors": names[:7], "two.safetensors": names[7:]}
    for part, inside in parts.items():
        save_file({n: tensors[n] for n in inside}, whole / part)
    (whole / "model.safetensors").unlink()
    index = {"weight_map": {n: part for part, inside in parts.items() for n in inside}}
    (whole / "model.safetensors.index.json").write_text(json.dumps(index))
    load_hooked(whole, prove=False)
    (whole / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"two\.safetensors"):
        load_hooked(whole)


def change_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(path, edit):
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def damage(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


FAULTS = {
    "no config.json": (lambda p: (p / "config.json").unlink(), r"config\.json: no such file"),
    "damaged config": (lambda p: (p / "config.json").write_text("{"), r"config\.json: not a config"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "damaged weights": (damage, "cut off"),
    "NaN": (
        lambda p: edit_tensors(p, lambda t: t["model.norm.weight"].fill_(float("nan"))),
        r"model\.norm\.weight.*NaN",
    ),
    "missing tensor": (
        lambda p: edit_tensors(p, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        r"lack model\.layers\.1\.mlp\.up_proj",
    ),
    "wrong shape": (lambda p: change_config(p, vocab_size=91), r"has shape \(90, 32\)"),
    "unsupported architecture": (lambda p: change_config(p, model_type="mamba"), "Mamba.* no attention"),
    "biases that are not there": (lambda p: change_config(p, attention_bias=True), "lack .*proj.bias"),
    "a tensor too many": (
        lambda p: edit_tensors(p, lambda t: t.update({"model.layers.0.extra.weight": torch.ones(3)})),
        "hold model.layers.0.extra.weight",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_directory_is_one_clear_line(name, tmp_path):
    fault, message = FAULTS[name]
    path = saved(llama(), tmp_path)
    fault(path)
    with pytest.raises(InputError, match=message) as error:
        load_hooked(path)
    assert "\n" not in str(error.value)


def test_a_failed_load_leaves_the_model_as_it_was(tmp_path):
    good, bad = saved(llama(0), tmp_path / "a"), saved(llama(1), tmp_path / "b")
    edit_tensors(bad, lambda t: t.pop("model.norm.weight"))
    model = load_hooked(good)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError):
        load_weights_into(model, bad)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_encoder(tmp_path):
    size: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertForMaskedLM(BertConfig(vocab_size=30, **size)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="BertForMaskedLM has an encoder"):
        load_hooked(tmp_path)


def as_gguf(model, path, more=lambda writer: None):
    """The Llama as llama.cpp writes it: its names, and queries and keys in the order of interleaved rotations."""
    gguf = pytest.importorskip("gguf", reason="GGUF files need the package gguf (copyscope[gguf])")
    c = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    more(writer)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, tensor in model.state_dict().items():
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
        if heads:
            tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            layer, rest = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"blk.{layer}.{names[rest]}"
        else:
            stem = names[stem]
        writer.add_tensor(f"{stem}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("heads", [4, 2])
def test_gguf_gives_the_logits_of_the_folder(heads, tmp_path):
    reference = llama(num_key_value_heads=heads)
    with torch.no_grad():
        for parameter in reference.parameters():  # q and k away from symmetry, so that a wrong order shows
            parameter.add_(torch.randn_like(parameter) * 0.2)
    path = as_gguf(reference, tmp_path / "tiny.gguf")
    model = load_hooked(path)
    tokens = torch.randint(0, 90, (2, 30), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(tokens), reference(tokens).logits, atol=1e-4)
    assert model.cfg.model_name == "tiny"


def test_gguf_rotary_scaling_that_transformers_drops(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    reference = llama(rope_parameters=rope)
    jitter(reference)

    def scaling(writer):
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", 2.0)

    model = load_hooked(as_gguf(reference, tmp_path / "tiny.gguf", scaling))
    tokens = torch.randint(0, 90, (2, 60), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(tokens), reference(tokens).logits, atol=1e-4)


def test_gguf_numbers_that_transformers_does_not_read(tmp_path):
    path = as_gguf(llama(), tmp_path / "tiny.gguf", lambda writer: writer.add_float32("llama.logit_scale", 0.5))
    with pytest.raises(InputError, match="logit_scale"):
        load_hooked(path)


def test_bad_gguf(tmp_path):
    path = as_gguf(llama(), tmp_path / "tiny.gguf")
    data = path.read_bytes()
    for damaged, message in ((data[: len(data) // 2], "tiny.gguf: not a"), (b"PK" + data, "no GGUF file")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message) as error:
            load_hooked(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        load_hooked(str(tmp_path / "none.gguf"))


def test_missing_directory_and_unreachable_hub(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        load_hooked(tmp_path / "nothing")
    with pytest.raises(InputError, match="neither a local directory nor"):
        load_hooked("nobody/nothing", revision="step1")
    with pytest.raises(InputError, match="revision"):
        load_hooked(saved(llama(), tmp_path), revision="step1")
