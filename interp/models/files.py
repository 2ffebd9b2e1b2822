"""Where a model's files are and what they hold: a folder in Hugging Face format, a hub revision, or a GGUF file.

A local path never reaches for the hub, and nothing is unpickled. Knows transformers' formats, not TransformerLens.
"""

import importlib.util
import re
import warnings
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from copyscope.interp.models.tokenizer import read_tokenizer
from copyscope.training.checkpoints.manifest import check_files
from copyscope.training.checkpoints.series import local_path
from copyscope.training.checkpoints.weights import model_tensors
from copyscope.training.errors import InputError, first_line

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "vocab.txt", "merges.txt"]


class ModelFiles:
    """The files of one model, found and named; read when asked. `tokenizer`: a folder to take it from instead.

    Raises:
        InputError: no such model, a file of another kind, a hub id that cannot be had, or a file that differs from
            what the checkpoint's manifest says.
    """

    def __init__(self, source: str | Path, revision: str | None = None, tokenizer: str | Path | None = None):
        path = _find(source, revision)
        self._tokenizer = None if tokenizer is None else Path(tokenizer)
        self.path = path
        self.is_gguf = path.is_file()
        if not self.is_gguf:
            check_files(path)  # a flipped bit gives numbers that look as good as the right ones

    @property
    def name(self) -> str:
        """A word for the model."""
        return self.path.stem if self.is_gguf else self.path.name

    @property
    def config_path(self) -> Path:
        """The file that messages about the configuration name."""
        return self.path if self.is_gguf else self.path / "config.json"

    @cached_property
    def config(self) -> Any:
        """transformers' configuration. Raises InputError if it is missing or unreadable."""
        return read_config(self._folder, self.path.name if self.is_gguf else None)

    def weight_paths(self) -> list[Path]:
        """The files that hold the weights. Raises InputError if one is not there."""
        if self.is_gguf:
            return [self.path]
        return sorted({place.path for place in model_tensors(self.path).values()})

    def tensors(self) -> dict[str, Tensor]:
        """All weights by transformers' names. Raises InputError for files that are missing or damaged."""
        if self.is_gguf:  # dequantised and renamed by transformers, which builds its model for that
            return dict(self.reference(torch.float32).state_dict())
        tensors: dict[str, Tensor] = {}
        with ExitStack() as stack:
            files: dict[Path, Any] = {}
            for name, place in model_tensors(self.path).items():
                try:
                    if place.path not in files:
                        files[place.path] = stack.enter_context(safe_open(place.path, framework="pt"))
                    tensors[name] = files[place.path].get_tensor(place.stored)
                except (SafetensorError, OSError, ValueError) as error:
                    raise InputError(
                        f"{place.path}: damaged safetensors file ({error}); fetch or save it again"
                    ) from error
        return tensors

    def reference(self, dtype: torch.dtype) -> Any:
        """transformers' own model, in evaluation mode, on the CPU."""
        if self.is_gguf and self._built is not None:
            return self._built
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self._folder, local_files_only=True, dtype=dtype, attn_implementation="eager", use_safetensors=True,
                    **self._gguf,
                )  # fmt: skip
            except Exception as error:  # of any type: values of the config meet the weights here
                kind = "GGUF file" if self.is_gguf else "model"
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise InputError(f"{self.path}: not a {kind} that transformers reads ({reason[:120]})") from error
        self._built = model.eval() if self.is_gguf else None  # dequantising takes half a minute; once is enough
        return model.eval()

    _built: Any = None

    def tokenizer(self) -> Any | None:
        """The tokenizer as it was saved; None without one. Raises InputError for one that cannot be read."""
        if self._tokenizer is not None:
            return read_tokenizer(self._tokenizer)
        return read_tokenizer(self._folder, self.path.name if self.is_gguf else None)

    @property
    def _folder(self) -> Path:
        return self.path.parent if self.is_gguf else self.path

    @property
    def _gguf(self) -> dict[str, str]:
        return {"gguf_file": self.path.name} if self.is_gguf else {}


def read_config(folder: Path, gguf_file: str | None = None) -> Any:
    """transformers' configuration of the language model in a folder (or in a GGUF file there). Runs no code from it.

    Raises:
        InputError: it is missing or unreadable, or only code in the folder can read it.
    """
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


def _find(source: str | Path, revision: str | None) -> Path:
    path = local_path(str(source))
    if path.is_dir() or path.is_file():
        if revision is not None:
            raise InputError(f"revision={revision!r} is for hub ids, but {path} is local; drop it")
        if path.is_file():
            _check_gguf(path)
        return path
    name = str(source)
    is_id = not isinstance(source, Path) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    if not is_id or name.startswith(".") or name.endswith(".gguf"):
        raise InputError(f"{source}: no such file or directory; give a folder with config.json, or a hub id org/model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client has a dozen error types, and all mean that the model is not to be had
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"{name}{at}: neither a local directory nor a model the hub gave ({type(error).__name__}); "
            "check the name and the network"
        ) from error


def _check_gguf(path: Path) -> None:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise InputError(
            f"{path} is a file, but no GGUF file; give the directory that holds config.json and model.safetensors"
        )
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{path}: reading GGUF files needs the package gguf; install copyscope[gguf]")
