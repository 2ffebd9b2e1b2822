"""How deep in the model a copied token takes the lead."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, Layout, can_run, embed, slices
from copyscope.interp.forward.memory import within_memory
from copyscope.interp.forward.residual import Hook, batches, final_residual, logits_of
from copyscope.interp.measures.behavior import check_tokens, standard_error
from copyscope.interp.measures.logit_attribution import repeated_half
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel


class CopiedTokenLayer(NamedTuple):
    """In layers run; NaN where the model copies nothing."""

    layer: float
    se: float
    """Over prompts."""
    share: float
    """Of places at which the copied token leads in the end, and which `layer` is therefore of; in [0, 1]."""


@within_memory
@torch.no_grad()
def copied_token_layer(model: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> CopiedTokenLayer:
    """After how many layers the copied token leads in the logit lens (nostalgebraist 2020), on repeated random tokens.

    The logit lens reads the residual stream after each layer as if it were the last: final norm, then unembedding. Of
    the places of the second half at which the right next token is the model's likeliest, the mean over prompts of the
    number of layers from which on it is the likeliest: 0 for the embedding alone, at most the number of layers. Early
    layers may hold the token in directions that the last norm and unembedding do not read.

    `tokens` as for `induction_logit_attribution`. Raises InputError for other tokens.
    """
    half, bos = repeated_half(tokens, "copied_token_layer"), tokens.shape[1] % 2
    check_tokens(model, tokens)
    read = torch.arange(bos + half, bos + 2 * half - 1)
    right = tokens[:, read + 1]
    leads = []
    for rows in slices(model, *tokens.shape) if can_run(model) else batches(model, *tokens.shape):
        wanted, at = right[rows].to(device_of(model)), read.to(device_of(model))
        residuals = _residuals(model, tokens[rows], at)
        leads.append(torch.stack([logits_of(model, x).argmax(dim=-1) == wanted for x in residuals]))
    return layer_of(torch.cat(leads, dim=1).cpu())


def layer_of(leads: Bool[Tensor, "layer_plus_1 prompt place"]) -> CopiedTokenLayer:
    """From where the token leads after 0, 1, … all layers."""
    from_here_on = leads.flip(0).int().cummin(dim=0).values.sum(dim=0)  # places in a row, from the last layer back
    first, ends = (len(leads) - from_here_on).double(), leads[-1]
    count = ends.sum(dim=1)
    of_prompt = (first * ends).sum(dim=1)[count > 0] / count[count > 0]
    layer = of_prompt.mean().item() if len(of_prompt) else float("nan")
    return CopiedTokenLayer(layer, standard_error(of_prompt), ends.double().mean().item())


def _residuals(
    model: HookedModel, tokens: Int[Tensor, "row pos"], read: Int[Tensor, " place"]
) -> list[Float[Tensor, "row place d_model"]]:
    """The residual stream before the first layer and after each."""
    if not can_run(model):
        kept: list[Tensor] = []

        def keep(x: Tensor, hook: Any) -> None:
            kept.append(x[:, read].clone())

        names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers - 1))]
        hooks: list[Hook] = [(name, keep) for name in names]
        final = final_residual(model, tokens, hooks)
        return [*kept, final[:, read]]
    layout = Layout.of(model, tokens.shape[1])
    x = embed(model, tokens, layout)
    found = [x[:, read]]
    for i in range(model.cfg.n_layers):
        layer = Layer(model, i, layout)
        x = layer.resid_post(x, layer.z(x))
        found.append(x[:, read])
    return found
