"""Any Llama, GPT-2 or GPT-NeoX checkpoint to a TransformerLens `HookedTransformer`, with proof of equal logits.

The only module that knows TransformerLens versions. Weights are read straight from safetensors files and handed to
TransformerLens' own converters, without building the transformers model first: loading a checkpoint of a series into
an existing model costs little more than reading the file.
"""

import copy
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from einops import EinopsError
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformer_lens.pretrained.weight_conversions.neox import convert_neox_weights
from transformer_lens.pretrained.weight_conversions.olmo import convert_olmo_weights
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS
from transformer_lens.weight_processing import ProcessWeights
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from copyscope.interp.models.at_step import checkpoint_at
from copyscope.interp.models.files import ModelFiles
from copyscope.interp.models.vocabulary import Vocabulary, vocabulary_of
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError

HookedModel = HookedTransformer | TransformerBridge
"""What measures accept: a `HookedTransformer`, or a `TransformerBridge` in compatibility mode."""

LOGIT_TOLERANCE = 1e-4
"""Largest difference of fp32 logits against transformers that still counts as the same model; where logits reach beyond
±10, in proportion to the largest, since rounding grows with them (30 layers and logits of 30 give 1.1e-4)."""

_CONVERTERS = {
    "LlamaForCausalLM": convert_llama_weights,
    "GPT2LMHeadModel": convert_gpt2_weights,
    "GPTNeoXForCausalLM": convert_neox_weights,
    "OlmoForCausalLM": convert_olmo_weights,
}
_BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "olmo": "OlmoForCausalLM",
}


def load_hooked(
    source: Source,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    fold_norms: bool = False,
    *,
    step: int | None = None,
    prove: bool = True,
) -> HookedTransformer:
    """Turns a checkpoint into a `HookedTransformer` in evaluation mode, with gradients off.

    Args:
        source: a local directory in Hugging Face format or a GGUF file (never reaches for the hub), or a hub id such
            as `EleutherAI/pythia-70m`.
        revision: the hub revision; only for a hub id.
        step: where `source` is a run or another series, the checkpoint of this step; -1 is the last.
        fold_norms: fold the norm weights into the matrices that read the residual stream. Log-probabilities stay the
            same; nothing is centred besides what a LayerNorm subtracts anyway.
        prove: compare logits with transformers on a short batch; in float32 a difference above `LOGIT_TOLERANCE`
            raises. Other precisions round differently in the two libraries and are not held to that bound.

    The tokenizer is attached when the directory has one that loads without the hub; else `model.tokenizer` is None.

    Raises:
        InputError: no such model, an encoder or another unsupported architecture, NaN weights, a damaged file, or
            logits that differ from those of transformers.
    """
    if step is not None:
        checkpoint = checkpoint_at(source, step)
        source, revision = checkpoint.path, checkpoint.revision
    files = ModelFiles(source if isinstance(source, str | Path) else os.fspath(source), revision)
    config = _hooked_config(files, device, dtype, fold_norms)
    with warnings.catch_warnings():
        # 3.9 announces on every construction that 4.x drops HookedTransformer; pyproject pins below 4 for that reason.
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated", category=DeprecationWarning)
        model = HookedTransformer(config)
    model.eval().requires_grad_(False)
    _load(model, files)
    tokenizer = files.tokenizer()
    object.__setattr__(model, "_copyscope_vocabulary", vocabulary_of(tokenizer, model.cfg.d_vocab, files.config))
    if tokenizer is not None:
        with suppress(Exception):  # text is a convenience that must not stop measures
            model.set_tokenizer(copy.deepcopy(tokenizer), default_padding_side="right")
    if prove and dtype == torch.float32:
        _prove(model, files)
    return model


def load_weights_into(
    model: HookedTransformer, source: str | Path, revision: str | None = None, *, prove: bool = False
) -> HookedTransformer:
    """Loads another checkpoint of the same series into an existing model, in place, and returns it.

    Whether norms are folded, the device and the dtype stay as `load_hooked` set them. Hooks stay too.

    Raises:
        InputError: the checkpoint's config differs from the model's, or anything that `load_hooked` refuses.
    """
    files = ModelFiles(source, revision)
    fold_norms = model.cfg.normalization_type in ("RMSPre", "LNPre")
    wanted = _hooked_config(files, model.cfg.device or "cpu", model.cfg.dtype, fold_norms)
    for field in _SERIES_FIELDS:
        if getattr(wanted, field) != getattr(model.cfg, field):
            raise InputError(
                f"{files.config_path}: {field} is {getattr(wanted, field)}, but the series' model has "
                f"{getattr(model.cfg, field)}; load it with load_hooked instead"
            )
    _load(model, files)
    if prove and model.cfg.dtype == torch.float32:
        _prove(model, files)
    return model


def conversion_error(model: HookedTransformer, source: str | Path, revision: str | None = None, seed: int = 0) -> float:
    """Largest absolute difference of logits between `model` and transformers' own model of `source`.

    On two random sequences of up to 32 tokens, in the model's dtype and on its device. In logits; 0 means bit-equal. A
    short batch shows that weights and computation are the same; it cannot show that positions beyond it agree.
    """
    return _conversion_error(model, ModelFiles(source, revision), seed)[0]


def prove_conversion(model: HookedTransformer, source: str | Path, revision: str | None = None) -> float:
    """Returns `conversion_error`; raises InputError when it exceeds `LOGIT_TOLERANCE`."""
    return _prove(model, ModelFiles(source, revision))


def _prove(model: HookedTransformer, files: ModelFiles) -> float:
    error, largest = _conversion_error(model, files)
    allowed = LOGIT_TOLERANCE * max(1.0, largest / 10)
    if not error <= allowed:
        raise InputError(
            f"{files.path}: logits differ from transformers by {error:.2g} (allowed: {allowed:.2g}), so the "
            "model uses something the conversion lacks; pass prove=False only to look into it"
        )
    return error


def _conversion_error(model: HookedTransformer, files: ModelFiles, seed: int = 0) -> tuple[float, float]:
    """Largest difference of logits, and the largest logit."""
    reference = files.reference(model.cfg.dtype)
    reference.to(torch.device(model.cfg.device or "cpu"))
    generator = torch.Generator().manual_seed(seed)
    shape = (2, min(32, model.cfg.n_ctx))
    tokens = torch.randint(0, model.cfg.d_vocab, shape, generator=generator).to(model.cfg.device)
    with torch.inference_mode():
        wanted = reference(tokens).logits
        return (model(tokens) - wanted).abs().max().item(), wanted.abs().max().item()


def model_vocabulary(model: HookedModel) -> Vocabulary:
    """What opens the model's prompts and which ids may be drawn at random.

    For a model of `load_hooked`, by its tokenizer as it was saved; for another, by the tokenizer it has now, in which
    TransformerLens may have filled in tokens. Without a tokenizer: no BOS, and all ids.
    """
    known = getattr(model, "_copyscope_vocabulary", None)
    return known if known is not None else vocabulary_of(getattr(model, "tokenizer", None), model.cfg.d_vocab)


def key_value_cache(model: HookedTransformer, batch: int) -> TransformerLensKeyValueCache:
    """An empty key-value cache for `batch` sequences."""
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


# ---------------------------------------------------------------------------------------------------------- the config

_SERIES_FIELDS = (
    *("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "eps"),
    *("normalization_type", "positional_embedding_type", "rotary_dim", "rotary_base", "rotary_scaling_factor"),
    *("use_NTK_by_parts_rope", "NTK_by_parts_factor", "parallel_attn_mlp", "original_architecture"),
)


def _architecture(hf_config: Any, path: Path) -> str:
    kind = hf_config.model_type
    name = (getattr(hf_config, "architectures", None) or [_BY_MODEL_TYPE.get(kind, kind)])[0]
    if name in _CONVERTERS:
        return name
    encoders = {n for v in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() for n in ([v] if isinstance(v, str) else v)}
    if getattr(hf_config, "is_encoder_decoder", False) or name in encoders:
        raise InputError(f"{path}: {name} has an encoder, and copying is measured on decoder-only language models")
    known = ", ".join(_CONVERTERS)
    raise InputError(f"{path}: architecture {name} is not supported; supported are {known}")


def _rope(hf_config: Any, path: Path) -> dict[str, Any]:
    """The rotary fields of a TransformerLens config; transformers 5 keeps them in `rope_parameters`."""
    rope = dict(getattr(hf_config, "rope_parameters", None) or {})
    fields: dict[str, Any] = {"rotary_base": rope.get("rope_theta") or getattr(hf_config, "rope_theta", 10000.0)}
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        fields["rotary_scaling_factor"] = float(rope["factor"])
    elif kind == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    elif kind != "default":
        raise InputError(f"{path}: rotary scaling {kind!r} is not supported; supported are default, linear and llama3")
    return fields


def _hooked_config(
    files: ModelFiles, device: str | torch.device, dtype: torch.dtype, fold_norms: bool
) -> HookedTransformerConfig:
    # TransformerLens' own reading of a config guesses the architecture from the directory's name and ignores head_dim,
    # the biases and NeoX' rotary base, so the config is built here.
    try:
        config = _read_config(files, device, dtype, fold_norms)
        _check_sizes(config, files)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{files.config_path}: a value in it makes no model ({reason[:120]}); mend it") from error
    return config


def _check_sizes(config: HookedTransformerConfig, files: ModelFiles) -> None:
    """Before a damaged number takes all memory."""
    d_mlp = config.d_mlp or 0
    width = 4 * config.n_heads * config.d_head + 3 * d_mlp
    largest = config.d_model * (config.n_layers * width + 2 * config.d_vocab)
    sizes = (config.n_layers, config.n_heads, config.d_head, config.d_model, d_mlp, config.d_vocab, config.n_ctx)
    if min(sizes) < 1:
        raise InputError(f"{files.config_path}: a size in it is below 1; mend it")
    if config.n_heads % (config.n_key_value_heads or config.n_heads):
        raise InputError(
            f"{files.config_path}: {config.n_key_value_heads} key-value heads cannot share {config.n_heads} heads"
        )
    held = sum(path.stat().st_size for path in files.weight_paths())
    if largest > max(4 * held, 2**20):  # a value has half a byte at least, and W_K and W_V may be shared
        raise InputError(
            f"{files.config_path}: calls for about {largest:.1e} weights, but the files hold {held:.1e} bytes; one of "
            "the two is not of this model"
        )


def _read_config(
    files: ModelFiles, device: str | torch.device, dtype: torch.dtype, fold_norms: bool
) -> HookedTransformerConfig:
    hf_config, path = files.config, files.config_path
    architecture = _architecture(hf_config, path)
    n_heads = hf_config.num_attention_heads
    d_model = hf_config.hidden_size
    fields: dict[str, Any] = {
        "n_layers": hf_config.num_hidden_layers,
        "n_heads": n_heads,
        "d_model": d_model,
        "d_head": d_model // n_heads,
        "d_vocab": hf_config.vocab_size,
        "n_ctx": hf_config.max_position_embeddings,
    }
    if architecture == "LlamaForCausalLM":
        for bias in ("attention_bias", "mlp_bias"):
            if getattr(hf_config, bias, False):
                raise InputError(f"{path}: {bias}=true is not supported for Llama models")
        d_head = getattr(hf_config, "head_dim", None) or d_model // n_heads
        n_key_value_heads = hf_config.num_key_value_heads
        fields |= {
            "d_head": d_head,
            "d_mlp": hf_config.intermediate_size,
            # TransformerLens reads any number here as grouped-query attention, even one pair a head.
            "n_key_value_heads": n_key_value_heads if n_key_value_heads != n_heads else None,
            "act_fn": hf_config.hidden_act,
            "eps": hf_config.rms_norm_eps,
            "normalization_type": "RMSPre" if fold_norms else "RMS",
            "final_rms": True,
            "gated_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": d_head,
            "rotary_adjacent_pairs": False,
        } | _rope(hf_config, path)
    elif architecture == "OlmoForCausalLM":
        if hf_config.attention_bias or hf_config.clip_qkv or hf_config.num_key_value_heads != n_heads:
            raise InputError(f"{path}: OLMo models with attention_bias, clip_qkv or grouped heads are not supported")
        fields |= {
            "d_mlp": hf_config.intermediate_size,
            "act_fn": hf_config.hidden_act,
            "eps": 1e-5,
            "normalization_type": "LNPre" if fold_norms else "LN",
            "gated_mlp": True,
            "positional_embedding_type": "rotary",
            "rotary_dim": d_model // n_heads,
            "rotary_adjacent_pairs": False,
        } | _rope(hf_config, path)
    elif architecture == "GPT2LMHeadModel":
        fields |= {
            "d_mlp": hf_config.n_inner or 4 * d_model,
            "act_fn": hf_config.activation_function,
            "eps": hf_config.layer_norm_epsilon,
            "normalization_type": "LNPre" if fold_norms else "LN",
            "positional_embedding_type": "standard",
            "use_attn_scale": hf_config.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": hf_config.scale_attn_by_inverse_layer_idx,
        }
    else:
        rope = dict(getattr(hf_config, "rope_parameters", None) or {})
        share = rope.get("partial_rotary_factor", getattr(hf_config, "rotary_pct", 0.25))
        fields |= {
            "d_mlp": hf_config.intermediate_size,
            "act_fn": hf_config.hidden_act,
            "eps": hf_config.layer_norm_eps,
            "normalization_type": "LNPre" if fold_norms else "LN",
            "positional_embedding_type": "rotary",
            "rotary_dim": int(share * (d_model // n_heads)),
            "rotary_adjacent_pairs": False,
            "parallel_attn_mlp": hf_config.use_parallel_residual,
            "default_prepend_bos": False,
        } | _rope(hf_config, path)
    if fields["act_fn"] not in SUPPORTED_ACTIVATIONS:
        raise InputError(f"{path}: activation {fields['act_fn']!r} is not one that TransformerLens has")
    if fields["d_model"] % n_heads and architecture != "LlamaForCausalLM":
        raise InputError(f"{path}: hidden_size {d_model} is not a multiple of {n_heads} heads")
    return HookedTransformerConfig(
        **fields,
        model_name=files.name,
        original_architecture=architecture,
        device=str(device),
        dtype=dtype,
        init_weights=False,
    )


# --------------------------------------------------------------------------------------------------------- the weights


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


def _canonical_names(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Names as the language-model class has them, and the tied unembedding spelled out."""
    trunk, embedding = {
        "LlamaForCausalLM": ("model", "embed_tokens"),
        "GPT2LMHeadModel": ("transformer", "wte"),
        "GPTNeoXForCausalLM": ("gpt_neox", "embed_in"),
        "OlmoForCausalLM": ("model", "embed_tokens"),
    }[architecture]
    if not any(name.startswith(trunk + ".") for name in tensors):
        # Older files (gpt2 on the hub among them) were saved from the trunk alone.
        tensors = {name if name.startswith("lm_head.") else f"{trunk}.{name}": t for name, t in tensors.items()}
    if "lm_head.weight" not in tensors and "embed_out.weight" not in tensors:
        name = f"{trunk}.{embedding}.weight"
        if name in tensors:
            tensors["lm_head.weight"] = tensors[name]
    return tensors


def _load(model: HookedTransformer, files: ModelFiles) -> None:
    """Reads, checks, converts and copies the weights; the model changes only once everything has been checked."""
    config = model.cfg
    architecture = config.original_architecture or ""
    tensors = _canonical_names(files.tensors(), architecture)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{files.path}: tensor {name} holds NaN or infinity; this checkpoint is not usable")
    tensors = {n: t.to(config.device, config.dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    try:
        state = _CONVERTERS[architecture](_Modules(tensors), config)
        # GPT-2's converter leaves the unembedding's bias out, and folding would then lose the last norm's bias; OLMo's
        # leaves out the biases of queries, keys and values, which it does not have.
        left_out = {"unembed.b_U": (config.d_vocab,)}
        if architecture == "OlmoForCausalLM":
            shape = (config.n_heads, config.d_head)
            left_out |= {f"blocks.{i}.attn.b_{x}": shape for i in range(config.n_layers) for x in "QKV"}
        for name, shape in left_out.items():
            state.setdefault(name, torch.zeros(shape, dtype=config.dtype, device=config.device))
        if config.normalization_type in ("RMSPre", "LNPre"):
            state = ProcessWeights.process_weights(
                {name: tensor.clone() for name, tensor in state.items()},
                config,
                fold_ln=True,
                center_writing_weights=False,
                center_unembed=False,
                fold_value_biases=False,
                refactor_factored_attn_matrices=False,
            )
    except AttributeError as error:
        raise InputError(f"{files.path}: the weights lack {error.args[0]}, which config.json calls for") from error
    except (EinopsError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{files.path}: the weights do not fit config.json ({reason[:160]})") from error
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name not in state:
            raise InputError(f"{files.path}: the weights lack what TransformerLens calls {name}")
        if state[name].shape != parameter.shape:
            raise InputError(
                f"{files.path}: {name} has shape {tuple(state[name].shape)} in the weights, but config.json says "
                f"{tuple(parameter.shape)}"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
