"""Scores read off attention patterns, their random-target nulls, and the table of all heads' scores.

Every attention measure is a fixed weighting of the pattern: `score[head] = Σ weight[batch, query, key] ·
pattern[...]`. The weights depend on the tokens alone, which gives the measure, its null and its value under uniform
attention from one formula, and lets `score_heads` accumulate in hooks with no activation cache.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.circuits import head_weights, model_eigenvalue_positivity
from interp.models import HookedModel, special_ids
from interp.prompts import fitting_length, random_token_vocab, repeated_random_tokens
from interp.runs import batches, final_residual
from training.checkpoints import InputError

Targets = Bool[Tensor, "batch query key"]
Weights = Float[Tensor, "batch query key"]


def induction_attention(
    pattern: Float[Tensor, "batch head query key"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "head"]:
    """Attention to the token that followed the first occurrence of the current token (2409.09281; definition 2).

    Mean over the positions whose token occurred before; on repeated random tokens, the second half. In [0, 1]; 0 if
    no token repeats. It tells where the head looks, not what it writes there, nor whether the model uses it.
    """
    return _apply(pattern, attention_weights("induction_attention", tokens))


def prefix_matching_sum(
    pattern: Float[Tensor, "batch head query key"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "head"]:
    """Attention to the tokens that followed *any* earlier occurrence, summed over occurrences (Olsson et al. 2022).

    Mean over the positions whose token occurred before. In [0, 1]: a head that spreads over all copies scores as
    high as one that picks a single copy. Definition 5; 0 if no token repeats.
    """
    return _apply(pattern, attention_weights("prefix_matching_sum", tokens))


def prefix_matching_mean(
    pattern: Float[Tensor, "batch head query key"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "head"]:
    """Mean attention over all pairs of a position and a token that followed an earlier occurrence (definition 5).

    In [0, 1], but on 4 repeats at most 1/2, since a query's attention is shared by up to 3 targets: not comparable
    with `prefix_matching_sum`. 0 if no token repeats.
    """
    return _apply(pattern, attention_weights("prefix_matching_mean", tokens))


def previous_token(
    pattern: Float[Tensor, "batch head query key"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "head"]:
    """Mean attention from every position but the first to the one before it (definition 6). In [0, 1].

    A head that always looks one back and one that looks at a neighbour for what it says score alike.
    """
    return _apply(pattern, attention_weights("previous_token", tokens))


def duplicate_token(
    pattern: Float[Tensor, "batch head query key"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "head"]:
    """Attention to earlier copies of the current token, summed over copies (definition 6).

    Mean over the positions whose token occurred before. In [0, 1]; 0 if no token repeats.
    """
    return _apply(pattern, attention_weights("duplicate_token", tokens))


# ----------------------------------------------------------------------------------------------------- targets,
# weights


def _earlier_copies(tokens: Tensor) -> Tensor:
    """Keys j < i that hold the query's token, (batch, query, key)."""
    n = tokens.shape[1]
    same = tokens[:, :, None] == tokens[:, None, :]
    return same & torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril(-1)


def _followers(copies: Tensor) -> Tensor:
    """The keys one after `copies`, unless that is the query itself: a token right after its twin has nothing to
    copy."""
    after = torch.zeros_like(copies)
    after[:, :, 1:] = copies[:, :, :-1]
    n = copies.shape[1]
    return after & torch.ones(n, n, dtype=torch.bool, device=copies.device).tril(-1)


def _induction_targets(tokens: Tensor) -> Tensor:
    copies = _earlier_copies(tokens)
    return _followers(copies & (copies.cumsum(dim=-1) == 1))


def _previous_targets(tokens: Tensor) -> Tensor:
    n = tokens.shape[1]
    return torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril(-1).triu(-1).expand(len(tokens), n, n)


_TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "induction_attention": _induction_targets,
    "prefix_matching_sum": lambda tokens: _followers(_earlier_copies(tokens)),
    "prefix_matching_mean": lambda tokens: _followers(_earlier_copies(tokens)),
    "previous_token": _previous_targets,
    "duplicate_token": _earlier_copies,
}
ATTENTION_MEASURES = tuple(_TARGETS)
MEASURES = (
    *ATTENTION_MEASURES,
    *(f"{name}_{kind}" for name in ATTENTION_MEASURES for kind in ("null", "selectivity")),
    *("eigenvalue_positivity_raw", "eigenvalue_positivity_folded", "induction_score"),
)


def attention_weights(name: str, tokens: Int[Tensor, "batch pos"]) -> Weights:
    """The weighting whose sum with a pattern is the measure `name`. Zero where nothing is counted."""
    return _normalised(name, _TARGETS[name](tokens))


def null_weights(name: str, tokens: Int[Tensor, "batch pos"], seed: int = 0) -> Weights:
    """The same measure with random targets: as many a query as the true ones, drawn from earlier positions
    (definition 12).

    Drawn without replacement from the positions before the query that are no true target and not the first one, where
    attention rests when a head has nothing to do. Queries with too few such positions are left out.
    """
    true = _TARGETS[name](tokens)
    n = tokens.shape[1]
    candidates = ~true & torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril(-1)
    candidates[:, :, 0] = False
    wanted = true.sum(dim=-1)  # (batch, query)
    most = int(wanted.max())
    if most == 0:
        return _normalised(name, true)
    wanted = torch.where(candidates.sum(dim=-1) >= wanted, wanted, 0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(true.shape, generator=generator).to(tokens.device).masked_fill_(~candidates, -1.0)
    picks = order.topk(most, dim=-1).indices  # (batch, query, most)
    chosen = torch.arange(most, device=tokens.device) < wanted[..., None]
    return _normalised(name, torch.zeros_like(true).scatter_(-1, picks, chosen))


def uniform_value(weights: Weights) -> float:
    """What attention spread evenly over the visible keys gets under `weights`."""
    visible = torch.arange(1, weights.shape[1] + 1, device=weights.device)
    return (weights.sum(dim=(0, 2)) / visible).sum().item()


def _normalised(name: str, targets: Tensor) -> Tensor:
    counted = targets.sum() if name == "prefix_matching_mean" else targets.any(dim=-1).sum()
    return targets.float() / counted.clamp(min=1)


def _apply(pattern: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("bhqk,bqk->h", pattern.float(), weights)


# ---------------------------------------------------------------------------------------------------- all heads at
# once


@torch.no_grad()
def score_heads(
    model: HookedModel,
    measures: Sequence[str] | None = None,
    seed: int = 0,
    *,
    vocab: Int[Tensor, "vocab"] | Sequence[int] | None = None,
    bos_id: int | None = None,
    n_prompts: int = 16,
) -> pl.DataFrame:
    """Every measure of every head, as a table with columns layer, head, measure, value.

    Args:
        measures: names from `MEASURES`; None for all. `induction_score` is induction_attention ×
            eigenvalue_positivity_folded (2409.09281; definition 4). `<name>_null` has random targets of the same
            number, `<name>_selectivity` is the score over what uniform attention gets.
        seed: of the prompts and of the random targets. The same seed gives every checkpoint the same prompts.
        vocab: ids to draw prompts from; None takes `random_token_vocab` of the whole vocabulary without special
            tokens.
        bos_id: put first in each prompt if given.
        n_prompts: prompts of each kind: repeated random tokens (100 × 2, or what fits n_ctx) for induction attention
            and the previous- and duplicate-token scores, 25 × 4 for prefix matching.

    Raises:
        InputError: an unknown measure, or a context too short for two tokens repeated.
    """
    wanted = check_names(MEASURES if measures is None else measures, MEASURES, "measure")
    n_layers, n_heads, n_ctx = model.cfg.n_layers, model.cfg.n_heads, model.cfg.n_ctx
    if vocab is None:
        special = [*special_ids(model), *([bos_id] if bos_id is not None else [])]
        vocab = random_token_vocab(None, model.cfg.d_vocab, special)
    pairs = repeated_random_tokens(vocab, fitting_length(n_ctx, 100, 2, bos_id), n_prompts, seed, bos_id, 2)
    quads = repeated_random_tokens(vocab, fitting_length(n_ctx, 25, 4, bos_id), n_prompts, seed, bos_id, 4)
    needed = {"induction_attention"} if "induction_score" in wanted else set()
    needed |= {name for name in MEASURES if name in wanted and not name.startswith(("eigenvalue", "induction_score"))}
    scores: dict[str, Tensor] = {}
    for prompts, prefix in ((pairs, False), (quads, True)):
        weights: dict[str, Tensor] = {}
        ratios: dict[str, tuple[str, float]] = {}
        for name in (n for n in ATTENTION_MEASURES if n.startswith("prefix_matching") == prefix):
            if name in needed or f"{name}_selectivity" in needed:
                weights[name] = attention_weights(name, prompts)
                ratios[f"{name}_selectivity"] = (name, uniform_value(weights[name]))
            if f"{name}_null" in needed:
                weights[f"{name}_null"] = null_weights(name, prompts, seed)
        scores |= _pattern_scores(model, prompts, weights)
        scores |= {key: scores[name] / uniform for key, (name, uniform) in ratios.items()}
    for kind in ("raw", "folded"):
        name = f"eigenvalue_positivity_{kind}"
        if name in wanted or (kind == "folded" and "induction_score" in wanted):
            scores[name] = model_eigenvalue_positivity(head_weights(model), folded=kind == "folded").cpu()
    if "induction_score" in wanted:
        scores["induction_score"] = scores["induction_attention"] * scores["eigenvalue_positivity_folded"]
    layer, head = torch.meshgrid(torch.arange(n_layers), torch.arange(n_heads), indexing="ij")
    return pl.concat(
        pl.DataFrame(
            {
                "layer": layer.flatten().tolist(),
                "head": head.flatten().tolist(),
                "measure": [name] * (n_layers * n_heads),
                "value": scores[name].flatten().double().tolist(),
            }
        )
        for name in wanted
    )


def _pattern_scores(model: HookedModel, prompts: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores (layer, head) of all weightings in one pass; only sums are kept, layer by layer."""
    if not weights:
        return {}
    stacked = torch.stack(list(weights.values()))  # (measure, prompt, query, key)
    sums = torch.zeros(len(weights), model.cfg.n_layers, model.cfg.n_heads)

    def add(layer: int, rows: slice, pattern: Tensor, hook: object) -> None:
        part = stacked[:, rows].to(pattern.device)
        sums[:, layer] += torch.einsum("bhqk,mbqk->mh", pattern.float(), part).cpu()

    for rows in batches(model, *prompts.shape):
        hooks = [(f"blocks.{i}.attn.hook_pattern", partial(add, i, rows)) for i in range(model.cfg.n_layers)]
        final_residual(model, prompts[rows], hooks)
    return dict(zip(weights, sums, strict=True))


def check_names(names: Iterable[str], known: Sequence[str], what: str) -> list[str]:
    """The names without repeats, in order; InputError with the closest known name if one is not known."""
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise InputError(f"unknown {what} {name!r}; {hint}")
    if not chosen:
        raise InputError(f"no {what} given; known are {', '.join(known)}")
    return chosen
