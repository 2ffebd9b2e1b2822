"""transformers' model as a `TransformerBridge` in compatibility mode, and what a model does to its logits."""

import contextlib
import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

from copyscope.interp.models.config import context_length
from copyscope.interp.models.files import ModelFiles
from copyscope.interp.models.lens import HookedModel, HookedTransformer, TransformerBridge
from copyscope.training.errors import InputError, first_line


def check_bridgeable(files: ModelFiles, architecture: str) -> None:
    """InputError for a family without attention heads, or one that TransformerLens has no bridge for."""
    # Asked of the family, not of this config, which may hold entries that mean nothing to it.
    if not getattr(type(files.config)(), "num_attention_heads", None):
        raise InputError(f"{files.config_path}: {architecture} has no attention heads, so there is nothing to measure")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"{files.config_path}: architecture {architecture} is not supported: this TransformerLens has neither a "
            "converter nor a bridge for it"
        )


def bridged(reference: Any, files: ModelFiles, tokenizer: Any | None) -> TransformerBridge:
    """A bridge around `reference`, transformers' model, which it changes: ask that for its logits before.

    Raises InputError: the family's bridge does not take this model, or some layers have no attention.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    architecture = type(reference).__name__
    with _quiet():
        try:
            bridge = build_bridge_from_module(
                reference,
                architecture,
                hf_config=reference.config,
                tokenizer=_prepared(tokenizer),
                model_name=files.name,
                post_adapter_hook=lambda adapter: _correct(adapter, reference),
            )
            for module in bridge.modules():  # transformers' norms, not TransformerLens' own
                if hasattr(module, "use_native_layernorm_autograd"):
                    setattr(module, "use_native_layernorm_autograd", True)  # noqa: B010
            bridge.enable_compatibility_mode(no_processing=True)
        except Exception as error:  # adapters fail in many ways on settings they do not know
            raise InputError(
                f"{files.path}: TransformerLens' bridge does not take this {architecture} ({first_line(error)})"
            ) from error
    bridge.cfg.n_ctx = context_length(files.config, files.config_path)
    bridge.eval()
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    bare = [i for i in range(bridge.cfg.n_layers) if f"blocks.{i}.attn.hook_pattern" not in bridge.hook_dict]
    if bare:
        raise InputError(f"{files.config_path}: {architecture} has layers without attention heads (layer {bare[0]})")
    return bridge


def finished(model: HookedModel, logits: Tensor) -> Tensor:
    """What the model makes of the unembedding's output: logits scaled (Granite, Cohere) or capped (Gemma 2)."""
    scale, cap = _finish(model)
    if scale != 1:
        logits = logits * scale
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def _finish(model: HookedModel) -> tuple[float, float]:
    """Factor on the logits, and their soft cap (0: none)."""
    if isinstance(model, HookedTransformer):
        return 1.0, float(getattr(model.cfg, "output_logits_soft_cap", 0.0) or 0.0)
    hf: Any = model.original_model
    config = hf.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None) or 0.0
    scale = 1.0
    if config.model_type.startswith("granite"):
        scale = 1 / config.logits_scaling
    elif config.model_type.startswith("cohere"):
        scale = config.logit_scale
    elif config.model_type == "falcon_h1":
        scale = config.lm_head_multiplier
    return float(scale), float(cap)


def _correct(adapter: Any, reference: Any) -> None:
    """What TransformerLens' adapters of some families get wrong; whatever else is shows in the logits."""
    config = reference.config
    knows_cohere = getattr(adapter.cfg, "rotary_interleaved_cos_sin", False)  # TransformerLens 4
    if config.model_type in ("cohere", "cohere2") and not knows_cohere:
        # Cohere turns neighbouring dimensions; TransformerLens does so from tables in the order of other families.
        adapter.cfg.rotary_adjacent_pairs = True
        rotary = reference.model.rotary_emb
        tables = rotary.forward
        rotary.forward = lambda *a, **k: tuple(torch.cat([t[..., ::2]] * 2, dim=-1) for t in tables(*a, **k))
    if config.model_type == "falcon" and config.new_decoder_architecture:
        groups, heads = config.num_kv_heads, config.num_attention_heads
        adapter.cfg.n_key_value_heads = groups

        def split(attention: Any) -> tuple[torch.nn.Linear, ...]:
            fused = attention.query_key_value  # for each group its queries, then a key and a value

            def part(x: Tensor) -> tuple[Tensor, ...]:
                x = x.detach().unflatten(0, (groups, heads // groups + 2, -1))
                return tuple(x[:, rows].flatten(0, 2) for rows in (slice(0, -2), slice(-2, -1), slice(-1, None)))

            biases = (None,) * 3 if fused.bias is None else part(fused.bias)
            return tuple(_linear(weight, bias) for weight, bias in zip(part(fused.weight), biases, strict=True))

        adapter.component_mapping["blocks"].submodules["attn"].split_qkv_matrix = split


def _linear(weight: Tensor, bias: Tensor | None) -> torch.nn.Linear:
    linear = torch.nn.Linear(*reversed(weight.shape), bias=bias is not None, device=weight.device, dtype=weight.dtype)
    linear.weight = torch.nn.Parameter(weight.contiguous())
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.contiguous())
    return linear


def _prepared(tokenizer: Any | None) -> Any | None:
    """A copy of the tokenizer if the bridge can take it: TransformerLens fills in special tokens, and may fail."""
    from transformer_lens.model_bridge.sources.transformers import setup_tokenizer

    if tokenizer is None:
        return None
    try:
        setup_tokenizer(copy.deepcopy(tokenizer))
    except Exception:  # text is a convenience that must not stop measures
        return None
    return copy.deepcopy(tokenizer)


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
