"""Pairs of tokens that end alike and go on differently, each twice: what came last does not tell what comes next."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.training.errors import InputError

MAX_GROUPS = 8
RUNS = 4
"""Runs of a group, of which one is asked for and the others are decoys."""
LENGTH = 3


class NgramPrompts(NamedTuple):
    """Runs x c v of three tokens in random order, and all of them again in another order. The runs of a group share c;
    all other tokens of a prompt differ."""

    tokens: Int[Tensor, "prompt pos"]
    query: Int[Tensor, "prompt run"]
    """Where each run's c stands the second time."""
    places: Int[Tensor, "prompt run 4"]
    """Where v stood the first time: of the run itself, then of the others of its group."""


def ngram_prompts(
    vocab: Int[Tensor, " vocab"] | Sequence[int],
    n_prompts: int,
    seed: int = 0,
    bos_id: int | None = None,
    *,
    n_ctx: int,
) -> NgramPrompts:
    """Draws the prompts: 8 groups of 4 runs, or as many groups as fit n_ctx and the vocabulary.

    Raises InputError where not even one does.
    """
    bos, of_group = int(bos_id is not None), 1 + 2 * RUNS
    distinct = len(torch.as_tensor(vocab).unique())
    groups = min(MAX_GROUPS, (n_ctx - bos) // (2 * RUNS * LENGTH), distinct // of_group)
    if groups < 1:
        raise InputError(
            f"ngram_induction: needs a context of {2 * RUNS * LENGTH + bos} tokens and {of_group} tokens to draw from; "
            f"there are {n_ctx} and {distinct}"
        )
    drawn = repeated_random_tokens(vocab, groups * of_group, n_prompts, seed, bos_id, repeats=1)
    shared, x, v = drawn[:, bos:].unflatten(1, (groups, of_group)).split([1, RUNS, RUNS], dim=2)
    runs = torch.stack([x, shared.expand_as(x), v], dim=3).flatten(1, 2)  # (prompt, run, 3)
    many = groups * RUNS
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(2, n_prompts, many, generator=generator).argsort(dim=2)  # which run stands at each place
    halves = [runs.gather(1, order[..., None].expand(-1, -1, LENGTH)).flatten(1) for order in orders]
    first, second = (bos + LENGTH * order.argsort(dim=1) for order in orders)  # where each run begins
    others = torch.arange(many).view(groups, 1, RUNS).expand(-1, RUNS, -1).flatten(0, 1)  # (run, runs of its group)
    itself = torch.arange(many)[:, None]
    others = others[others != itself].view(many, RUNS - 1)
    which = torch.cat([itself, others], dim=1)
    return NgramPrompts(
        tokens=torch.cat([drawn[:, :bos], *halves], dim=1),
        query=second + LENGTH * many + 1,
        places=first[:, which] + LENGTH - 1,
    )
