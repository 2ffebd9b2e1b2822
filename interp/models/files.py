"""Where a model's files are and what they hold: a folder in Hugging Face format, a hub revision, or a GGUF file.

A local path never reaches for the hub, and nothing is unpickled. Knows transformers' formats, not TransformerLens.
"""

import copy
import importlib.util
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from copyscope.interp.models.config import context_length, read_config
from copyscope.interp.models.gguf_numbers import with_the_files_numbers
from copyscope.interp.models.tokenizer import read_tokenizer
from copyscope.training.checkpoints.manifest import check_files
from copyscope.training.checkpoints.revisions import fetch_small, fetch_weights
from copyscope.training.checkpoints.series import local_path
from copyscope.training.checkpoints.weights import model_tensors
from copyscope.training.errors import InputError, first_line


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' bar while weights load: a series would leave one a checkpoint, in a notebook for good."""
    before = logging.is_progress_bar_enabled()
    if before:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


class ModelFiles:
    """The files of one model, found and named; read when asked. `tokenizer`: a folder to take it from instead.

    Raises:
        InputError: no such model, a file of another kind, a hub id that cannot be had, or a file that differs from
            what the checkpoint's manifest says.
    """

    def __init__(self, source: str | Path, revision: str | None = None, tokenizer: str | Path | None = None):
        path, self._hub = _find(source, revision)
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
        config = read_config(self._folder, self.path.name if self.is_gguf else None)
        return with_the_files_numbers(config, self.path) if self.is_gguf else config

    def weight_paths(self) -> list[Path]:
        """The files that hold the weights. Raises InputError if one is not there."""
        if self.is_gguf:
            return [self.path]
        return sorted({place.path for place in model_tensors(self.path).values()})

    @property
    def architecture(self) -> str:
        """transformers' class for this model, by the config's model_type: names in old files are often of others.

        Raises:
            InputError: an encoder, or no causal language model.
        """
        config = self.config
        named = (getattr(config, "architectures", None) or [config.model_type])[0]
        encoders = {n for v in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() for n in ([v] if isinstance(v, str) else v)}
        if getattr(config, "is_encoder_decoder", False) or (named in encoders and not named.endswith("ForCausalLM")):
            raise InputError(
                f"{self.config_path}: {named} has an encoder, and copying is measured on decoder-only language models"
            )
        return self._class.__name__

    @property
    def context_length(self) -> int:
        """How many positions the model takes."""
        return context_length(self.config, self.config_path)

    def reference(self, dtype: torch.dtype) -> Any:
        """transformers' own model, in evaluation mode, on the CPU, with every weight from the files and finite.

        Raises InputError: tensors that are missing, extra or of another shape than the config's, or not finite.
        """
        if not self.is_gguf:
            self._fetch_weights()
        self._check_sizes()
        with ExitStack() as stack, warnings.catch_warnings(), _without_bars():
            warnings.simplefilter("ignore")
            held = {} if self.is_gguf else {"state_dict": self._slices(stack)}
            try:
                model, loading = self._class.from_pretrained(
                    self._folder if self.is_gguf else None,
                    config=copy.deepcopy(self.config),
                    dtype=dtype,
                    attn_implementation="eager",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                    **held,
                    **self._gguf,
                )
            except Exception as error:  # of any type: values of the config meet the weights here
                kind = "GGUF file" if self.is_gguf else "model"
                raise InputError(f"{self.path}: not a {kind} that transformers reads ({first_line(error)})") from error
        self._check_loading(loading)
        for name, parameter in model.named_parameters():
            if parameter.numel() and not torch.stack(torch.aminmax(parameter)).isfinite().all():  # NaN if any is
                raise InputError(f"{self.path}: tensor {name} holds NaN or infinity; this checkpoint is not usable")
        if self.config.model_type == "gpt_neox":
            _fill_in_biases(model)
        return model.eval().requires_grad_(False)

    def _slices(self, stack: ExitStack) -> dict[str, Any]:
        """All weights of a folder by transformers' names, each read when it is indexed, while `stack` is open."""
        slices: dict[str, Any] = {}
        files: dict[Path, Any] = {}
        for name, place in model_tensors(self.path).items():
            try:
                if place.path not in files:
                    files[place.path] = stack.enter_context(safe_open(place.path, framework="pt"))
                slices[name] = files[place.path].get_slice(place.stored)
            except (SafetensorError, OSError, ValueError) as error:
                raise InputError(f"{place.path}: damaged safetensors file ({error}); fetch or save it again") from error
        return slices

    @cached_property
    def _class(self) -> Any:
        try:
            return MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)]
        except KeyError:
            raise InputError(
                f"{self.config_path}: {self.config.model_type} is no causal language model that transformers has"
            ) from None

    def _check_loading(self, loading: dict[str, Any]) -> None:
        """transformers fills in what is missing at random and drops what it does not know; here both are refused."""
        for name, held, wanted in sorted(loading["mismatched_keys"]):
            raise InputError(
                f"{self.path}: {name} has shape {tuple(held)} in the weights, but config.json says {tuple(wanted)}"
            )
        for name in sorted(loading["missing_keys"]):
            raise InputError(f"{self.path}: the weights lack {name}, which config.json calls for")
        for name in sorted(loading["unexpected_keys"]):
            raise InputError(
                f"{self.path}: the weights hold {name}, which no {self._class.__name__} has; fix config.json"
            )

    def _check_sizes(self) -> None:
        """Before a damaged number takes all memory."""
        c = self.config
        try:
            layers, heads, width = int(c.num_hidden_layers), int(c.num_attention_heads or 1), int(c.hidden_size)
            vocab, mlp = int(c.vocab_size), int(getattr(c, "intermediate_size", None) or 0)
            groups = int(getattr(c, "num_key_value_heads", None) or heads)
            head = int(getattr(c, "head_dim", None) or width // max(heads, 1))
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{self.config_path}: invalid model config ({first_line(error)}); fix it") from None
        if min(layers, heads, width, vocab, groups, head) < 1 or mlp < 0:
            raise InputError(f"{self.config_path}: a size in it is below 1; fix it")
        if heads % groups:
            raise InputError(f"{self.config_path}: {groups} key-value heads cannot share {heads} heads")
        calls_for = width * (layers * (2 * heads * head + 2 * mlp) + vocab)
        held = sum(path.stat().st_size for path in self.weight_paths())
        if calls_for > max(4 * held, 2**20):  # a value has half a byte at least
            raise InputError(
                f"{self.config_path}: calls for about {calls_for:.1e} weights, but the files hold {held:.1e} bytes; "
                "one of the two is not of this model"
            )

    def _fetch_weights(self) -> None:
        """Not before the config has been looked at: a model that is not supported costs no download."""
        if self._hub is not None:
            fetch_weights(self._hub, self.path)
            self._hub = None

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


def _fill_in_biases(model: Any) -> None:
    """Zeros for the biases that a GPT-NeoX may be saved without; TransformerLens takes them for granted."""
    for layer in model.gpt_neox.layers:
        for linear in (layer.attention.query_key_value, layer.attention.dense):
            if linear.bias is None:
                linear.bias = torch.nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _find(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """Where the files are, and the hub id if the weights are yet to be fetched."""
    path = local_path(str(source))
    if path.is_dir() or path.is_file():
        if revision is not None:
            raise InputError(f"revision={revision!r} is for hub ids, but {path} is local; drop it")
        if path.is_file():
            _check_gguf(path)
        return path, None
    name = str(source)
    is_id = not isinstance(source, Path) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
    if not is_id or name.startswith(".") or name.endswith(".gguf"):
        raise InputError(f"{source}: no such file or directory; give a folder with config.json, or a hub id org/model")
    return fetch_small(name, revision), name


def _check_gguf(path: Path) -> None:
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic != b"GGUF":
        raise InputError(
            f"{path} is a file, but no GGUF file; give the directory that holds config.json and model.safetensors"
        )
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"{path}: reading GGUF files needs the package gguf; install copyscope[gguf]")
