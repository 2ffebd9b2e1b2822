"""A model's configuration, without its weights and without torch."""

from pathlib import Path
from typing import Any

from copyscope.training.errors import InputError, first_line


def read_config(folder: Path, gguf_file: str | None = None) -> Any:
    """transformers' configuration of the language model in a folder (or in a GGUF file there). Runs no code from it.

    Raises:
        InputError: it is missing or unreadable, or only code in the folder can read it.
    """
    from transformers import AutoConfig  # takes seconds and brings torch, which pages about tables do without

    path = folder / (gguf_file or "config.json")
    if not path.is_file():
        raise InputError(f"{path}: no such file; {folder} is not a model in Hugging Face format")
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **gguf)
        return config.get_text_config()
    except Exception as error:  # unknown model_type, damaged JSON and values out of range come as different types
        reason = first_line(error)
    if "trust_remote_code" in reason or "custom code" in reason:
        raise InputError(f"{path}: needs code from its own folder to be read, which copyscope never runs")
    raise InputError(f"{path}: not a config that transformers reads ({reason})")


def context_length(config: Any, path: Path) -> int:
    """How many positions a model takes; 2048 where the config sets no bound (ALiBi). Raises InputError for nonsense."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    length = next((value for name in names if (value := getattr(config, name, None)) is not None), 2048)
    if not isinstance(length, int) or length < 1:
        raise InputError(f"{path}: a context of {length!r} positions; fix the config")
    return length
