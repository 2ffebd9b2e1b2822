"""Which heads look at the very token that the model copies: the retrieval score, on the copying test."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.measures.behavior import CopyingHits, copying_hits
from copyscope.interp.measures.head_score import HeadScore, names_of
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.generate import PREFIX, SUBSEQUENCE, SUFFIX, CopyingTest

RETRIEVAL = names_of("retrieval_score")


def retrieval_score(model: HookedModel, test: CopyingTest, seed: int = 0) -> tuple[CopyingHits, HeadScore]:
    """The copying test's hits, and of each head the share of suffix tokens that it retrieves (Wu et al. 2024, arXiv
    2404.15574): the model's likeliest next token is right, and of all positions the head attends most to the one where
    that token stands in the subsequence asked for.

    In [0, 1], at most `token` accuracy; teacher-forced, where the paper generates. The null looks, at the same tokens,
    for the highest attention in the same place of another subsequence, drawn with `seed`. Over contexts. It cannot tell
    whether the head's output is used, nor see a head that spreads its attention. Raises InputError as
    `copying_accuracy` does.
    """
    right, other = _places(test, seed)
    hits = torch.zeros(2, len(right), model.cfg.n_layers, model.cfg.n_heads, SUFFIX, dtype=torch.bool)
    on_device: list[Tensor] = []

    def watch(layer: int, sample: Int[Tensor, " sample"], key: Int[Tensor, "sample head 6"]) -> None:
        if not on_device:  # the copies to the CPU are made once, at the end
            on_device.extend(x.to(key.device) for x in (hits, right, other))
        held, *places = on_device
        at = sample.to(key.device)
        for which, place in enumerate(places):
            held[which, at, layer] = key == place[at, None]

    result = copying_hits(model, test, watch)
    looks = on_device[0].cpu() & result.forced[:, None, None]  # (which, sample, layer, head, 6)
    of_sample = looks.double().mean(dim=-1)
    value, null = (_by_context(one, test.context) for one in of_sample)
    return result, HeadScore.of(value, null)


def _places(test: CopyingTest, seed: int) -> tuple[Int[Tensor, "sample 6"], Int[Tensor, "sample 6"]]:
    """Where the suffix tokens stand in the subsequence asked for, and the same places of another one."""
    many = test.n_subsequences
    step = torch.randint(1, many, (len(test.index),), generator=torch.Generator().manual_seed(seed))
    index = test.index.cpu()
    starts = (SUBSEQUENCE * which + PREFIX + int(test.has_bos) for which in (index, (index + step) % many))
    right, other = (start[:, None] + torch.arange(SUFFIX) for start in starts)
    return right, other


def _by_context(
    of_sample: Float[Tensor, "sample layer head"], context: Int[Tensor, " sample"]
) -> Float[Tensor, "context layer head"]:
    """Means over the samples of each context, which share it and are not independent."""
    count = torch.bincount(context.cpu())
    sums = torch.zeros(len(count), *of_sample.shape[1:], dtype=of_sample.dtype)
    return sums.index_add_(0, context.cpu(), of_sample) / count[:, None, None]
