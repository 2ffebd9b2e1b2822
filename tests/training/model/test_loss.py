"""The fast training loss is transformers' own, value and gradients."""

from typing import Any

import pytest
import torch

from copyscope.training.config import RunConfig
from copyscope.training.model.kernels import QUERY_BLOCK
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("d_head", [None, 20])
@pytest.mark.parametrize("length", [9, QUERY_BLOCK, QUERY_BLOCK + 37])
def test_loss_and_gradients_equal_transformers(kv_heads: int, tied: bool, d_head: int | None, length: int) -> None:
    config = RunConfig().with_values(
        {
            "model.n_layers": 2,
            "model.d_model": 32,
            "model.d_mlp": 48,
            "model.n_key_value_heads": kv_heads,
            "model.d_head": d_head,
            "model.n_ctx": 256,
            "model.tied_embeddings": tied,
            "model.init_std": 0.2,
        }
    )
    model = build_model(config, 61)
    batch = torch.randint(61, (3, length + 1), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    slow = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    slow.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fast = NextTokenLoss(model, 256, torch.float32)(batch)
    fast.backward()
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_bf16_is_near() -> None:
    model = build_model(RunConfig(), 300)
    batch = torch.randint(300, (2, 65))
    exact = NextTokenLoss(model, 64, torch.float32)(batch).item()
    assert NextTokenLoss(model, 64, torch.bfloat16)(batch).item() == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("where", ["attention_dropout", "residual_dropout"])
def test_dropout_changes_the_loss_follows_the_seed_and_ends_with_training(where: str) -> None:
    model = build_model(RunConfig().with_values({"model.init_std": 0.3}), 300)
    batch = torch.randint(300, (2, 65))
    loss_of = NextTokenLoss(model, 64, torch.float32, **dict[str, Any]({where: 0.5}))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return loss_of(batch).item()

    assert loss(1) == loss(1) != loss(2)
    loss_of.eval()
    assert loss(1) == loss(2) == NextTokenLoss(model, 64, torch.float32)(batch).item()
