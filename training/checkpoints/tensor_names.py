"""Names of tensors in weight files: what wrappers put in front of them, and the buffers that no model reads."""

import re
from collections.abc import Iterable

_WRAPPERS = {
    "_orig_mod",  # torch.compile
    "module",  # DistributedDataParallel, DeepSpeed
    "_forward_module",  # Lightning
    "_fsdp_wrapped_module",  # FSDP
    "_checkpoint_wrapped_module",  # activation checkpointing
    "base_layer",  # PEFT
}
"""Parts of dotted names that wrapping leaves anywhere in them."""
_TRUNKS = {"model", "transformer", "gpt_neox", "lm_head", "embed_out"}
"""First parts of names in transformers' language models."""
_BUFFER = re.compile(
    r"(^|\.)(masked_bias|causal_mask|attn\.embed_positions|position_ids|freqs_cis"
    r"|rotary(_pos)?_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached|cos_cache|sin_cache))$"
)
_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.bias$")


class DoubleError(ValueError):
    """Two tensors of one name; the message names it."""


def plain_names(stored: Iterable[str]) -> dict[str, str]:
    """Name in the file → the name that transformers has, without what torch.compile, DDP, FSDP, Lightning and PEFT
    put into it. Raises DoubleError if two get one name.
    """
    stored = list(stored)
    names = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in stored]
    while True:
        prefix = _outer(names)
        if not prefix:
            break
        names = [name.removeprefix(prefix) for name in names]
    plain: dict[str, str] = {}
    for old, new in zip(stored, names, strict=True):
        if new in plain:
            raise DoubleError(f"{new} is there twice, as {plain[new]} and as {old}")
        plain[new] = old
    return {old: new for new, old in plain.items()}


def _outer(names: list[str]) -> str:
    """The attribute of a class around the model, as in `model.lm_head.weight`; empty where there is none."""
    for prefix in ("base_model.model.", f"{names[0].partition('.')[0]}." if names else ""):
        inner = [name.removeprefix(prefix) for name in names if prefix and name.startswith(prefix)]
        if inner and len(inner) == len(names) and {name.partition(".")[0] for name in inner} <= _TRUNKS:
            return prefix
    return ""


def is_unread(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor (by its plain name) is a mask or rotary table that older transformers saved and none reads.

    Pythia's and GPT-2's files hold them, in half precision with -inf in them.
    """
    return bool(_BUFFER.search(name)) or (len(shape) == 4 and shape[:2] == (1, 1) and bool(_MASK.search(name)))
