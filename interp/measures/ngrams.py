"""Whether a head's induction takes more than the last token into account."""

import torch
from jaxtyping import Float
from torch import Tensor

from copyscope.interp.forward.memory import within_memory
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.measures.pattern_scores import target_sums
from copyscope.interp.measures.targets import Targets
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.ngrams import NgramPrompts


def ngram_induction(pattern: Float[Tensor, "batch head query key"], prompts: NgramPrompts) -> Float[Tensor, " head"]:
    """Attention to what followed the same two tokens, minus the mean to what followed decoys that share only the last
    of them (after Akyürek et al. 2024, arXiv 2401.12973, n-gram heads).

    In [-1, 1]: 1 for a head that finds the pair, 0 for one that matches single tokens, however well. Cannot tell
    whether the head writes what it finds.
    """
    lists = _lists(prompts)
    return (lists["true"].of(pattern) - lists["decoys"].of(pattern)) / len(prompts.tokens)


@within_memory
@torch.no_grad()
def model_ngram_induction(model: HookedModel, prompts: NgramPrompts) -> HeadScore:
    """`ngram_induction` of every head. The null puts the first decoy in the place of the true one, and compares it with
    the other decoys. Raises InputError for prompts that do not fit the model."""
    check_tokens(model, prompts.tokens)
    sums = target_sums(model, prompts.tokens, _lists(prompts))
    return HeadScore.of(sums["true"] - sums["decoys"], sums["first"] - sums["rest"])


def _lists(prompts: NgramPrompts) -> dict[str, Targets]:
    """Places to look at, weighted so that each prompt gives a mean of its own."""
    places = prompts.places
    kinds = {"true": places[..., :1], "decoys": places[..., 1:], "first": places[..., 1:2], "rest": places[..., 2:]}
    lists = {}
    for name, keys in kinds.items():
        n, runs, many = keys.shape
        prompt = torch.arange(n).repeat_interleave(runs * many)
        query = prompts.query.flatten().repeat_interleave(many)
        lists[name] = Targets(prompt, query, keys.flatten(), torch.full(prompt.shape, 1 / (runs * many)))
    return lists
