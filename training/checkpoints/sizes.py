"""Whether the sizes that a model's config names are those of its tensors; asked of names and shapes, no model built."""

import re
from collections.abc import Mapping
from typing import Any

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings)\.weight$")
_ENTRIES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
}
"""What families call the same number, in the order they are looked up in."""
_ROWS = {
    "self_attn.q_proj.weight": ("num_attention_heads", "heads"),
    "self_attn.k_proj.weight": ("num_key_value_heads", "heads"),
    "self_attn.v_proj.weight": ("num_key_value_heads", "heads"),
    "mlp.gate_proj.weight": ("intermediate_size", ""),
    "mlp.up_proj.weight": ("intermediate_size", ""),
}
"""End of a tensor's name → the entry that its first size has to be (times the width of a head, for heads)."""


def why_sizes_differ(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What config.json says and what the weights hold, in one line, where the two differ; None where they do not.

    `shapes` by transformers' names. Looks at layers, embedding, heads and MLP width; None as well for what cannot be
    told: models of more than text, and families that name these otherwise.
    """
    if "vision_config" in config or "audio_config" in config:
        return None
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    layers = {int(match[1]) for name in shapes if (match := _LAYER.search(name))}
    name, wanted = _entry(config, "layers")
    if layers and wanted is not None and not config.get("num_nextn_predict_layers"):
        absent = sorted({*range(wanted)} - layers)
        if absent or max(layers) >= wanted:
            which = f"none of layer {absent[0]}" if absent else f"a layer {max(layers)}"
            return f"config.json says {name}={wanted}, but the weights hold {which}"
    for tensor, shape in sorted(shapes.items()):
        if _EMBEDDING.search(tensor) and len(shape) == 2:
            width, columns = _entry(config, "width")
            for entry, number, held in (
                ("vocab_size", _number(config, "vocab_size"), shape[0]),
                (width, columns, shape[1]),
            ):
                if number is not None and number != held:
                    return f"config.json says {entry}={number}, but {tensor} is {list(shape)}"
        why = _why_rows_differ(config, tensor, shape)
        if why:
            return why
    return None


def _why_rows_differ(config: Mapping[str, Any], tensor: str, shape: tuple[int, ...]) -> str | None:
    end = next((end for end in _ROWS if tensor.endswith("." + end)), None)
    if end is None or len(shape) != 2:
        return None
    entry, of_heads = _ROWS[end]
    number, rows = _number(config, entry), shape[0]
    if number is None:
        return None
    wanted = number
    if of_heads:
        width, heads = _entry(config, "width")[1], _entry(config, "heads")[1]
        head = _number(config, "head_dim") or (width // heads if width and heads else None)
        if head is None:
            return None
        wanted = number * head
    gated = end == "self_attn.q_proj.weight" and rows == 2 * wanted  # Qwen3-Next: each query with its output's gate
    if rows == wanted or gated:
        return None
    return f"config.json says {entry}={number}, which makes {wanted} rows, but {tensor} is {list(shape)}"


def _entry(config: Mapping[str, Any], what: str) -> tuple[str, int | None]:
    name = next((name for name in _ENTRIES[what] if name in config), _ENTRIES[what][0])
    return name, _number(config, name)


def _number(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int and value > 0 else None
