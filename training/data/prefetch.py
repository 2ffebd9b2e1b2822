"""The batches of coming updates, read by threads of their own while a GPU computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

WORKERS = 4
"""Choosing windows (`data.repeat_choice`) can take a fifth of a second of a core for a batch."""
AHEAD = 2 * WORKERS
"""Batches that are read or being read before they are needed."""


@contextmanager
def batches_on(device: torch.device, read: Callable[[int], Tensor], steps: range) -> Iterator[Iterator[Tensor]]:
    """What `read` gives for each step, in order, on `device`.

    For a GPU, threads read ahead, and the copy to the device does not wait. `read` is a pure function of the step, so
    the batches are the same either way; what it raises is raised when its step's turn comes.
    """
    if device.type == "cpu":
        yield map(read, steps)
        return
    pool = ThreadPoolExecutor(WORKERS, "batch")
    try:
        yield (_copied(batch, device) for batch in _read_ahead(pool, read, steps))
    finally:
        pool.shutdown(cancel_futures=True)


def _read_ahead(pool: ThreadPoolExecutor, read: Callable[[int], Tensor], steps: range) -> Iterator[Tensor]:
    numbers = iter(steps)
    reading: deque[Future[Tensor]] = deque(pool.submit(read, step) for step in islice(numbers, AHEAD))
    while reading:
        batch = reading.popleft().result()
        reading.extend(pool.submit(read, step) for step in islice(numbers, 1))
        yield batch


def _copied(batch: Tensor, device: torch.device) -> Tensor:
    """Only from pinned memory does a copy not wait. Pinned here: a thread of its own would open the first GPU."""
    return (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True)
