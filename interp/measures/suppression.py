"""Heads that lower the logit of the token they attend to: by what they do on repeated tokens, and by their weights."""

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.forward.layers import can_run, slices
from copyscope.interp.forward.memory import for_sums, logit_elements, within_memory
from copyscope.interp.forward.residual import batches, final_residual
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.measures.logit_attribution import norm_scale, repeated_half
from copyscope.interp.measures.patterns import PatternBlock, read_patterns
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.training.errors import InputError

N_TOKENS = 64
"""Tokens that weights are asked about."""
LOWEST = 10
"""A token counts as suppressed if it is among this many lowest logits."""


@within_memory
@torch.no_grad()
def copy_suppression(model: HookedModel, tokens: Int[Tensor, "prompt pos"], seed: int = 0) -> HeadScore:
    """How far each head lowers the logit of the current token by attending to its earlier copy (after McDougall et al.
    2023, arXiv 2310.04625: duplicate attention with negative direct effect on logits).

    On repeated random tokens, mean over places q of the second half: minus A(q, k) · v_k W_O · (direction of token k in
    W_U, the norm's weight folded in, minus the mean direction) ÷ the final norm's scale at q, k being the earlier copy
    of q's token. In logits; negative for a head that raises it. The null takes another place k of the first half for
    each q. Direct effects only. A head that suppresses what an earlier layer predicts, rather than what stands at q,
    shows in `induction_logit_attribution` below 0 instead.

    `tokens` as for `induction_logit_attribution`. Raises InputError for other tokens.
    """
    half, bos = repeated_half(tokens, "copy_suppression"), tokens.shape[1] % 2
    check_tokens(model, tokens)
    device, weights = device_of(model), head_weights(model).folded()
    W_U = weights.W_U.float()
    mean_direction = W_U.mean(dim=1)
    step = torch.randint(1, half, (len(tokens), half), generator=torch.Generator().manual_seed(seed))
    copies = torch.arange(half).expand(len(tokens), half)
    keys = torch.stack([copies, (copies + step) % half]).to(device)  # (which, prompt, place)
    effects = torch.zeros(2, len(tokens), model.cfg.n_layers, model.cfg.n_heads, **for_sums(device))
    parts = slices(model, *tokens.shape) if can_run(model) else batches(model, *tokens.shape)
    finals = [final_residual(model, tokens[rows])[:, bos + half :].float() for rows in parts]
    scale = norm_scale(model, torch.cat(finals))[..., 0]  # (prompt, place)

    def read(block: PatternBlock) -> None:
        length = block.pattern.shape[2]
        first, end = max(block.first_query, bos + half), block.first_query + length
        if end <= first:
            return
        direction = W_U.T[tokens[block.rows, bos : bos + half].to(device)] - mean_direction  # (row, key, d_model)
        W_O = weights.W_O[block.layer].float()
        values = block.values[:, :, bos : bos + half].float()
        on_itself = torch.einsum("rkm,hem,rhke->rhk", direction, W_O, values)
        pattern = block.pattern[:, :, first - block.first_query :, bos : bos + half]
        places = slice(first - bos - half, end - bos - half)
        for which in range(2):
            at = keys[which, block.rows, places][:, None].expand(-1, pattern.shape[1], -1)  # (row, head, place)
            attention = pattern.gather(3, at[..., None])[..., 0]
            effect = attention * on_itself.gather(2, at) / scale[block.rows, None, places]
            effects[which, block.rows, block.layer] -= effect.sum(dim=2).to(effects) / half

    read_patterns(model, tokens, read)
    value, null = effects.cpu()
    return HeadScore.of(value, null)


@within_memory
@torch.no_grad()
def copy_suppression_weights(model: HookedModel, vocab: Int[Tensor, " vocab"], seed: int = 0) -> HeadScore:
    """Share of tokens that are among the 10 whose logits a head lowers most when it attends to them, by its weights
    alone: W_E W_V W_O W_U (after McDougall et al. 2023, arXiv 2310.04625).

    In [0, 1], of 64 tokens of `vocab` drawn with `seed`; the null asks for another of them. Norms' weights are folded
    in. It knows the direct path from embedding to logits only: what the first MLP makes of a token, which the paper
    reads instead of the embedding, is left out. Raises InputError for fewer than 2 tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.as_tensor(vocab).unique().cpu()
    ids = ids[torch.randperm(len(ids), generator=generator)][:N_TOKENS]
    if len(ids) < 2:
        raise InputError(f"copy_suppression_weights: {len(ids)} tokens to ask about; at least 2 are needed")
    device, weights = device_of(model), head_weights(model).folded()
    W_U, ids = weights.W_U.float(), ids.to(device)
    asked = torch.stack([ids, ids.roll(1)], dim=1)  # (token, which)
    embedded = weights.W_E[ids].float()
    n_layers, n_heads = weights.W_V.shape[:2]
    hits = torch.zeros(len(ids), 2, n_layers, n_heads, device=device)
    size = max(1, logit_elements(model) // W_U.shape[1])
    for layer in range(n_layers):
        for head in range(n_heads):
            written = embedded @ weights.W_V[layer, head].float() @ weights.W_O[layer, head].float()
            for start in range(0, len(ids), size):
                part = slice(start, start + size)
                logits = written[part] @ W_U
                lower = torch.stack([(logits < logits.gather(1, one[part, None])).sum(dim=1) for one in asked.T], dim=1)
                # A head that writes nothing ranks nothing.
                writes = written[part].abs().amax(dim=1, keepdim=True) > 0
                hits[part, :, layer, head] = ((lower < LOWEST) & writes).float()
    value, null = hits.transpose(0, 1).cpu()
    return HeadScore.of(value, null)
