"""A batch shared between threads, each of which computes loss and gradients of its part of the sequences.

Threads inside each operation must meet after every one of the hundreds of operations of an update; whole parts meet
once. Gradients are summed in the order of the parts, so the same batch gives the same bits in every run with as many
threads.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

MAX_PARTS = 4
"""Python itself runs in one thread at a time, so that more parts would wait for it."""

Weights = Mapping[str, Tensor]


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
    threads = torch.get_num_threads()
    parts = max(1, min(threads, most_parts or MAX_PARTS, len(sequences)))
    result: Any = _LossInParts.apply(loss_of, sequences, cast, tuple(parameters), parts, *parameters.values())
    return result


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

        if parts == 1:
            results = [of_part(sequences)]
        else:
            pool = _pool(parts, torch.get_num_threads(), os.getpid())
            results = list(pool.map(of_part, sequences.tensor_split(parts)))
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
def _pool(parts: int, threads: int, process: int) -> ThreadPoolExecutor:
    """Workers with an equal share of the threads each; a forked process needs its own."""
    started = Barrier(parts)

    def start() -> None:
        torch.set_num_threads(threads // parts)
        started.wait()

    pool = ThreadPoolExecutor(parts, "part", initializer=start)
    wait([pool.submit(int) for _ in range(parts)])
    torch.set_num_threads(threads)  # what a worker sets holds for itself and for threads started later
    return pool
