"""What training computes on a GPU, checked without one: the same values and gradients as on the CPU, and every tensor
on the model's device. Fake tensors that say "cuda" refuse to meet others; autograd on "meta" does the backward pass."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import DEVICE, fake_gpu, to_fake_gpu
from torch import Tensor

from copyscope.training.config import RunConfig
from copyscope.training.data.repeats import pair_occurred_earlier
from copyscope.training.model import kernels
from copyscope.training.model.interventions import Intervention, predictable
from copyscope.training.model.kernels import LEFT_OUT, causal_attention, gated_mlp, rms_norm, vocabulary_loss
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.optimizers import build_optimizers, orthogonal, orthogonal_in_bf16
from copyscope.training.trainer import step_optimizers

D_MODEL, D_HEAD, POS = 6, 4, 9


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_() for shape in shapes]


def with_gradients(work: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    result = work(*inputs)
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view_as(result)
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


def attention(kv_heads: int, x: Tensor, w_qkv: Tensor) -> Tensor:
    angles = torch.outer(torch.tensor([1.0, 0.1]).double(), torch.arange(POS).double())
    return causal_attention(x, w_qkv, angles.cos(), angles.sin(), kv_heads)


WORK: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "norm": (lambda x, w: rms_norm(x, w, 0.1), tensors((2, POS, D_MODEL), (D_MODEL,))),
    "mlp": (gated_mlp, tensors((2, POS, D_MODEL), (5, D_MODEL), (5, D_MODEL), (D_MODEL, 5))),
    "attention": (partial(attention, 4), tensors((2, POS, D_MODEL), (12 * D_HEAD, D_MODEL))),
    "grouped": (partial(attention, 2), tensors((2, POS, D_MODEL), (8 * D_HEAD, D_MODEL))),
    "loss": (
        lambda x, w: vocabulary_loss(x, w, torch.arange(POS) % 7),
        tensors((POS, D_MODEL), (7, D_MODEL)),
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_values_and_gradients_are_those_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = with_gradients(*WORK[name])
    monkeypatch.setattr(kernels, "on_cpu", lambda x: False)
    monkeypatch.setattr(kernels, "_GPU_LOGITS", 4 * 7)  # blocks of four rows, the last not full
    for mine, theirs in zip(with_gradients(*WORK[name]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_rows_left_out_count_as_loss_0(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w_u = tensors((POS, D_MODEL), (7, D_MODEL))
    target = torch.arange(POS) % 7
    kept = torch.arange(POS) % 3 > 0
    wanted = with_gradients(lambda x, w: vocabulary_loss(x[kept], w, target[kept]) * kept.double().mean(), [x, w_u])
    monkeypatch.setattr(kernels, "on_cpu", lambda x: False)
    monkeypatch.setattr(kernels, "_GPU_LOGITS", 4 * 7)
    masked = target.masked_fill(~kept, LEFT_OUT)
    for mine, theirs in zip(with_gradients(lambda x, w: vocabulary_loss(x, w, masked), [x, w_u]), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_value_of_the_loss_is_exact_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "on_cpu", lambda x: False)
    x, w_u, target = torch.randn(600, 16).bfloat16(), torch.randn(5000, 16).bfloat16(), torch.randint(5000, (600,))
    wanted = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w_u).double(), target)
    assert vocabulary_loss(x, w_u, target).item() == pytest.approx(wanted.item(), abs=1e-4)
    hopeless = vocabulary_loss(torch.tensor([[1.0]]), torch.tensor([[500.0], [-500.0]]), torch.tensor([1]))
    assert hopeless.item() == 1000.0


@pytest.mark.parametrize("shape", [(3, 40, 24), (2, 24, 40), (2, 32, 32)])
def test_muon_in_bf16_is_near(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    exact, near = orthogonal(matrices), orthogonal_in_bf16(matrices)
    assert near.dtype == torch.float32
    assert (near - exact).norm() < 0.03 * exact.norm()


def test_predictable_tokens_are_those_of_the_definition() -> None:
    sequences = torch.randint(0, 4, (5, 30), generator=torch.Generator().manual_seed(0))
    assert (predictable(sequences).numpy() == pair_occurred_earlier(sequences.numpy())).all()


def tiny(device: str, **optimizer: Any) -> tuple[RunConfig, NextTokenLoss]:
    config = RunConfig().with_values(
        {"model.n_layers": 2, "model.d_model": 16, "model.d_mlp": 24, "model.n_heads": 2}
        | {f"optimizer.{name}": value for name, value in optimizer.items()}
    )
    return config, NextTokenLoss(build_model(config, 300), 32, torch.bfloat16).to(device)


HELD = {mode: Intervention({1: [0]}, mode, mode == "uniform") for mode in ("zero", "previous_token", "uniform")}


@pytest.mark.parametrize("intervention", [None, *HELD.values()], ids=["plain", *HELD])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_on_a_gpu_stays_there(name: str, intervention: Intervention | None) -> None:
    """All but the backward pass, which autograd cannot do for a GPU that is not there."""
    config, loss_of = tiny("cpu", name=name)
    with fake_gpu():
        to_fake_gpu(loss_of)
        loss_of.intervention = intervention
        loss = loss_of(torch.zeros(3, 33, dtype=torch.int64, device=DEVICE))
        parameters = list(loss_of.parameters())
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizers = build_optimizers(config.optimizer, loss_of.model)
        step_optimizers(optimizers, 1e-3)
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    assert len(states) >= 2 * 2
    assert {tensor.device.type for tensor in (loss, norm, *parameters, *states)} == {"cuda"}


@pytest.mark.parametrize("intervention", [None, *HELD.values()], ids=["plain", *HELD])
def test_the_backward_pass_mixes_no_devices(intervention: Intervention | None) -> None:
    _, loss_of = tiny("meta")
    loss_of.intervention = intervention
    loss_of(torch.zeros(3, 33, dtype=torch.int64, device="meta")).backward()
    for parameter in loss_of.parameters():
        assert parameter.grad is not None
        assert (parameter.grad.device.type, parameter.grad.dtype) == ("meta", torch.float32)


def test_the_compiled_loss_is_near() -> None:
    """In a process of its own: what is compiled cannot have the checks of shapes that tests have."""
    child = Path(__file__).parents[2] / "helpers" / "compiled_child.py"
    out = subprocess.run([sys.executable, str(child), "cpu"], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    results = json.loads(out.stdout.splitlines()[-1])
    assert sum(found["graphs"] for found in results) == 2  # a layer, whichever it is, and the loss
    for found in results:
        assert found["loss"] == pytest.approx(found["eager_loss"], abs=2e-3)
        assert found["gradients_apart"] < 0.02
        assert found["validation_loss"] == found["eager_validation_loss"]


def test_only_the_backward_pass_of_attention_is_told_to_be_deterministic() -> None:
    seen = {}

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, where: str, x: Tensor) -> Tensor:
            ctx.where = where
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            seen[ctx.where] = torch.are_deterministic_algorithms_enabled()
            return None, *grads

    def note(where: str, x: Tensor) -> Tensor:
        noted: Any = Note.apply(where, x)
        return noted

    x = note("before", torch.ones(3, requires_grad=True))
    a, b = kernels._set_determinism_in_backward(False, x * 2.0, x * 3.0)
    (y,) = kernels._set_determinism_in_backward(True, note("attention", a * b))
    (note("after", y) + note("beside", x)).sum().backward()
    assert seen == {"before": False, "attention": True, "after": False, "beside": False}
    assert not torch.are_deterministic_algorithms_enabled()
