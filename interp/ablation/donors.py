"""Resampling: which prompt each prompt's resampled outputs come from, and batches that hold both."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.training.errors import InputError


def donors(n_rows: int, seed: int) -> Int[Tensor, " row"]:
    """The row that each row's resampled outputs come from, never itself: rows are put into pairs (and one group of
    three if their number is odd) at random, and each takes the next of its group.

    Raises:
        InputError: fewer than 2 rows.
    """
    if n_rows < 2:
        raise InputError("resample ablation needs prompts with at least 2 different contexts; give a longer test")
    donor = torch.empty(n_rows, dtype=torch.long)
    for group in donor_groups(n_rows, seed):
        donor[group] = group.roll(-1)
    return donor


def donor_groups(n_rows: int, seed: int) -> list[Int[Tensor, " _"]]:
    """The groups that `donors` takes turns in; a single row is a group of its own."""
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    groups = list(order.split(2))
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [torch.cat(groups[-2:])]
    return groups


def batches_of_groups(groups: Sequence[Int[Tensor, " _"]], size: int) -> Iterator[Int[Tensor, " _"]]:
    """Rows of a batch after the other, each of at most `size` rows, or of one group: no group is parted, so that every
    row's donor is in its batch."""
    batch: list[Tensor] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > size:
            yield torch.cat(batch)
            batch = []
        batch.append(group)
    yield torch.cat(batch)


def places_of_donors(rows: Int[Tensor, " row"], n_rows: int, seed: int) -> Int[Tensor, " row"]:
    """Where in a batch of `rows` each row's donor stands; `n_rows` is the number of rows in all batches together."""
    place = torch.empty(n_rows, dtype=torch.long)
    place[rows] = torch.arange(len(rows))
    return place[donors(n_rows, seed)[rows]]
