"""A measure of every head with what calibrates it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from copyscope.interp.measures.pattern_scores import above_null


class HeadScore(NamedTuple):
    """A measure of every head, on the CPU, in the measure's own unit."""

    value: Float[Tensor, "layer head"]
    se: Float[Tensor, "layer head"]
    """Standard error over prompts (or contexts, or tokens: what is drawn independently)."""
    null: Float[Tensor, "layer head"]
    """The same with a random target."""
    p: Float[Tensor, "layer head"]
    """One-sided p-value that the value exceeds the null: paired t-test over prompts, Holm-corrected over the heads."""

    @classmethod
    def of(cls, value: Float[Tensor, "prompt layer head"], null: Float[Tensor, "prompt layer head"]) -> "HeadScore":
        """From what each prompt gives, 2 or more of them; with one, standard error and p are NaN."""
        value, null = value.double().cpu(), null.double().cpu()
        several = len(value) > 1
        unknown = torch.full_like(value[0], float("nan"))
        return cls(
            value=value.mean(dim=0),
            se=value.std(dim=0) / len(value) ** 0.5 if several else unknown,
            null=null.mean(dim=0),
            p=above_null(value - null) if several else unknown,
        )

    def named(self, name: str) -> dict[str, Float[Tensor, "layer head"]]:
        """By the names of `names_of(name)`."""
        return dict(zip(names_of(name), (self.value, self.se, self.null, self.p), strict=True))


def names_of(name: str) -> tuple[str, ...]:
    """What a measure and its calibration are called in tables of scores."""
    return name, f"{name}_se", f"{name}_null", f"{name}_p"
