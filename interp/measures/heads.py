"""Scores read off attention patterns, with their calibration, and the table of all heads' scores.

Where a measure looks is in `targets`; how patterns are gone through without keeping them, in `patterns`.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.memory import within_memory
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.circuits import (
    SPECTRA,
    head_weights,
    model_circuit_ranks,
    model_copying_score,
    model_eigenvalue_positivity,
)
from copyscope.interp.measures.head_score import HeadScore, names_of
from copyscope.interp.measures.logit_attribution import induction_logit_attribution
from copyscope.interp.measures.ngrams import model_ngram_induction
from copyscope.interp.measures.offsets import attention_by_offset
from copyscope.interp.measures.pattern_scores import OFFSET_MEASURES, OUTPUT_MEASURES, WHOLE_MEASURES, pattern_scores
from copyscope.interp.measures.precision import above_rounding
from copyscope.interp.measures.suppression import copy_suppression, copy_suppression_weights
from copyscope.interp.measures.targets import TARGET_MEASURES, targets
from copyscope.interp.models.hooked import HookedModel, model_vocabulary
from copyscope.interp.prompts.generate import drawable, fitting_length, repeated_random_tokens
from copyscope.interp.prompts.ngrams import NgramPrompts, ngram_prompts
from copyscope.interp.prompts.varied import varied_repeats
from copyscope.training.errors import InputError

Pattern = Float[Tensor, "batch head query key"]


def induction_attention(pattern: Pattern, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
    """Attention to the token that followed the first occurrence of the current token (2409.09281; definition 2).

    Mean over the positions whose token occurred before; on repeated random tokens, the second half. In [0, 1]; 0 if
    no token repeats. It tells where the head looks, not what it writes there, nor whether the model uses it.
    """
    return targets("induction_attention", tokens).of(pattern)


def prefix_matching_sum(pattern: Pattern, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
    """Attention to the tokens that followed *any* earlier occurrence, summed over occurrences (Olsson et al. 2022).

    Mean over the positions whose token occurred before. In [0, 1]: a head that spreads over all copies scores as
    high as one that picks a single copy. Definition 5; 0 if no token repeats.
    """
    return targets("prefix_matching_sum", tokens).of(pattern)


def prefix_matching_mean(pattern: Pattern, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
    """Mean attention over all pairs of a position and a token that followed an earlier occurrence (definition 5).

    In [0, 1], but on 4 repeats at most 1/2, since a query's attention is shared by up to 3 targets: not comparable
    with `prefix_matching_sum`. 0 if no token repeats.
    """
    return targets("prefix_matching_mean", tokens).of(pattern)


def previous_token(pattern: Pattern, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
    """Mean attention from each position to the one before it (definition 6). In [0, 1].

    Over the positions from 9 on (or from a quarter of the prompt), which have 8 earlier keys beside position 0 to
    compare with. A head that always looks one back and one that looks at a neighbour for what it says score alike.
    """
    return attention_by_offset(pattern)[:, 0]


def duplicate_token(pattern: Pattern, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
    """Attention to earlier copies of the current token, summed over copies (definition 6).

    Mean over the positions whose token occurred before. In [0, 1]; 0 if no token repeats.
    """
    return targets("duplicate_token", tokens).of(pattern)


def anti_induction(pattern: Pattern, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, " head"]:
    """Attention to the token *before* the first occurrence of the current token: a control of direction.

    As `induction_attention`, one place to the other side. In [0, 1]. High along with induction attention, it says that
    the head looks around the earlier occurrence rather than after it. Position 0 is no target.
    """
    return targets("anti_induction", tokens).of(pattern)


def bos_sink(pattern: Pattern) -> Float[Tensor, " head"]:
    """Mean attention of every later position to the first one (Xiao et al. 2023, "attention sinks"). In [0, 1].

    The first position holds BOS where prompts begin with one. A head at rest puts its attention there; so may one that
    reads something from it.
    """
    return pattern[:, :, 1:, 0].float().mean(dim=(0, 2))


def attention_entropy(pattern: Pattern) -> Float[Tensor, " head"]:
    """Mean entropy of each later position's attention, in nats: 0 for one key, log(keys) for an even spread.

    It grows with the length of the prompt, and says how wide a head looks, not where.
    """
    return torch.special.entr(pattern[:, :, 1:].float()).sum(dim=-1).mean(dim=(0, 2))


# --------------------------------------------------------------------------------------------------- all heads at once

HEAD_PROMPTS = 16
"""Prompts of each kind that heads are scored on, by default."""
CALIBRATION = ("null", "selectivity", "se", "p", "value_weighted")
WITH_NULL = (*TARGET_MEASURES, *OFFSET_MEASURES)
MEASURES = (
    *WITH_NULL,
    *(f"{name}_{kind}" for name in WITH_NULL for kind in CALIBRATION),
    "best_offset",
    *WHOLE_MEASURES,
    *(f"{name}_se" for name in WHOLE_MEASURES),
    *OUTPUT_MEASURES,
    *("eigenvalue_positivity_raw", "eigenvalue_positivity_folded", "induction_score", "copying_score"),
    *SPECTRA,
)
"""What `score_heads` computes unless told otherwise."""
_ON_REQUEST = ("ngram_induction", "induction_logit_attribution", "copy_suppression", "copy_suppression_weights")
ON_REQUEST = tuple(chain.from_iterable(names_of(name) for name in _ON_REQUEST))
"""What takes passes of its own."""


@within_memory
@torch.no_grad()
def score_heads(
    model: HookedModel,
    measures: Sequence[str] | None = None,
    seed: int | Sequence[int] = 0,
    *,
    vocab: Int[Tensor, " vocab"] | Sequence[int] | None = None,
    bos_id: int | None = None,
    n_prompts: int = HEAD_PROMPTS,
    layers: Sequence[int] | None = None,
) -> pl.DataFrame:
    """Every measure of every head, as a table with columns layer, head, measure, value.

    Args:
        measures: names from `MEASURES`, which None takes all of, or from `ON_REQUEST`, which take longer. Of each
            measure with targets also
            `_null`: random targets of the same number, of the same queries; of `previous_token` and
            `best_offset_attention` the mean of the other short offsets;
            `_selectivity`: the score over what uniform attention gets;
            `_se`: its standard error over prompts;
            `_p`: one-sided p-value that it exceeds its null, by a t-test of the paired differences over prompts, or
            by `above_others` over the other short offsets, corrected for the number of heads scored (Holm 1979). It
            says that a head is above chance, not that it is far above: read it beside the score; of a bfloat16 model 1
            wherever the difference is within `interp.measures.precision.BF16_ERROR`;
            `_value_weighted`: the same measure of `value_weighted` attention.
            `induction_score` is induction_attention × eigenvalue_positivity_folded (2409.09281; definition 4).
        seed: of the prompts and of the random targets. The same seed gives every checkpoint the same prompts; of
            several seeds the prompts are taken together.
        vocab: ids to draw prompts from; None takes the model's own (`interp.models.vocabulary`), without special
            tokens and without the most and least common ones.
        bos_id: put first in each prompt; None: the model's own BOS where `vocab` is None too, else nothing.
        n_prompts: prompts of each kind and seed: repeated random tokens (100 × 2 on average, or what fits n_ctx); 25
            × 4 for prefix matching; 25 distinct ones for the copying score. The distance of the repeats varies from
            prompt to prompt (`varied_repeats`), so that a head that looks a fixed distance back is no induction head.
        layers: which to score; None for all. Layers after the last of them are not run.

    Raises:
        InputError: an unknown measure or layer, a context too short for two tokens repeated, or one prompt only where
            a spread over prompts is asked for.
    """
    wanted = check_names(MEASURES if measures is None else measures, (*MEASURES, *ON_REQUEST), "measure")
    chosen = _check_layers(layers, model.cfg.n_layers)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not seeds:
        raise InputError("seed: no seed given; give at least one")
    if n_prompts * len(seeds) < 2 and any(name.endswith(("_se", "_p")) for name in wanted):
        raise InputError(f"n_prompts={n_prompts}: standard errors and p-values need at least 2 prompts")
    n_ctx = model.cfg.n_ctx
    if vocab is None:
        own = model_vocabulary(model)
        vocab, bos_id = drawable(own), own.bos_id if bos_id is None else bos_id
        vocab = vocab[vocab != bos_id] if bos_id is not None else vocab

    def prompts(length: int, repeats: int) -> Tensor:
        drawn = [varied_repeats(vocab, length, n_prompts, s, bos_id, repeats, n_ctx=n_ctx) for s in seeds]
        tokens = torch.cat(drawn)
        check_tokens(model, tokens)
        return tokens

    base = {_base(name) for name in wanted} | ({"induction_attention"} if "induction_score" in wanted else set())
    scores: dict[str, Tensor] = {}
    for length, repeats, prefix in ((100, 2, False), (25, 4, True)):
        of_patterns = (*WITH_NULL, "best_offset", *WHOLE_MEASURES, *OUTPUT_MEASURES)
        names = [n for n in of_patterns if n in base and n.startswith("prefix") == prefix]
        if names:
            weighted = [name for name in names if f"{name}_value_weighted" in wanted]
            nulls = [n for n in names if n in TARGET_MEASURES and {f"{n}_null", f"{n}_p"} & {*wanted}]
            scores |= pattern_scores(model, prompts(length, repeats), names, nulls, weighted, chosen, seeds[0])
    for kind in ("raw", "folded"):
        name = f"eigenvalue_positivity_{kind}"
        if name in wanted or (kind == "folded" and "induction_score" in wanted):
            scores[name] = model_eigenvalue_positivity(head_weights(model), folded=kind == "folded").cpu()[chosen]
    if {*SPECTRA} & {*wanted}:
        scores |= {name: ranks[chosen] for name, ranks in model_circuit_ranks(head_weights(model)).items()}
    if "induction_score" in wanted:
        scores["induction_score"] = scores["induction_attention"] * scores["eigenvalue_positivity_folded"]
    if "copying_score" in wanted:
        length = fitting_length(n_ctx, 25, 1, bos_id)
        once = torch.cat([repeated_random_tokens(vocab, length, n_prompts, s, bos_id, repeats=1) for s in seeds])
        check_tokens(model, once)
        scores["copying_score"] = model_copying_score(model, once, bos_id is not None, chosen)
    scores |= _on_request(model, wanted, vocab, bos_id, n_prompts, seeds, chosen)
    return head_table(above_rounding(scores, model.cfg.dtype), wanted, chosen)


def head_table(
    scores: Mapping[str, Float[Tensor, "layer head"]], names: Iterable[str], layers: Sequence[int]
) -> pl.DataFrame:
    """Measures of every head of `layers` as a table with columns layer, head, measure, value, in the order of
    `names`."""
    parts = []
    for name in names:
        values = scores[name]
        layer, head = torch.meshgrid(torch.tensor(layers), torch.arange(values.shape[1]), indexing="ij")
        parts.append(
            pl.DataFrame(
                {
                    "layer": layer.flatten().tolist(),
                    "head": head.flatten().tolist(),
                    "measure": [name] * layer.numel(),
                    "value": values.flatten().double().tolist(),
                }
            )
        )
    return pl.concat(parts)


def _on_request(
    model: HookedModel,
    wanted: Sequence[str],
    vocab: Tensor | Sequence[int],
    bos_id: int | None,
    n_prompts: int,
    seeds: Sequence[int],
    layers: Sequence[int],
) -> dict[str, Float[Tensor, "layer head"]]:
    """Those of `ON_REQUEST` that are wanted."""
    n_ctx, vocab = model.cfg.n_ctx, torch.as_tensor(vocab)

    def repeated() -> Tensor:
        length = fitting_length(n_ctx, 100, 2, bos_id)
        return torch.cat([repeated_random_tokens(vocab, length, n_prompts, s, bos_id) for s in seeds])

    def ngrams() -> NgramPrompts:
        drawn = [ngram_prompts(vocab, n_prompts, s, bos_id, n_ctx=n_ctx) for s in seeds]
        return NgramPrompts(*(torch.cat(column) for column in zip(*drawn, strict=True)))

    compute: dict[str, Callable[[], HeadScore]] = {
        "ngram_induction": lambda: model_ngram_induction(model, ngrams()),
        "induction_logit_attribution": lambda: induction_logit_attribution(model, repeated(), seeds[0]),
        "copy_suppression": lambda: copy_suppression(model, repeated(), seeds[0]),
        "copy_suppression_weights": lambda: copy_suppression_weights(model, vocab, seeds[0]),
    }
    scores: dict[str, Tensor] = {}
    for name in _ON_REQUEST:
        if {*names_of(name)} & {*wanted}:
            scores |= compute[name]().named(name)
    return {name: values[layers] for name, values in scores.items()}


def _base(name: str) -> str:
    """The measure that a calibration belongs to."""
    for kind in CALIBRATION:
        if name.endswith(f"_{kind}") and name.removesuffix(f"_{kind}") in (*WITH_NULL, *WHOLE_MEASURES):
            return name.removesuffix(f"_{kind}")
    return name


def _check_layers(layers: Sequence[int] | None, n_layers: int) -> list[int]:
    chosen = sorted(set(range(n_layers) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= n_layers:
        raise InputError(f"layers {list(layers or ())}: the model has layers 0 to {n_layers - 1}")
    return chosen


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
