"""How far each head itself raises the logit of the right next token on repeated random tokens."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layer, Layout, can_run, embed, slices
from copyscope.interp.forward.memory import wide, within_memory
from copyscope.interp.forward.residual import Hook, batches, final_residual
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.training.errors import InputError


@within_memory
@torch.no_grad()
def induction_logit_attribution(model: HookedModel, tokens: Int[Tensor, "prompt pos"], seed: int = 0) -> HeadScore:
    """Direct effect of each head on the logit of the right next token, over the second half of repeated random tokens
    (after Elhage et al. 2021 and Nanda's direct logit attribution; the name is ours).

    What head h writes at place q, z W_O, divided by the final norm's scale there, times the direction of the right
    token in W_U (the norm's weight folded in) minus the mean direction of all tokens. Averaged over the places of the
    second half but its last. In logits (nats of log-odds), positive where a head raises the token: unlike the copying
    score it has a unit, and does not saturate: 2 means e² times the odds. The null is another token of the prompt's
    second half, drawn for each place.

    `tokens`: `repeated_random_tokens(..., repeats=2)`, with or without BOS, 2 prompts or more. Direct effects only:
    what later layers make of a head's output is left out, and so is the scale of a norm right after attention (Gemma 2
    and 3, OLMo 2 and 3). Raises InputError for other tokens.
    """
    half, bos = repeated_half(tokens, "induction_logit_attribution"), tokens.shape[1] % 2
    check_tokens(model, tokens)
    device, weights = device_of(model), head_weights(model).folded()
    W_U = weights.W_U.float()
    mean_direction = W_U.mean(dim=1)
    read = torch.arange(bos + half, 2 * half + bos - 1)
    right = tokens[:, read + 1]
    other = _others(tokens[:, bos + half :], seed)
    effects = torch.zeros(2, len(tokens), model.cfg.n_layers, model.cfg.n_heads, dtype=wide(device), device=device)
    for rows in slices(model, *tokens.shape) if can_run(model) else batches(model, *tokens.shape):
        zs, final = _heads_outputs(model, tokens[rows], read.to(device))
        scale = norm_scale(model, final.float())
        for which, wanted in enumerate((right, other)):
            direction = (W_U.T[wanted[rows].to(device)] - mean_direction) / scale  # (row, place, d_model)
            for layer, z in enumerate(zs):
                taken = torch.einsum("rpm,hem->rphe", direction, weights.W_O[layer].float())
                effects[which, rows, layer] = (taken * z.float()).sum(dim=3).mean(dim=1).to(effects)
    value, null = effects.cpu().double()
    return HeadScore.of(value, null)


def repeated_half(tokens: Int[Tensor, "prompt pos"], name: str) -> int:
    """How many tokens are repeated, in prompts of (a BOS and) the same tokens twice. Raises InputError for others, or
    for fewer than 2 prompts, in the `name` of the measure."""
    half, bos = tokens.shape[1] // 2, tokens.shape[1] % 2
    if len(tokens) < 2 or half < 3 or not torch.equal(tokens[:, bos : bos + half], tokens[:, bos + half :]):
        raise InputError(f"{name}: give 2 prompts or more, each (a BOS and) the same 3 tokens or more twice")
    return half


def _others(second: Int[Tensor, "prompt half"], seed: int) -> Int[Tensor, "prompt place"]:
    """For each place but the first of a half, another token of that half."""
    n, half = second.shape
    place = torch.arange(1, half)
    step = torch.randint(1, half, (n, half - 1), generator=torch.Generator().manual_seed(seed))
    return second.gather(1, ((place + step) % half).to(second.device))


def _heads_outputs(
    model: HookedModel, tokens: Int[Tensor, "row pos"], read: Int[Tensor, " place"]
) -> tuple[list[Float[Tensor, "row place head d_head"]], Float[Tensor, "row place d_model"]]:
    """z of every layer and the final residual stream, at the places read."""
    zs: list[Tensor] = []
    if not can_run(model):

        def keep(z: Tensor, hook: Any) -> None:
            zs.append(z[:, read].clone())

        hooks: list[Hook] = [(f"blocks.{i}.attn.hook_z", keep) for i in range(model.cfg.n_layers)]
        return zs, final_residual(model, tokens, hooks)[:, read]
    layout = Layout.of(model, tokens.shape[1])
    x = embed(model, tokens, layout)
    for i in range(model.cfg.n_layers):
        layer = Layer(model, i, layout)
        z = layer.z(x)
        zs.append(z[:, read])
        x = layer.resid_post(x, z)
    return zs, x[:, read]


def norm_scale(model: HookedModel, final: Float[Tensor, "row place d_model"]) -> Float[Tensor, "row place 1"]:
    """What the final norm divides by."""
    kind = model.cfg.normalization_type
    if kind is None:
        return torch.ones_like(final[..., :1])
    if kind.startswith("LN"):
        final = final - final.mean(dim=-1, keepdim=True)
    return (final.square().mean(dim=-1, keepdim=True) + model.cfg.eps).sqrt()
