"""Training on a real GPU: near the CPU, exact when resumed, and without a wait for the device within an update."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import metrics, small_config, weights, write_corpus

from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries
from copyscope.training.checkpoints.verify import verify
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import batch
from copyscope.training.data.prefetch import batches_on
from copyscope.training.environment import environments
from copyscope.training.model.interventions import Intervention
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.optimizers import build_optimizers
from copyscope.training.trainer import step_optimizers, train

pytestmark = pytest.mark.gpu
N_CTX, VOCABULARY = 256, 500
SIZES = {"model.n_layers": 3, "model.d_model": 128, "model.d_mlp": 256, "model.n_heads": 2, "model.n_ctx": N_CTX}


def model_and_batch(**values: Any) -> tuple[Any, torch.Tensor]:
    model = build_model(RunConfig().with_values({**SIZES, "model.init_std": 0.1, **values}), VOCABULARY)
    return model, torch.randint(0, VOCABULARY, (6, N_CTX + 1), generator=torch.Generator().manual_seed(0))


def loss_and_gradient(
    model: Any, tokens: torch.Tensor, dtype: torch.dtype, intervention: Intervention | None = None
) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss_of = NextTokenLoss(model, N_CTX, dtype).to(tokens.device)
    loss_of.intervention = intervention
    loss = loss_of(tokens)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).cpu()


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("mode", [None, "zero", "previous_token", "uniform"])
def test_loss_and_gradients_are_near_those_of_the_cpu(mode: Any, kv_heads: int) -> None:
    """fp32: loss to 1e-4 nats, gradient to 0.1 %. bf16: 0.02 nats, 5 %."""
    model, tokens = model_and_batch(**{"model.n_key_value_heads": kv_heads})
    intervention = mode and Intervention({1: [0]}, mode, mode == "uniform")
    wanted, exact = loss_and_gradient(model, tokens, torch.float32, intervention)
    model.cuda()
    for dtype, loss_bound, bound in ((torch.float32, 1e-4, 1e-3), (torch.bfloat16, 0.02, 0.05)):
        loss, gradient = loss_and_gradient(model, tokens.cuda(), dtype, intervention)
        assert loss == pytest.approx(wanted, abs=loss_bound), dtype
        assert (gradient - exact).norm() < bound * exact.norm(), dtype


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_updates_are_near_those_of_the_cpu(name: str) -> None:
    """AdamW in fp32: to 0.1 % of the update. Muon, whose products are in bf16: 3 %."""
    config = RunConfig().with_values({**SIZES, "optimizer.name": name, "optimizer.weight_decay": 0.1})
    moved = []
    for device in ("cpu", "cuda"):
        model: Any = build_model(config, VOCABULARY)
        model.to(device)
        optimizers = build_optimizers(config.optimizer, model)
        before = {name: p.detach().cpu().clone() for name, p in model.named_parameters()}
        for update in range(3):
            draw = torch.Generator().manual_seed(update)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draw).to(device)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            step_optimizers(optimizers, 1e-3)
        moved.append({name: p.detach().cpu() - before[name] for name, p in model.named_parameters()})
    for parameter, wanted in moved[0].items():
        by_muon = name == "muon" and "proj" in parameter
        bound = (0.03 if by_muon else 1e-3) * wanted.norm()
        assert (moved[1][parameter] - wanted).norm() < bound, parameter


@pytest.mark.parametrize("mode", [None, "zero", "previous_token", "uniform"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_does_not_wait_for_the_gpu(name: str, mode: Any) -> None:
    """PyTorch raises where the CPU would wait."""
    model, tokens = model_and_batch(**{"optimizer.name": name})
    model.cuda()
    loss_of = NextTokenLoss(model, N_CTX, torch.bfloat16).cuda()
    config = RunConfig().with_values({"optimizer.name": name})
    optimizers = build_optimizers(config.optimizer, model)
    with batches_on(torch.device("cuda"), lambda step: tokens, range(4)) as batches:
        for step, here in enumerate(batches):
            if step == 2:
                torch.cuda.set_sync_debug_mode("error")
            try:
                loss_of.intervention = mode and Intervention({1: [0, 1]}, mode, True)
                loss_of(here).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                step_optimizers(optimizers, 1e-3)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss_of(tokens.cuda()))


def gpu_config(folder: Path, **values: Any) -> RunConfig:
    corpus = write_corpus(folder / "corpus.jsonl", n=300)
    sizes = {"model.d_model": 128, "model.n_heads": 2, "model.n_ctx": 128, "train.batch_size": 8}
    return small_config(corpus, {**sizes, "train.precision": "bf16", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.name": "adamw", "model.attention_dropout": 0.1, "model.residual_dropout": 0.1},
        {"optimizer.name": "muon", "train.gradient_accumulation": 2},
        {"optimizer.name": "muon", "train.precision": "fp32", "model.n_key_value_heads": 1},
        {"data.repeat_choice": 3, "intervention.skip_predictable": True, "intervention.until_step": 9},
    ],
    ids=["dropout", "muon", "fp32", "windows chosen, tokens left out"],
)
def test_a_run_that_broke_off_ends_bit_identical(tmp_path: Path, values: dict[str, Any]) -> None:
    config = gpu_config(tmp_path, **values)
    whole = train(config, tmp_path / "whole")

    def break_off(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 12:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path / "run", break_off)
    train(config, tmp_path / "run")
    for step in (0, 1, 2, 4, 8, 12, 16, 20):
        assert weights(tmp_path / "run", step) == weights(whole, step), step
    assert verify(CheckpointSeries.open(whole)) == []
    noted = environments(whole)[0]
    assert (noted["device"], noted["compiled"]) == (torch.cuda.get_device_name(), False)


def test_one_run_is_the_same_twice_at_the_size_of_real_attention(tmp_path: Path) -> None:
    """Long enough that attention's backward pass would add up in another order each time if it were left to."""
    values = {"model.n_ctx": 1024, "model.d_model": 256, "model.n_heads": 4, "train.batch_size": 4, "train.steps": 8}
    config = gpu_config(tmp_path, **values, **{"optimizer.schedule": "constant"})
    first, second = (train(config, tmp_path / name) for name in ("first", "second"))
    assert weights(first, 8) == weights(second, 8)


def test_divergence_stops_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    from copyscope.training.errors import InputError

    config = gpu_config(tmp_path, **{"optimizer.lr": 1e30, "optimizer.warmup_steps": 0, "train.precision": "fp32"})
    with pytest.raises(InputError, match="diverged at step"):
        train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "diverged.json").read_text())["step"] >= 1
    assert not list((tmp_path / "run").glob("resume/step*"))


def test_batches_are_those_of_the_cpu(tmp_path: Path) -> None:
    tokens = torch.randint(0, 300, (20_000,), generator=torch.Generator().manual_seed(0)).numpy()

    def read(step: int) -> torch.Tensor:
        return batch(tokens, 64, 4, 0, step, repeat_choice=2)

    with batches_on(torch.device("cuda"), read, range(20)) as batches:
        for step, here in enumerate(batches):
            assert here.is_cuda
            assert torch.equal(here.cpu(), read(step))


def test_the_compiled_loss_is_near() -> None:
    """In a process of its own: what is compiled cannot have the checks of shapes that tests have."""
    child = Path(__file__).parents[1] / "helpers" / "compiled_child.py"
    out = subprocess.run([sys.executable, str(child), "cuda"], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    results = json.loads(out.stdout.splitlines()[-1])
    assert sum(found["graphs"] for found in results) == 2  # a layer, whichever it is, and the loss
    for found in results:
        assert found["loss"] == pytest.approx(found["eager_loss"], abs=0.02)
        assert found["gradients_apart"] < 0.03
        assert found["validation_loss"] == found["eager_validation_loss"]


def test_a_compiled_run_trains_and_says_so(tmp_path: Path) -> None:
    eager, compiled = (gpu_config(tmp_path, **{"train.compile": compile}) for compile in (False, True))
    train(eager, tmp_path / "eager")
    (tmp_path / "config.toml").write_text(compiled.to_toml())
    command = [sys.executable, "-m", "copyscope", "train", "config.toml", "--out", "compiled", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert environments(tmp_path / "compiled")[0]["compiled"] is True
    losses = [
        [line["validation_loss"] for line in metrics(tmp_path / name) if "validation_loss" in line]
        for name in ("eager", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)
