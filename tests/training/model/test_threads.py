"""A batch in parts gives the loss and the gradients of the whole, and the same bits every time."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from copyscope.training.config import RunConfig
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.threads import (
    all_threads,
    each_in_a_thread,
    loss_in_parts,
    number_of_threads,
    one_share_each,
)

SEQUENCES = torch.randint(61, (5, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small_loss(dtype: torch.dtype, **values: Any) -> NextTokenLoss:
    sizes = {"model.n_layers": 2, "model.d_model": 32, "model.d_mlp": 48, "model.init_std": 0.2}
    return NextTokenLoss(build_model(RunConfig().with_values(sizes), 61), 32, dtype, **values)


def loss_and_gradients(loss_of: NextTokenLoss, threads: int, times: float = 1.0) -> list[Tensor]:
    torch.set_num_threads(threads)
    loss_of.zero_grad()
    loss = loss_of(SEQUENCES) * times
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in loss_of.parameters() if p.grad is not None)]


@pytest.mark.parametrize("threads", [2, 3, 9])
def test_parts_sum_to_the_whole(threads: int) -> None:
    loss_of = small_loss(torch.float32)
    whole = loss_and_gradients(loss_of, 1)
    assert len(whole) == 1 + len(list(loss_of.parameters()))
    torch.testing.assert_close(loss_and_gradients(loss_of, threads), whole, rtol=1e-4, atol=1e-6)


def test_the_same_bits_every_time() -> None:
    loss_of = small_loss(torch.bfloat16)
    first = loss_and_gradients(loss_of, 2)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, loss_and_gradients(loss_of, 2), strict=True))


def test_gradients_follow_what_is_done_to_the_loss() -> None:
    loss_of = small_loss(torch.float32)
    once, thrice = loss_and_gradients(loss_of, 2), loss_and_gradients(loss_of, 2, 3.0)
    torch.testing.assert_close(thrice, [3 * x for x in once])


def test_gradients_add_up_over_calls() -> None:
    loss_of = small_loss(torch.float32)
    once = loss_and_gradients(loss_of, 2)[1:]
    loss_of(SEQUENCES).backward()
    torch.testing.assert_close([p.grad for p in loss_of.parameters()], [2 * x for x in once])


def test_dropout_is_drawn_in_one_order_whatever_the_threads() -> None:
    loss_of = small_loss(torch.float32, residual_dropout=0.3, attention_dropout=0.3)

    def drawn(threads: int) -> list[Tensor]:
        torch.manual_seed(3)
        return loss_and_gradients(loss_of, threads)

    torch.testing.assert_close(drawn(2), drawn(1), rtol=1e-4, atol=1e-6)


def test_an_error_in_a_part_comes_out() -> None:
    torch.set_num_threads(2)

    def wrong(weights: object, some: Tensor) -> Tensor:
        raise ValueError("in the part")

    with pytest.raises(ValueError, match="in the part"):
        loss_in_parts(wrong, SEQUENCES, {"w": torch.zeros(1, requires_grad=True)}, lambda weights: weights)


def test_threads_of_the_caller_stay() -> None:
    torch.set_num_threads(2)
    small_loss(torch.float32)(SEQUENCES).backward()
    assert torch.get_num_threads() == 2


def test_threads_are_shared_and_given_back() -> None:
    torch.set_num_threads(3)
    inside: list[int] = []

    def work(piece: Tensor) -> Tensor:
        inside.append(torch.get_num_threads())
        return piece * 2

    results = each_in_a_thread(work, torch.arange(7).tensor_split(3))
    assert torch.equal(torch.cat(results), 2 * torch.arange(7))
    assert inside == [1, 1, 1]
    assert torch.get_num_threads() == 3
    with one_share_each():
        assert (torch.get_num_threads(), number_of_threads()) == (1, 3)
        with all_threads():
            assert torch.get_num_threads() == 3
        assert len(each_in_a_thread(work, torch.arange(7).tensor_split(3))) == 3
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), number_of_threads()) == (3, 3)


def test_an_error_in_a_piece_gives_the_threads_back() -> None:
    torch.set_num_threads(2)

    def fails(piece: Tensor) -> Tensor:
        raise ValueError(int(piece[0]))

    with pytest.raises(ValueError, match="0"):
        each_in_a_thread(fails, torch.arange(2).tensor_split(2))
    assert (torch.get_num_threads(), number_of_threads()) == (2, 2)
