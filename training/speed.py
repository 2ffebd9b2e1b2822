"""How fast training is: operations a token, and the share of a GPU's peak that they come to (MFU)."""

import re
from typing import NamedTuple

from copyscope.training.config import ModelConfig


class _Card(NamedTuple):
    name: str
    """A regular expression for the device's name, as PyTorch gives it."""
    tflops: float
    """Dense bf16 products summed in fp32, in 10^12 operations a second."""


PEAKS = (
    _Card(r"B200", 2250.0),  # HGX B200 data sheet: 36 PFLOPS for 8 with sparsity
    _Card(r"H200 NVL", 835.5),  # H200 data sheet: 1,671 with sparsity
    _Card(r"G?H200", 989.5),  # H200 and GH200 data sheets: 1,979 with sparsity
    _Card(r"H100 PCIe", 756.5),  # H100 data sheet: 1,513 with sparsity
    _Card(r"H100 NVL", 835.5),  # H100 data sheet: 1,671 with sparsity
    _Card(r"H100", 989.5),  # H100 data sheet, SXM: 1,979 with sparsity
    _Card(r"A100", 312.0),  # A100 data sheet, SXM and PCIe
    _Card(r"A10", 125.0),  # A10 data sheet
    _Card(r"L4", 121.0),  # L4 data sheet: 242 with sparsity
    _Card(r"L40S", 362.0),  # L40S data sheet
    _Card(r"L40", 181.0),  # L40 data sheet
    _Card(r"RTX 6000 Ada Generation", 364.2),  # NVIDIA Ada architecture white paper, appendix A
    _Card(r"RTX A6000", 154.8),  # NVIDIA Ampere GA102 architecture white paper, appendix
    _Card(r"GeForce RTX 5090", 209.5),  # NVIDIA RTX Blackwell architecture white paper, appendix A
    _Card(r"GeForce RTX 4090", 165.2),  # NVIDIA Ada architecture white paper, appendix A
    _Card(r"GeForce RTX 3090", 71.0),  # NVIDIA Ampere GA102 architecture white paper, table 2
)
"""Peaks by NVIDIA's own figures; half of those given with sparsity."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device by the name that PyTorch gives it; None if it is not in `PEAKS`.

    A slice of a GPU (MIG) and a laptop's have other peaks, so they are not.
    """
    for card in PEAKS:
        if re.fullmatch(rf"(NVIDIA )?{card.name}([ -](SXM\d|PCIe|PCIE|HBM\d\w?|\d+GB))*", device_name):
            return card.tflops * 1e12
    return None


def flops_per_token(model: ModelConfig, vocab_size: int) -> float:
    """Operations of forward and backward pass a token: 6·N + 12·layers·heads·d_head·n_ctx (PaLM, appendix B).

    N counts the weights that are multiplied: all but the norms and the embedding, which is looked up. Attention counts
    in full, though causal attention needs half of it. What is computed twice counts once.
    """
    attention = model.d_model * model.head_width * 2 * (model.n_heads + (model.n_key_value_heads or model.n_heads))
    weights = model.n_layers * (attention + 3 * model.d_model * model.d_mlp) + model.d_model * vocab_size
    return 6.0 * weights + 12.0 * model.n_layers * model.n_heads * model.head_width * model.n_ctx


def mfu(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Model FLOPs utilisation (PaLM, appendix B): the share of the peak that the model's own operations come to; in
    [0, 1]. `tokens_per_second` over all devices goes with the peak of all of them."""
    return tokens_per_second * flops_per_token / peak_flops
