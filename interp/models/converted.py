"""transformers' model as a `HookedTransformer`, by TransformerLens' own converters."""

import importlib
import warnings
from typing import Any

import torch
from einops import EinopsError
from torch import Tensor

from copyscope.interp.models.families import FAMILIES
from copyscope.interp.models.files import ModelFiles
from copyscope.interp.models.lens import HAS_HOOKED, HookedTransformer, HookedTransformerConfig
from copyscope.training.errors import InputError, first_line

_CONVERTERS = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",  # the same names; Mistral's own insists on grouped heads
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "OlmoForCausalLM": "olmo",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "neox",
}
_FOLDABLE = {*_CONVERTERS} - {"Qwen3ForCausalLM"}


def hooked_config(
    files: ModelFiles, architecture: str, device: str | torch.device, dtype: torch.dtype, fold_norms: bool
) -> Any | None:
    """The `HookedTransformerConfig` of a model; None where it has to be a bridge. Raises InputError for a config that
    makes no model."""
    # TransformerLens' own reading of a config guesses the architecture from the directory's name and ignores head_dim,
    # the biases and NeoX' rotary base, so the config is built here.
    if not HAS_HOOKED or architecture not in FAMILIES:
        return None
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    try:
        fields = FAMILIES[architecture](files.config)
        if fields is None or fields["act_fn"] not in SUPPORTED_ACTIVATIONS:
            return None
        if fold_norms:
            if architecture not in _FOLDABLE:
                raise InputError(f"fold_norms: not for {architecture}; load it without")
            fields["normalization_type"] += "Pre"
        return HookedTransformerConfig(
            **fields,
            model_name=files.name,
            original_architecture=architecture,
            device=str(device),
            dtype=dtype,
            init_weights=False,
        )
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{files.config_path}: invalid model config ({first_line(error)}); fix it") from error


def converted(config: Any, tensors: dict[str, Tensor], files: ModelFiles) -> HookedTransformer:
    """A new `HookedTransformer` with the weights of transformers' model (its `state_dict`), which are emptied."""
    with warnings.catch_warnings():
        # 3.9 announces on every construction that 4 drops HookedTransformer; `lens` is prepared for that.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = HookedTransformer(config)
    model.eval().requires_grad_(False)
    copy_weights(model, tensors, files)
    return model


def copy_weights(model: HookedTransformer, tensors: dict[str, Tensor], files: ModelFiles) -> None:
    """Copies the weights of transformers' model (its `state_dict`) into the model, which changes only once all of them
    fit.

    Empties `tensors` on the way: where nothing else holds them, a new model and they take the memory of one.
    """
    config = model.cfg
    name = config.original_architecture or ""
    weights = importlib.import_module(f"transformer_lens.pretrained.weight_conversions.{_CONVERTERS[name]}")
    convert = getattr(weights, f"convert_{_CONVERTERS[name]}_weights")
    parameters = dict(model.named_parameters())
    try:
        state = convert(_Modules(tensors), config)
        # Converters leave out biases that a family has not got (b_U of GPT-2); folding needs them.
        for key, parameter in parameters.items():
            if key not in state and key.rpartition(".")[2].lstrip("_").startswith("b_"):
                state[key] = torch.zeros_like(parameter)
        if config.normalization_type in ("RMSPre", "LNPre"):
            state = _folded(state, config)
    except AttributeError as error:
        raise InputError(f"{files.path}: the weights lack {error.args[0]}, which config.json calls for") from error
    except (EinopsError, RuntimeError) as error:
        raise InputError(f"{files.path}: the weights do not fit config.json ({first_line(error, 160)})") from error
    for key, parameter in parameters.items():
        if key not in state:
            raise InputError(f"{files.path}: the weights lack what TransformerLens calls {key}")
        if state[key].shape != parameter.shape:
            raise InputError(
                f"{files.path}: {key} has shape {tuple(state[key].shape)} in the weights, but config.json says "
                f"{tuple(parameter.shape)}"
            )
    tensors.clear()
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(state.pop(key))


def _folded(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    from transformer_lens.weight_processing import ProcessWeights

    return ProcessWeights.process_weights(
        {name: tensor.clone() for name, tensor in state.items()},
        config,
        fold_ln=True,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )


class _Modules:
    """Dotted tensor names as the tree of modules that TransformerLens' converters walk."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str = "") -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getattr__(self, name: str) -> Any:
        full = self._prefix + name
        if full in self._tensors:
            return self._tensors[full]
        if not any(key.startswith(full + ".") for key in self._tensors):
            raise AttributeError(full)
        return _Modules(self._tensors, full + ".")

    def __getitem__(self, index: int) -> Any:
        return getattr(self, str(index))
