"""The matrices of a bridge's heads, read from transformers' own modules, with what its norms multiply by.

TransformerLens' stacked W_Q … W_O take a norm after attention for the one before, and leave out Gemma's 1 + weight.
"""

from typing import Any

import torch
from torch import Tensor

from copyscope.interp.models.lens import TransformerBridge
from copyscope.training.errors import InputError


@torch.no_grad()
def bridge_weights(model: TransformerBridge) -> dict[str, Any]:
    """W_E, W_U, W_Q, W_K, W_V, W_O (layer, head, …), attention_norm, after_norm, final_norm and centred, as
    `interp.measures.circuits.HeadWeights` names them; grouped heads repeated for each query head.

    Raises:
        InputError: the heads' circuit is not W_E W_V W_O W_U: queries, keys or values are made in more than one step.
    """
    c = model.cfg
    layers = [_layer(model, i) for i in range(c.n_layers)]
    embedding, unembedding = _module(model.embed), _module(model.unembed)
    if embedding.weight.shape[1] != c.d_model:
        raise _not_plain(model, "embeddings are projected before the first layer")
    final_norm, centred = norm_factor(_module(model.ln_final), c.d_model, embedding.weight)
    stacked = {name: torch.stack([layer[name] for layer in layers]) for name in ("W_Q", "W_K", "W_V", "W_O")}
    after = [layer["after_norm"] for layer in layers]
    return stacked | {
        "W_E": _embedded(model, embedding),
        "W_U": unembedding.weight.detach().T,
        "attention_norm": torch.stack([layer["attention_norm"] for layer in layers]),
        "after_norm": None if any(a is None for a in after) else torch.stack(after),
        "final_norm": final_norm,
        "centred": centred,
    }


def norm_factor(norm: Any, width: int, like: Tensor) -> tuple[Tensor, bool]:
    """What a norm multiplies each dimension by, and whether it subtracts the mean: asked of the norm itself, so that
    it holds for weights, 1 + weights and norms without weights alike."""
    signs = torch.ones(1, 1, width, dtype=like.dtype, device=like.device)
    signs[..., 1::2] = -1  # of root mean square 1, and mean 0 where the width is even
    if width % 2:
        signs[..., -1] = 0
    plus, minus, ones = norm(signs), norm(-signs), norm(torch.ones_like(signs))
    factor = ((plus - minus) / 2)[0, 0]
    factor = torch.where(signs[0, 0] == 0, ones[0, 0], factor * signs[0, 0])
    bias = ((plus + minus) / 2)[0, 0]
    centred = bool(((ones[0, 0] - bias).abs() < 0.01 * factor.abs().clamp(min=1e-6)).all())
    return factor, centred


def _layer(model: TransformerBridge, index: int) -> dict[str, Any]:
    block: Any = model.blocks[index]
    c, attention = model.cfg, block.attn
    matrices: dict[str, Any] = {}
    for name, part, heads in (("W_Q", "q", c.n_heads), ("W_K", "k", None), ("W_V", "v", None)):
        if not hasattr(attention, part):
            raise _not_plain(model, f"no one matrix makes {name[-1].lower()}")
        weight = _matrix(getattr(attention, part))  # (heads · d_head, d_model)
        width = c.d_head
        if weight.shape[1] != c.d_model or weight.shape[0] % width or (heads and weight.shape[0] != heads * width):
            raise _not_plain(model, f"{name} has shape {tuple(weight.shape)}")
        split = weight.unflatten(0, (-1, width)).transpose(1, 2)  # (head, d_model, d_head)
        matrices[name] = split.repeat_interleave(c.n_heads // split.shape[0], dim=0)
    weight = _matrix(attention.o)  # (d_model, heads · d_head)
    matrices["W_O"] = weight.T.unflatten(0, (c.n_heads, -1))
    ones = torch.ones(c.d_model, dtype=weight.dtype, device=weight.device)
    matrices |= {"attention_norm": ones, "after_norm": None}
    for name in ("ln1", "ln1_post"):
        if name in block._modules:
            norm = getattr(block, name)
            after = name == "ln1_post" or "post" in str(norm.name)  # OLMo 2 has its only norm after attention
            matrices["after_norm" if after else "attention_norm"] = norm_factor(_module(norm), c.d_model, weight)[0]
    return matrices


def _matrix(component: Any) -> Tensor:
    """(out, in), also of GPT-2's Conv1D, which keeps it the other way round."""
    module = _module(component)
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _module(component: Any) -> Any:
    original = getattr(component, "original_component", None)
    return component if original is None else original


def _embedded(model: TransformerBridge, embedding: Any) -> Tensor:
    """What each token puts into the residual stream; Bloom norms its embeddings."""
    weight = embedding.weight.detach()
    if "embed_ln" in model._modules:
        return _module(model.embed_ln)(weight)
    return weight


def _not_plain(model: TransformerBridge, why: str) -> InputError:
    name = model.cfg.architecture
    return InputError(f"{name}: heads' circuit is not plain W_E W_V W_O W_U ({why}); leave out measures of weights")
