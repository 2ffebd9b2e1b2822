"""How far a measure in bfloat16 may be from float32, and what then counts as above a null."""

from collections.abc import Mapping

import torch
from torch import Tensor

BF16_ERROR: Mapping[str, float] = {
    "induction_attention": 0.02,
    "prefix_matching_sum": 0.02,
    "prefix_matching_mean": 0.01,
    "previous_token": 0.02,
    "best_offset_attention": 0.02,
    "duplicate_token": 0.02,
    "anti_induction": 0.002,
    "bos_sink": 0.15,
    "attention_entropy": 0.3,
    "eigenvalue_positivity_raw": 0.01,
    "eigenvalue_positivity_folded": 0.01,
    "induction_score": 0.02,
    "copying_score": 0.02,
}
"""About twice the largest difference of any head from float32 that was measured, which was of SmolLM2-135M (30 layers,
270 heads); the demo's model (4 layers) stays below a tenth of it. In the measure's unit."""


def above_rounding(p: Tensor, name: str, score: Tensor, null: Tensor, dtype: torch.dtype) -> Tensor:
    """The p-values of a measure; 1 where the score exceeds its null by less than rounding may in this dtype."""
    if dtype == torch.float32:
        return p
    return torch.where(score - null > BF16_ERROR[name], p, torch.ones_like(p))
