"""Hand-written backward passes give the values and gradients of plain operations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from copyscope.training.model import kernels
from copyscope.training.model.kernels import causal_attention, gated_mlp, rms_norm, vocabulary_loss

D_MODEL = 5


def rotary(pos: int, d_head: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(10.0 ** -torch.linspace(0, 2, d_head // 2).double(), torch.arange(pos).double())
    return angles.cos(), angles.sin()


def plain_attention(x: Tensor, w_qkv: Tensor, cos: Tensor, sin: Tensor, kv_heads: int) -> Tensor:
    """One head and one query at a time, positions as rotations of pairs."""
    batch, pos, _ = x.shape
    d_head = 2 * len(cos)
    qkv = (x @ w_qkv.t()).view(batch, pos, -1, d_head)
    heads, half = qkv.shape[2] - 2 * kv_heads, d_head // 2

    def turn(y: Tensor, at: int) -> Tensor:
        a, b, c, s = y[:half], y[half:], cos[:, at], sin[:, at]
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


def inputs(heads: int, kv_heads: int, d_head: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 7, D_MODEL, dtype=torch.float64, requires_grad=True)
    return x, torch.randn((heads + 2 * kv_heads) * d_head, D_MODEL, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_that_of_the_definition(kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 4)  # several blocks, the last not full
    x, w = inputs(4, kv_heads, 6)
    wanted = plain_attention(x, w, *rotary(7, 6), kv_heads)
    torch.testing.assert_close(causal_attention(x, w, *rotary(7, 6), kv_heads), wanted)


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradient_of_attention(kv_heads: int, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 3)

    def attention(x: Tensor, w: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout each time
        return causal_attention(x, w, *rotary(7, 4), kv_heads, dropout)

    assert torch.autograd.gradcheck(attention, inputs(2, kv_heads, 4))


def test_dropout_of_attention_keeps_the_mean() -> None:
    x, w = inputs(1, 1, 4)
    drawn = torch.stack([causal_attention(x, w, *rotary(7, 4), 1, 0.3).detach() for _ in range(4000)])
    bound = 6 * drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - causal_attention(x, w, *rotary(7, 4), 1)).abs() <= bound + 1e-9).all()
    assert drawn.std(0).max() > 0.1


def test_rms_norm_and_its_gradient() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_norm(x, weight, 0.1), F.rms_norm(x, (8,), weight, 0.1))
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 0.1), (x, weight))


def test_gated_mlp_and_its_gradient() -> None:
    shapes = ((3, 2, D_MODEL), (4, D_MODEL), (4, D_MODEL), (D_MODEL, 4))
    x, gate, up, down = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    wanted = (F.silu(x @ gate.t()) * (x @ up.t())) @ down.t()
    torch.testing.assert_close(gated_mlp(x, gate, up, down), wanted)
    assert torch.autograd.gradcheck(gated_mlp, (x, gate, up, down))


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("logit_bytes", [0, 1 << 20])
def test_vocabulary_loss_and_its_gradient(rows: int, logit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_ROWS_AT_ONCE", rows)
    monkeypatch.setattr(kernels, "_LOGIT_BYTES", logit_bytes)
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


def test_the_loss_is_finite_for_a_hopeless_target() -> None:
    x, w_u = torch.tensor([[1.0]]), torch.tensor([[500.0], [-500.0]])
    assert vocabulary_loss(x, w_u, torch.tensor([1])).item() == 1000.0


def test_no_gradient_no_work() -> None:
    x, w_u, target = torch.randn(5, 4), torch.randn(9, 4), torch.randint(9, (5,))
    with torch.no_grad():
        assert not vocabulary_loss(x, w_u, target).requires_grad
