"""Names that wrappers change are read as transformers has them; buffers that nothing reads are left out; what holds no
plain weights is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from copyscope.training.checkpoints.tensor_names import DoubleError, is_unread, plain_names
from copyscope.training.checkpoints.unfit import why_no_weights, why_unfit
from copyscope.training.checkpoints.weights import model_tensors
from copyscope.training.errors import InputError

LLAMA = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "lm_head.weight"]
TIED = LLAMA[:3]
NEOX = ["gpt_neox.embed_in.weight", "gpt_neox.layers.0.attention.dense.bias", "embed_out.weight"]
GPT2 = ["transformer.wte.weight", "transformer.h.0.attn.c_attn.bias", "lm_head.weight"]
TRUNK = ["wte.weight", "h.0.attn.c_attn.bias", "ln_f.weight"]


@pytest.mark.parametrize("names", [LLAMA, TIED, NEOX, GPT2, TRUNK])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "_forward_module.", "_orig_mod.module.", "module._orig_mod."]
)
def test_prefixes_are_taken_off(names: list[str], prefix: str) -> None:
    stored = [prefix + name for name in names]
    assert plain_names(stored) == dict(zip(stored, names, strict=True))


@pytest.mark.parametrize("names", [LLAMA, TIED, NEOX, GPT2])
@pytest.mark.parametrize(
    "prefix", ["model.", "base_model.model.", "model._orig_mod.", "lit.model.", "_forward_module.model.", "student."]
)
def test_a_class_around_the_model(names: list[str], prefix: str) -> None:
    stored = [prefix + name for name in names]
    assert list(plain_names(stored).values()) == names


def test_marks_inside_names() -> None:
    stored = {
        "model._orig_mod.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "model.layers.0._fsdp_wrapped_module.mlp.up_proj.bias": "model.layers.0.mlp.up_proj.bias",
        "model.layers.1._checkpoint_wrapped_module.mlp.up_proj.bias": "model.layers.1.mlp.up_proj.bias",
        "lm_head.weight": "lm_head.weight",
    }
    assert plain_names(stored) == stored


def test_one_name_twice() -> None:
    with pytest.raises(DoubleError, match=r"lm_head\.weight"):
        plain_names(["lm_head.weight", "module.lm_head.weight"])


@pytest.mark.parametrize(
    ("name", "shape", "unread"),
    [
        ("gpt_neox.layers.0.attention.bias", (1, 1, 64, 64), True),
        ("gpt_neox.layers.0.attention.masked_bias", (), True),
        ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", (1,), True),
        ("gpt_neox.layers.0.attention.dense.bias", (16,), False),
        ("gpt_neox.layers.0.attention.query_key_value.bias", (48,), False),
        ("h.0.attn.bias", (1, 1, 64, 64), True),
        ("transformer.h.0.attn.c_attn.bias", (48,), False),
        ("transformer.h.0.attn.attention.masked_bias", (), True),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", (2,), True),
        ("model.rotary_emb.inv_freq", (4,), True),
        ("model.decoder.embed_positions.weight", (66, 16), False),
        ("model.layers.0.self_attn.q_proj.bias", (16,), False),
    ],
)
def test_buffers_that_no_model_reads(name: str, shape: tuple[int, ...], unread: bool) -> None:
    assert is_unread(name, shape) == unread


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    save_file(tensors, folder / "model.safetensors")
    return folder


WEIGHT = "model.layers.0.mlp.up_proj.weight"
UNFIT = {
    "int8": ({WEIGHT: torch.ones(4, 4, dtype=torch.int8)}, {}),
    "packed in uint8": ({WEIGHT: torch.ones(8, 1, dtype=torch.uint8)}, {}),
    "float8": ({WEIGHT: torch.ones(4, 4).to(torch.float8_e4m3fn)}, {}),
    "with scales": ({WEIGHT: torch.ones(4, 4), WEIGHT + "_scale": torch.ones(1)}, {}),
    "packed in int32": ({WEIGHT.replace("weight", "qweight"): torch.ones(4, 4, dtype=torch.int32)}, {}),
    "by its config": ({WEIGHT: torch.ones(4, 4)}, {"quantization_config": {"quant_method": "gptq"}}),
    "an adapter": ({f"base_model.model.{WEIGHT[:-7]}.lora_A.weight": torch.ones(2, 4)}, {}),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_no_plain_weights_is_refused(kind: str, tmp_path: Path) -> None:
    tensors, config = UNFIT[kind]
    with pytest.raises(InputError, match="adapter" if kind == "an adapter" else "quantised"):
        model_tensors(save(tmp_path / "m", tensors, config))


def test_plain_weights_with_old_buffers(tmp_path: Path) -> None:
    masks = {"module.model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}
    weights = {f"module.{name}": torch.randn(3, 3) for name in LLAMA}
    places = model_tensors(save(tmp_path / "m", weights | masks))
    assert set(places) == set(LLAMA)
    assert {place.stored for place in places.values()} == set(weights)
    assert why_unfit(tmp_path / "m", {name: place.dtype for name, place in places.items()}) is None


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", {"a": torch.ones(2)})
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, folder / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"a is there twice, in one\.safetensors and two\.safetensors"):
        model_tensors(folder)


def test_one_name_twice_in_a_header(tmp_path: Path) -> None:
    entry = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}'
    folder = save(tmp_path / "m", {"a": torch.ones(1)})
    (folder / "model.safetensors").write_bytes(len(entry).to_bytes(8, "little") + entry + b"\0\1")
    with pytest.raises(InputError, match="twice"):
        model_tensors(folder)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adapter_model.safetensors", "adapter"),
        ("__0_0.distcp", "distributed"),
        ("global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "DeepSpeed"),
        ("mp_rank_00/model_optim_rng.pt", "Megatron"),
        ("pytorch_model.bin", "pickled"),
        ("model.fp16.safetensors", "model.safetensors is missing"),
        ("README.md", "model.safetensors is missing"),
    ],
)
def test_what_is_there_instead_of_weights(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert says in why_no_weights(tmp_path)
    with pytest.raises(InputError, match=says):
        model_tensors(tmp_path)


def test_verify_and_average_take_what_transformers_takes(tmp_path: Path) -> None:
    """Old buffers with -inf, and one checkpoint saved from a compiled model."""
    from copyscope.training.checkpoints.average import average
    from copyscope.training.checkpoints.series import CheckpointSeries
    from copyscope.training.checkpoints.verify import verify

    torch.manual_seed(0)
    weights = {name: torch.randn(8, 8) for name in NEOX}
    saved = {}
    for step in (1, 2, 4):
        mask = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9).half()}
        prefix = "_orig_mod." if step == 2 else ""
        save(tmp_path / f"step{step}", {prefix + name: value.half() for name, value in weights.items()} | mask)
        saved[step] = dict(weights)
        weights = {name: value + 0.1 * torch.randn(8, 8) for name, value in weights.items()}
    assert verify(CheckpointSeries.open(tmp_path)) == []
    means = load_file(average(tmp_path).folder / "checkpoints" / "step00000004" / "model.safetensors")
    assert means.keys() == set(NEOX)
    assert torch.equal(means["embed_out.weight"], saved[4]["embed_out.weight"].half().float())
