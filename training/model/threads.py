"""Work shared between threads: a batch, of which each computes loss and gradients of its part of the sequences.

Threads inside each operation must meet after every one of the hundreds of operations of an update; whole parts meet
once. Gradients are summed in the order of the parts, so the same batch gives the same bits in every run with as many
threads.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

MAX_PARTS = 4
"""Python itself runs in one thread at a time, so that more parts would wait for it."""

Weights = Mapping[str, Tensor]
T = TypeVar("T")
_all_threads = 0
"""How many threads torch was given, while it has fewer; 0 while it has them all."""


def loss_in_parts(
    loss_of: Callable[[Weights, Tensor], Tensor],
    sequences: Tensor,
    parameters: Weights,
    cast: Callable[[Weights], Weights],
    most_parts: int | None = None,
) -> Tensor:
    """Mean over the sequences of `loss_of(cast(parameters), sequences)`, which is a mean over its sequences.

    The gradients are computed along with the value, for as many parts as torch has threads (at most `most_parts`).
    """
    parts = max(1, min(number_of_threads(), most_parts or MAX_PARTS, len(sequences)))
    result: Any = _LossInParts.apply(loss_of, sequences, cast, tuple(parameters), parts, *parameters.values())
    return result


def number_of_threads() -> int:
    """All that torch was given, also where `one_share_each` holds."""
    return _all_threads or torch.get_num_threads()


@contextmanager
def one_share_each() -> Iterator[None]:
    """Inside, torch has one piece's share of its threads for everything. With all of them, those that wait for the next
    operation, and MKL's, of which the whole process has one number, take the cores from the pieces: on 2 cores an
    update took 1.6 times as long."""
    global _all_threads
    before, _all_threads = _all_threads, number_of_threads()
    try:
        with _threads(max(1, _all_threads // min(_all_threads, MAX_PARTS))):
            yield
    finally:
        _all_threads = before


def all_threads() -> AbstractContextManager[None]:
    """Inside `one_share_each`: torch has all its threads again, for work that is not shared in pieces."""
    return _threads(number_of_threads())


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def each_in_a_thread(work: Callable[[Tensor], T], pieces: Sequence[Tensor]) -> list[T]:
    """`work` of all pieces at once, each in a thread that has an equal share of torch's threads; in order."""
    if len(pieces) == 1:
        return [work(pieces[0])]
    with one_share_each():
        share = max(1, number_of_threads() // len(pieces))
        return list(_pool(len(pieces), share, os.getpid()).map(work, pieces))


class _LossInParts(Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss_of: Callable[[Weights, Tensor], Tensor],
        sequences: Tensor,
        cast: Callable[[Weights], Weights],
        names: tuple[str, ...],
        parts: int,
        *parameters: Tensor,
    ) -> Tensor:
        weights = cast(dict(zip(names, parameters, strict=True)))  # once for all parts

        def of_part(some: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            with torch.enable_grad():
                mine = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
                loss = loss_of(mine, some) * (len(some) / len(sequences))
                return loss.detach(), torch.autograd.grad(loss, tuple(mine.values()))

        results = each_in_a_thread(of_part, sequences.tensor_split(parts))
        losses, gradients = zip(*results, strict=True)
        ctx.gradients = []
        for parameter, first, *others in zip(parameters, *gradients, strict=True):
            total = first.to(parameter.dtype)
            for other in others:
                total += other
            ctx.gradients.append(total)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor] = ctx.gradients
        del ctx.gradients  # that the parameters own them
        if float(grads[0]) != 1.0:
            gradients = [gradient * grads[0] for gradient in gradients]
        return None, None, None, None, None, *gradients


@cache
def _pool(pieces: int, share: int, process: int) -> ThreadPoolExecutor:
    """Workers with `share` threads each; a forked process needs its own."""
    started = Barrier(pieces)

    def start() -> None:
        torch.set_num_threads(share)
        started.wait()

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(pieces, "part", initializer=start)
    wait([pool.submit(int) for _ in range(pieces)])
    torch.set_num_threads(threads)  # what a worker sets holds for itself and for threads started later
    return pool
