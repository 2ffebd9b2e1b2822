"""What a GGUF file says about its model and transformers' reading of it drops or changes."""

import math
from pathlib import Path
from typing import Any

from copyscope.training.errors import InputError, first_line

_SAME = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""The file's number and the config's entry that has to equal it."""
_FACTORS = ("logit_scale", "embedding_scale", "residual_scale", "attention.scale", "attention.clamp_kqv")
"""Numbers that transformers does not read from the files of most families."""


def with_the_files_numbers(config: Any, path: Path) -> Any:
    """`config` with the rotary scaling that the file holds, after comparing every number that both have.

    Raises InputError: numbers that differ, or that transformers' model has no place for.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        frequencies = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    except Exception as error:  # damaged files fail in many ways
        raise InputError(f"{path}: not a GGUF file that can be read ({first_line(error)})") from error
    architecture = fields.get("general.architecture")
    numbers = {str(k).removeprefix(f"{architecture}."): v for k, v in fields.items()}
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if any((values != 1).any() for values in frequencies) and rope.get("rope_type") != "llama3":
        raise InputError(
            f"{path}: rope_freqs holds a rotary scaling that transformers drops; use the safetensors files"
        )
    _scale(config, rope, numbers, path)
    base = numbers.get("rope.freq_base")
    if base is not None and rope and not _equal(base, rope.get("rope_theta")):
        raise InputError(f"{path}: rope.freq_base is {base}, but transformers reads {rope.get('rope_theta')}")
    for name, entry in _SAME.items():
        held, read = numbers.get(name), getattr(config, entry, None)
        if held is not None and not isinstance(held, list) and held != 0 and not _equal(held, read):
            raise InputError(f"{path}: {name} is {held}, but transformers reads {read}; use the safetensors files")
    for name in _FACTORS:
        if numbers.get(name) not in (None, 0, 1) and not str(config.model_type).startswith(("granite", "cohere")):
            raise InputError(f"{path}: {name}={numbers[name]} is not read by transformers; use the safetensors files")
    return config


def _scale(config: Any, rope: dict[str, Any], numbers: dict[str, Any], path: Path) -> None:
    kind, factor = numbers.get("rope.scaling.type"), numbers.get("rope.scaling.factor")
    if kind is None and numbers.get("rope.scale_linear"):
        kind, factor = "linear", numbers["rope.scale_linear"]
    if kind in (None, "none") or (kind == "linear" and factor in (None, 1)):
        return
    if kind not in ("linear", "yarn") or not factor or not rope:
        raise InputError(f"{path}: rotary scaling {kind!r} is not supported; use the safetensors files")
    scaled = rope | {"rope_type": kind, "factor": float(factor)}
    if kind == "yarn" and numbers.get("rope.scaling.original_context_length"):
        scaled["original_max_position_embeddings"] = int(numbers["rope.scaling.original_context_length"])
    config.rope_parameters = scaled


def _equal(held: Any, read: Any) -> bool:
    return isinstance(read, int | float) and math.isclose(float(held), float(read), rel_tol=1e-4)
