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
    "first_token_norm_ratio": 0.05,
    "participation_ratio": 0.5,
    "ov_stable_rank": 0.04,
    "ov_effective_rank": 0.05,
    "qk_stable_rank": 0.04,
    "qk_effective_rank": 0.01,
    "retrieval_score": 0.2,
    "ngram_induction": 0.01,
    "induction_logit_attribution": 0.01,
    "copy_suppression": 0.001,
    "copy_suppression_weights": 0.04,
    "function_vector": 0.1,
    "successor_score": 0.05,
    "token_copying": 0.05,
    "concept_copying": 0.03,
}
"""About twice the largest difference of any head from float32 that was measured, which was of SmolLM2-135M (30 layers,
270 heads); the demo's model (4 layers) stays below a tenth of it in measures of attention. In the measure's unit."""


def above_rounding(scores: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The scores, with each p-value 1 where its measure exceeds the null by less than rounding may in this dtype."""
    held = dict(scores)
    for name, p in scores.items():
        measure = name.removesuffix("_p")
        if dtype != torch.float32 and measure != name:
            excess = scores[measure] - scores[f"{measure}_null"]
            held[name] = torch.where(excess > BF16_ERROR[measure], p, torch.ones_like(p))
    return held
