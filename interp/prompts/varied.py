"""Repeated random tokens whose distance differs from prompt to prompt, so that a fixed offset is not induction."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.prompts.generate import fitting_length, repeated_random_tokens

MAX_SPREAD = 8
"""Tokens that the longest and the shortest repeat differ from the mean by, at most."""


def varied_repeats(
    vocab: Int[Tensor, " vocab"] | Sequence[int],
    length: int,
    n_prompts: int,
    seed: int = 0,
    bos_id: int | None = None,
    repeats: int = 2,
    *,
    n_ctx: int,
) -> Int[Tensor, "prompt pos"]:
    """`repeated_random_tokens`, but each prompt repeats another number of tokens: `length` on average, or less where
    n_ctx has no room.

    A head that always looks the same distance back finds the right place in one or two prompts only; with one distance
    for all prompts it would pass for a perfect induction head. The numbers lie evenly between mean - h and mean + h, h
    being 8, a quarter of `length`, or what the vocabulary allows if tokens that must differ are to be distinct. All
    prompts are as long as the longest: shorter ones begin with tokens that do not repeat.

    Raises:
        InputError: fewer than 2 tokens fit, or what `repeated_random_tokens` refuses.
    """
    room = fitting_length(n_ctx, n_ctx, repeats, bos_id)
    mean = min(length, room)
    distinct = len(torch.as_tensor(vocab).unique())
    h = min(MAX_SPREAD, mean // 4, max(0, distinct - mean) // (2 * repeats - 1))
    longest = min(mean + h, room)
    # The first tokens of one draw are the ones that do not repeat, the next ones are repeated.
    needed = longest + 2 * h * (repeats - 1)
    drawn = repeated_random_tokens(vocab, needed, n_prompts, seed, bos_id, repeats=1)
    bos = int(bos_id is not None)
    prompts = []
    for i, row in enumerate(drawn):
        repeated = longest - 2 * h + (round(2 * h * i / (n_prompts - 1)) if n_prompts > 1 else h)
        alone = repeats * (longest - repeated)
        body = row[bos + alone : bos + alone + repeated]
        prompts.append(torch.cat([row[: bos + alone], body.repeat(repeats)]))
    return torch.stack(prompts)
