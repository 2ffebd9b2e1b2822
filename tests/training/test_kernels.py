"""Hand-written backward passes give the values and gradients of plain operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import kernels
from training.kernels import causal_attention, gated_silu, vocabulary_loss


def rotary(pos: int, d_head: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(pos).double(), 10.0 ** -torch.linspace(0, 2, d_head // 2).double()).repeat(1, 2)
    return angles.cos(), angles.sin()


def plain_attention(qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> Tensor:
    """One head and one query at a time, positions as rotations of pairs."""
    batch, pos, rows, d_head = qkv.shape
    heads, half = rows - 2 * kv_heads, d_head // 2

    def turn(x: Tensor, at: int) -> Tensor:
        a, b, c, s = x[:half], x[half:], cos[at, :half], sin[at, :half]
        return torch.cat([a * c - b * s, b * c + a * s])

    out = []
    for row in qkv:
        for query in range(pos):
            for head in range(heads):
                key = heads + head // (heads // kv_heads)
                q = turn(row[query, head], query)
                scores = torch.stack([q @ turn(row[at, key], at) for at in range(query + 1)]) / d_head**0.5
                out.append(scores.softmax(0) @ row[: query + 1, key + kv_heads])
    return torch.stack(out).view(batch, pos, heads, d_head)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_that_of_the_definition(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 4)  # several blocks, the last not full
    qkv = torch.randn(2, 7, 4 + 2 * kv_heads, 6, dtype=torch.float64)
    torch.testing.assert_close(
        causal_attention(qkv, *rotary(7, 6), kv_heads), plain_attention(qkv, *rotary(7, 6), kv_heads)
    )


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradient_of_attention(kv_heads: int, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 3)
    qkv = torch.randn(2, 7, 2 + 2 * kv_heads, 4, dtype=torch.float64, requires_grad=True)

    def attention(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout each time
        return causal_attention(x, *rotary(7, 4), kv_heads, dropout)

    assert torch.autograd.gradcheck(attention, qkv)


def test_dropout_of_attention_keeps_the_mean() -> None:
    qkv = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    drawn = torch.stack([causal_attention(qkv, *rotary(5, 4), 1, 0.3) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), causal_attention(qkv, *rotary(5, 4), 1), atol=0.08, rtol=0.0)
    assert drawn.std(0).max() > 0.1


def test_gated_silu_and_its_gradient() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(gated_silu(x), F.silu(x[..., :4]) * x[..., 4:])
    assert torch.autograd.gradcheck(gated_silu, x)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_vocabulary_loss_and_its_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_LOSS_BYTES", 4 * 11 * rows)
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    w_u = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(11, (7,))
    torch.testing.assert_close(vocabulary_loss(x, w_u, target), F.cross_entropy(x @ w_u.t(), target))
    assert torch.autograd.gradcheck(lambda a, b: vocabulary_loss(a, b, target) * 3.0, (x, w_u))


def test_the_value_of_the_loss_is_exact_in_bf16() -> None:
    """torch's own loss without logits sums in bf16: 10.25 for 10.84. Here only the logits are rounded."""
    x, w_u, target = torch.randn(600, 16).bfloat16(), torch.randn(5000, 16).bfloat16(), torch.randint(5000, (600,))
    wanted = F.cross_entropy(F.linear(x, w_u).double(), target)
    assert vocabulary_loss(x, w_u, target).item() == pytest.approx(wanted.item(), abs=1e-4)


def test_no_gradient_no_work() -> None:
    x, w_u, target = torch.randn(5, 4), torch.randn(9, 4), torch.randint(9, (5,))
    with torch.no_grad():
        assert not vocabulary_loss(x, w_u, target).requires_grad
