"""Where a model's files are and what they hold: a folder in Hugging Face format, a hub revision, or a GGUF file.

A local path never reaches for the hub, and nothing is unpickled. Knows transformers' formats, not TransformerLens.
"""

import importlib.util
import json
import re
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from copyscope.training.checkpoints.manifest import check_files
from copyscope.training.checkpoints.series import local_path
from copyscope.training.errors import InputError

_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "vocab.txt", "merges.txt"]


class ModelFiles:
    """The files of one model, found and named; read when asked.

    Raises:
        InputError: no such model, a file of another kind, a hub id that cannot be had, or a file that differs from
            what the checkpoint's manifest says.
    """

    def __init__(self, source: str | Path, revision: str | None = None):
        path = _find(source, revision)
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
        if not self.config_path.is_file():
            raise InputError(f"{self.config_path}: no such file; {self.path} is not a model in Hugging Face format")
        try:
            return AutoConfig.from_pretrained(self._folder, local_files_only=True, **self._gguf)
        except Exception as error:  # unknown model_type, damaged JSON and values out of range come as different types
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"{self.config_path}: not a config that transformers reads ({reason[:120]})") from error

    def weight_paths(self) -> list[Path]:
        """The files that hold the weights. Raises InputError if one is not there."""
        paths = [self.path] if self.is_gguf else [self.path / name for name in self._weight_files()]
        for path in paths:
            if not path.is_file():
                pickled = " (only pickled weights, which are never read: save it with safe_serialization)"
                raise InputError(f"{path}: no such file{pickled if any(self.path.glob('*.bin')) else ''}")
        return paths

    def tensors(self) -> dict[str, Tensor]:
        """All weights by transformers' names. Raises InputError for files that are missing or damaged."""
        if self.is_gguf:  # dequantised and renamed by transformers, which builds its model for that
            return dict(self.reference(torch.float32).state_dict())
        tensors: dict[str, Tensor] = {}
        for path in self.weight_paths():
            try:
                tensors |= load_file(path)
            except (SafetensorError, OSError, ValueError) as error:
                raise InputError(f"{path}: damaged safetensors file ({error}); fetch or save it again") from error
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
        """The tokenizer; None without one. Raises InputError for a tokenizer.json that cannot be read: prompts leave
        its special tokens out, and would not be the same without."""
        if not self.is_gguf and not (self.path / "tokenizer.json").is_file():
            return None
        try:
            return AutoTokenizer.from_pretrained(self._folder, local_files_only=True, **self._gguf)
        except Exception as error:  # damaged JSON and unknown kinds come as different types
            if self.is_gguf:  # which cannot be taken away from its file
                return None
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(
                f"{self.path / 'tokenizer.json'}: not a tokenizer that transformers reads ({reason[:120]}); fetch it "
                "again, or take it away to go on without text and special tokens"
            ) from None

    @property
    def _folder(self) -> Path:
        return self.path.parent if self.is_gguf else self.path

    @property
    def _gguf(self) -> dict[str, str]:
        return {"gguf_file": self.path.name} if self.is_gguf else {}

    def _weight_files(self) -> list[str]:
        index = self.path / "model.safetensors.index.json"
        if not index.is_file():
            return ["model.safetensors"]
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            if not names or any(name != Path(name).name for name in names):
                raise ValueError("files elsewhere")
            return names
        except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
            raise InputError(f"{index}: damaged; it needs a weight_map from tensor to file") from error


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
