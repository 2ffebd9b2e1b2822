"""Operations a token, peaks by a card's name, and their ratio."""

import pytest
import torch

from copyscope.training.config import RunConfig
from copyscope.training.model.llama import build_model
from copyscope.training.speed import PEAKS, flops_per_token, mfu, peak_flops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_card_is_known_by_its_name(name: str, tflops: float) -> None:
    assert peak_flops(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["Tesla V100-SXM2-16GB", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A1000"],
)
def test_no_peak_is_made_up(name: str) -> None:
    assert peak_flops(name) is None


def test_no_card_is_listed_twice() -> None:
    assert len({card.name for card in PEAKS}) == len(PEAKS)


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_operations_are_those_of_every_product(kv_heads: int | None) -> None:
    """Counted by PyTorch as transformers' own model multiplies, forward and backward, with attention in full."""
    from torch.utils.flop_counter import FlopCounterMode

    values = {"model.n_layers": 2, "model.d_model": 32, "model.d_mlp": 48, "model.n_ctx": 16}
    config = RunConfig().with_values({**values, "model.n_key_value_heads": kv_heads})
    model = build_model(config, 300)
    model.config._attn_implementation = "eager"
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    # The positions' angles are products to PyTorch too, a thousandth of the whole.
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(flops_per_token(config.model, 300), rel=2e-3)


def test_the_paper_model() -> None:
    operations = flops_per_token(RunConfig.load("paper").model, 32_000)
    assert operations == 6 * 137_822_208 + 12 * 12 * 768 * 1024
    assert mfu(400_000.0, operations, 989.5e12) == pytest.approx(0.380, abs=0.001)
