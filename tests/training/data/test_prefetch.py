"""Batches read ahead are those read one by one; so is what goes wrong."""

import threading

import pytest
import torch

from copyscope.training.data.prefetch import AHEAD, batches_on


def read(step: int) -> torch.Tensor:
    if step == 20:
        raise ValueError("no such batch")
    return torch.full((2, step), step)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_step_in_order_until_one_fails(device: str) -> None:
    with batches_on(torch.device(device), read, range(3, 30)) as batches:
        shapes = [next(batches).shape[1] for _ in range(3, 20)]
        with pytest.raises(ValueError, match="no such batch"):
            next(batches)
    assert shapes == list(range(3, 20))


def test_a_gpu_has_its_next_batches_read_meanwhile() -> None:
    started = [threading.Event() for _ in range(40)]

    def note(step: int) -> torch.Tensor:
        started[step].set()
        return torch.zeros(1)

    with batches_on(torch.device("meta"), note, range(40)) as batches:
        next(batches)
        assert all(event.wait(60) for event in started[: AHEAD + 1])
        assert not started[AHEAD + 1].is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batch_")]
