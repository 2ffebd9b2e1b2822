"""Which tokens an update reads: `batch(seed, step)`. The only place that decides the order of data."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.training.data.repeats import repeat_value
from copyscope.training.data.shards import ShardedArray
from copyscope.training.errors import InputError


def n_windows(tokens: np.ndarray | ShardedArray, length: int) -> int:
    """Non-overlapping sequences of `length` tokens, each with the one token after it."""
    return max(0, (len(tokens) - 1) // length)


Order = int | tuple[tuple[int, int], ...]
"""The seed of the whole order, or (first window, seed) of each part of it (`training.schedule.order_of_data`)."""


@lru_cache(maxsize=4)
def epoch_order(seed: Order, epoch: int, count: int, length: int) -> tuple[np.ndarray, int]:
    """The order of the windows, and how many tokens further in this epoch cuts the text (the first not at all).

    Where another seed takes over within the epoch, the windows that are left are put in another order: none is read
    twice, and none is left out.
    """
    pieces = seed if isinstance(seed, tuple) else ((0, seed),)
    begin = epoch * count
    draw = np.random.default_rng([[own for window, own in pieces if window <= begin][-1], epoch])
    order, offset = draw.permutation(count), int(draw.integers(length)) if epoch else 0
    for window, own in pieces:
        if begin < window < begin + count:
            rest = order[window - begin :].copy()
            order[window - begin :] = np.random.default_rng([own, epoch, window]).permutation(rest)
    return order, offset


def sequence_starts(seed: Order, first: int, n: int, total: int, length: int) -> list[int]:
    """Where sequences number `first` … `first + n - 1` of the endless stream begin in a text of `total` tokens.

    Every epoch reads the whole text once, shuffled again and cut at other places, so that a sequence does not return.
    """
    count = (total - 1) // length
    starts = []
    for number in range(first, first + n):
        order, offset = epoch_order(seed, number // count, count, length)
        starts.append(min(int(order[number % count]) * length + offset, total - 1 - length))
    return starts


def batch(
    tokens: np.ndarray | ShardedArray,
    length: int,
    batch_size: int,
    seed: Order,
    step: int,
    repeat_choice: int = 1,
    surprisal: np.ndarray | ShardedArray | None = None,
    rows: range | None = None,
    window: int | None = None,
) -> Int[Tensor, "batch pos_plus_1"]:
    """The batch of update `step` (from 0): [batch_size, length + 1] token ids, or those of its `rows` only.

    A pure function of its arguments, so a run resumes from the step alone. The stream of sequences depends on `seed`
    only: update s of batch size B reads sequences s·B … s·B + B - 1 of the same stream, whatever B is. With
    `repeat_choice` k, each sequence is the one of the next k windows with the largest `repeat_value`, for which
    `surprisal` [n] weighs the tokens (None: all alike). `window`: the first of those windows, where it is not the
    s·B·k-th (`training.schedule.window_at`). Raises InputError if the corpus has too few sequences.
    """
    count = n_windows(tokens, length)
    if count < batch_size * repeat_choice:
        raise InputError(
            f"the corpus is too small: {len(tokens)} training tokens make {count} sequences of {length}, and one batch "
            f"needs {batch_size * repeat_choice}; give more text, or lower train.batch_size or model.n_ctx"
        )
    window = step * batch_size * repeat_choice if window is None else window
    starts: list[int] = []
    for row in rows if rows is not None else range(batch_size):
        starts += sequence_starts(seed, window + row * repeat_choice, repeat_choice, len(tokens), length)
    candidates = np.stack([tokens[start : start + length + 1] for start in starts])
    if repeat_choice > 1:
        weights = None
        if surprisal is not None:
            weights = np.stack([surprisal[start + 1 : start + length + 1] for start in starts])
        values = repeat_value(candidates, weights).reshape(-1, repeat_choice)
        candidates = candidates[np.arange(0, len(starts), repeat_choice) + values.argmax(axis=1)]
    return torch.from_numpy(candidates.astype(np.int64))


def windows(tokens: np.ndarray | ShardedArray, length: int, n: int, seed: int) -> Int[Tensor, "window pos_plus_1"]:
    """`n` distinct held-out sequences of `length + 1` tokens (fewer if there are fewer), chosen by `seed`."""
    count = n_windows(tokens, length)
    if not count:
        raise InputError(
            f"the corpus is too small: its {len(tokens)} held-out tokens do not fill one sequence of {length}; "
            "give more text, or lower model.n_ctx"
        )
    return batch(tokens, length, min(n, count), seed, 0)
