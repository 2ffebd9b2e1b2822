"""Any causal language model with TransformerLens' hooks, its logits checked against transformers.

A family that `families` knows becomes a `HookedTransformer`, every other a `TransformerBridge` in compatibility mode;
measures run on both. What depends on the version of TransformerLens is in this room only.
"""

import copy
import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from copyscope.interp.models.at_step import checkpoint_at
from copyscope.interp.models.bridge import bridged, check_bridgeable, finished
from copyscope.interp.models.converted import converted, copy_weights, hooked_config
from copyscope.interp.models.devices import check_room, device_of, dtype_named
from copyscope.interp.models.files import ModelFiles
from copyscope.interp.models.lens import HookedModel, HookedTransformer
from copyscope.interp.models.vocabulary import Vocabulary, vocabulary_of
from copyscope.training.checkpoints.series import Source, local_path
from copyscope.training.devices import device_named
from copyscope.training.errors import InputError, first_line

logger = logging.getLogger(__name__)

LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5}
_ROUNDINGS = 4
"""Logits in float32 may differ by so many times their own rounding, where that is more than the tolerance."""
"""Largest difference of logits against transformers that still counts as the same model; where logits reach beyond ±10,
in proportion to the largest, since rounding grows with them (30 layers and logits of 30 give 1.1e-4 in fp32)."""
CHECKED_POSITIONS = 512
"""Of one random prompt when a model is loaded, or n_ctx: sliding windows and rotary scaling do not show in the first
few."""
QUICK_POSITIONS = 32
"""The same where only weights have changed."""
_COSMETIC = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
"""Entries of a config that change nothing of what a model computes."""


def load_hooked(
    source: Source,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    fold_norms: bool = False,
    *,
    step: int | None = None,
    tokenizer: str | Path | None = None,
    prove: bool = True,
) -> HookedModel:
    """Turns a checkpoint into a model with hooks, in evaluation mode, with gradients off.

    Args:
        source: a directory in Hugging Face format, a run folder or folder of checkpoints, a GGUF file (none of which
            reaches for the hub), or a hub id such as `EleutherAI/pythia-70m`.
        revision: the hub revision; only for a hub id.
        fold_norms: fold the norm weights into the matrices that read the residual stream. Log-probabilities stay the
            same; nothing is centred besides what a LayerNorm subtracts anyway. Not for bridges.
        step: which checkpoint, where `source` is a run or another series; None or -1 for the last.
        tokenizer: a folder to take the tokenizer from; None for the model's own.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the GPU that is there.
        dtype: float32 or bfloat16.
        prove: compare logits with transformers on a random prompt of up to 512 tokens; a difference above
            `LOGIT_TOLERANCE` of the dtype raises.

    A tokenizer that TransformerLens can use is attached; else `model.tokenizer` is None. Prompts go by
    `model_vocabulary`. No code from a checkpoint's folder is ever run.

    Raises:
        InputError: no such model or step, an encoder or another unsupported architecture, weights that are damaged,
            not finite or do not fit the config, or logits that differ from those of transformers.
    """
    device, dtype = device_named(device), dtype_named(dtype)
    files = ModelFiles(*_at_step(source, revision, step), tokenizer)
    architecture = files.architecture
    config = hooked_config(files, architecture, device, dtype, fold_norms)
    if config is None:
        if fold_norms:
            raise InputError(f"{files.path}: fold_norms is not for {architecture}, which loads as a bridge")
        check_bridgeable(files, architecture)
    reference = _on_device(files, dtype, device)
    tokens = _probe(files.config.vocab_size, CHECKED_POSITIONS if prove else 1, files)
    logits = _logits_of(reference, tokens.to(device), files) if prove else None
    own_tokenizer = files.tokenizer()
    if config is None:
        model: HookedModel = bridged(reference, files, own_tokenizer)
    else:
        tensors = dict(reference.state_dict())
        del reference  # so that its weights are given back one by one as they are copied
        model = converted(config, tensors, files)
        if own_tokenizer is not None:
            with suppress(Exception):  # text is a convenience that must not stop measures
                model.set_tokenizer(copy.deepcopy(own_tokenizer), default_padding_side="right")
    vocabulary = vocabulary_of(own_tokenizer, model.cfg.d_vocab, files.config)
    object.__setattr__(model, "_copyscope_vocabulary", vocabulary)
    object.__setattr__(model, "_copyscope_config", _what_matters(files))
    _note_check(model, None if logits is None else _check(model, tokens, logits, files))
    return model


def load_weights_into(
    model: HookedModel, source: str | Path, revision: str | None = None, *, prove: bool = True
) -> HookedModel:
    """Loads another checkpoint of the same series and returns its model: use what is returned.

    A `HookedTransformer` takes the weights in place, with its hooks, device, dtype and folded norms, if the config says
    the same in all that matters. A bridge, and a checkpoint of another config, comes as a new model, loaded by its own
    config. `prove` compares the logits of a short prompt with transformers'.

    Raises InputError: anything that `load_hooked` refuses.
    """
    files = ModelFiles(source, revision)
    device, dtype = device_of(model), model.cfg.dtype
    folded = isinstance(model, HookedTransformer) and model.cfg.normalization_type in ("RMSPre", "LNPre")
    same = getattr(model, "_copyscope_config", None) == _what_matters(files)
    if not isinstance(model, HookedTransformer) or not same:
        fresh = load_hooked(source, revision, device, dtype, folded, prove=prove)
        if not same:
            logger.info(f"{files.path}: another config than the checkpoint before; loaded by its own")
        return fresh
    reference = _on_device(files, dtype, device)
    tokens = _probe(model.cfg.d_vocab, QUICK_POSITIONS, files)
    logits = _logits_of(reference, tokens.to(device), files) if prove else None
    copy_weights(model, dict(reference.state_dict()), files)
    _note_check(model, None if logits is None else _check(model, tokens, logits, files))
    return model


def prove_conversion(model: HookedModel, source: str | Path, revision: str | None = None) -> float:
    """Largest difference between the model's logits and those of transformers' own model of `source`, on a random
    prompt of up to 512 tokens. Raises InputError when it exceeds `LOGIT_TOLERANCE`."""
    files = ModelFiles(source, revision)
    tokens = _probe(model.cfg.d_vocab, CHECKED_POSITIONS, files)
    device = device_of(model)
    reference = _on_device(files, model.cfg.dtype, device)
    return _check(model, tokens, _logits_of(reference, tokens.to(device), files), files)


def logit_difference(model: HookedModel) -> float | None:
    """Largest difference of logits from transformers' when the model's weights were loaded; None if not compared."""
    return getattr(model, "_copyscope_difference", None)


def model_vocabulary(model: HookedModel) -> Vocabulary:
    """What opens the model's prompts and which ids may be drawn at random.

    For a model of `load_hooked`, by its tokenizer as it was saved; for another, by the tokenizer it has now, in which
    TransformerLens may have filled in tokens. Without a tokenizer: no BOS, and all ids.
    """
    known = getattr(model, "_copyscope_vocabulary", None)
    return known if known is not None else vocabulary_of(getattr(model, "tokenizer", None), model.cfg.d_vocab)


def _at_step(source: Source, revision: str | None, step: int | None) -> tuple[str | Path, str | None]:
    """The one checkpoint that is meant: that of `step`; the last of a folder that is no model itself."""
    plain = source if isinstance(source, str | Path) else os.fspath(source)
    folder = local_path(str(plain))
    holds_a_model = not folder.is_dir() or (folder / "config.json").is_file()
    if step is None and (revision is not None or holds_a_model):
        return plain, revision
    try:
        checkpoint = checkpoint_at(source, -1 if step is None else step)
    except InputError:
        if step is None:
            return plain, revision  # whose own message says more
        raise
    return checkpoint.path, checkpoint.revision


def _on_device(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' own model. Raises InputError where the device has no room for it."""
    model = files.reference(dtype)
    check_room(model, device, files.path)
    return model.to(device)


def _what_matters(files: ModelFiles) -> dict[str, Any]:
    return {key: value for key, value in files.config.to_dict().items() if key not in _COSMETIC}


def _probe(d_vocab: int, positions: int, files: ModelFiles) -> Tensor:
    length = min(positions, files.context_length)
    return torch.randint(0, d_vocab, (1, length), generator=torch.Generator().manual_seed(0))


def _note_check(model: HookedModel, difference: float | None) -> None:
    object.__setattr__(model, "_copyscope_difference", difference)


@torch.inference_mode()
def _logits_of(reference: Any, tokens: Tensor, files: ModelFiles) -> Float[Tensor, "row pos d_vocab"]:
    try:
        return reference(tokens, use_cache=False).logits.clone()
    except RuntimeError as error:  # some families mix in float32
        raise InputError(
            f"{files.path}: transformers cannot run it in {reference.dtype} on {tokens.device} ({first_line(error)})"
        ) from error


@torch.inference_mode()
def _check(model: HookedModel, tokens: Tensor, wanted: Float[Tensor, "row pos d_vocab"], files: ModelFiles) -> float:
    """Largest difference of the model's logits, those passed on by its parts among them, from the wanted ones."""
    largest = wanted.abs().max().item()
    try:
        error = max((logits.sub_(wanted).abs_().max().item() for logits in _own_logits(model, tokens)), default=0.0)
    except RuntimeError as error:  # some bridges mix in float32
        raise InputError(
            f"{files.path}: TransformerLens cannot run it in {model.cfg.dtype} on {tokens.device} ({first_line(error)})"
        ) from error
    allowed = LOGIT_TOLERANCE[model.cfg.dtype] * max(1.0, largest / 10)
    if not error <= allowed and math.isfinite(error) and wanted.dtype == torch.float32 and wanted.device.type != "mps":
        allowed = max(allowed, _ROUNDINGS * _rounding(tokens, wanted, files))
    if not error <= allowed:
        raise InputError(
            f"{files.path}: logits differ from transformers by {error:.2g} (allowed: {allowed:.2g}), so the "
            "model uses something the conversion lacks; pass prove=False only to look into it"
        )
    logger.debug(f"{files.path}: logits checked against transformers (largest difference {error:.1e})")
    return error


def _rounding(tokens: Tensor, wanted: Float[Tensor, "row pos d_vocab"], files: ModelFiles) -> float:
    """What single precision may change in transformers' logits: their difference from those in double precision, plus
    what a last digit of the rotary frequencies changes, which each library rounds in its own way."""
    reference = files.reference(torch.float32).double().to(wanted.device)
    exact = _logits_of(reference, tokens.to(wanted.device), files)
    for module in reference.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            module.inv_freq = module.inv_freq * (1 + 2**-22)
    turned = _logits_of(reference, tokens.to(wanted.device), files)
    return (wanted - exact).abs().max().item() + (turned - exact).abs().max().item()


def _own_logits(model: HookedModel, tokens: Tensor):
    """The model's logits; for a bridge also those of its last residual stream, which losses are read from."""
    tokens = tokens.to(device_of(model))
    if isinstance(model, HookedTransformer):
        yield model(tokens)
        return
    caught: list[Tensor] = []
    keep: Callable[..., None] = lambda x, hook: caught.append(x)  # noqa: E731
    with model.hooks(fwd_hooks=[(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", keep)]):
        logits = model(tokens)
    yield logits.clone()
    yield finished(model, model.unembed(model.ln_final(caught[0]))).clone()
