"""The fast training loss is transformers' own, value and gradients."""

import pytest
import torch

from training.config import RunConfig
from training.forward import QUERY_BLOCK, Rotary, next_token_loss
from training.model import build_model


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("length", [9, QUERY_BLOCK, QUERY_BLOCK + 37])
def test_loss_and_gradients_equal_transformers(kv_heads: int, tied: bool, length: int) -> None:
    config = RunConfig().with_values(
        {"model.n_layers": 2, "model.d_model": 32, "model.d_mlp": 48, "model.n_key_value_heads": kv_heads,
         "model.n_ctx": 256, "model.tied_embeddings": tied, "model.init_std": 0.2}
    )  # fmt: skip
    model = build_model(config, 61)
    batch = torch.randint(61, (3, length + 1), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    slow = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
    slow.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fast = next_token_loss(model, batch, Rotary(model, 256, torch.float32))
    fast.backward()
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_bf16_is_near() -> None:
    model = build_model(RunConfig(), 300)
    batch = torch.randint(300, (2, 65))
    exact = next_token_loss(model, batch, Rotary(model, 64, torch.float32)).item()
    assert next_token_loss(model, batch, Rotary(model, 64, torch.bfloat16)).item() == pytest.approx(exact, abs=0.02)


def test_dropout_changes_the_loss_and_follows_the_seed() -> None:
    model = build_model(RunConfig().with_values({"model.init_std": 0.3}), 300)
    batch = torch.randint(300, (2, 65))
    rotary = Rotary(model, 64, torch.float32)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return next_token_loss(model, batch, rotary, dropout=0.5).item()

    assert loss(1) == loss(1) != loss(2)
