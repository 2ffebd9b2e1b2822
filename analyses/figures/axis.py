"""Where a step goes on the page: a log axis with a slot of its own for step 0, shared by every picture of a run."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SLOT = 0.04
"""Width of step 0's slot, as a share of the axis."""
FIRST_HALF = 0.15
"""Half-width of the first and last cell, in decades, at most."""


class StepAxis(NamedTuple):
    """A log10 axis of steps. Positions are numbers on a plain linear axis, so that step 0 can have one too."""

    low: float
    """Left end, in positions."""
    high: float
    zero: tuple[float, float] | None
    """Edges of step 0's slot; None where no step 0 is shown."""

    def positions(self, steps: Int[np.ndarray, " step"]) -> Float[np.ndarray, " step"]:
        """Where the steps go: log10, or the middle of the slot for step 0 (NaN if there is no slot)."""
        steps = np.asarray(steps, dtype=float)
        middle = np.nan if self.zero is None else sum(self.zero) / 2
        return np.where(steps > 0, np.log10(np.maximum(steps, 1e-9)), middle)

    def part(self, first: int, last: int) -> "StepAxis":
        """The axis cut to two steps: to the ends of the cells where one is 0 or the axis ends within its cell."""
        low = self.low if first <= 0 else max(float(np.log10(first)), self.low)
        high = min(float(np.log10(max(last, 1))), self.high)
        return StepAxis(low, self.high if self.high - high < FIRST_HALF else high, self.zero if first <= 0 else None)

    def edges(self, steps: Int[np.ndarray, " step"]) -> Float[np.ndarray, " edge"]:
        """Edges of the cells of ascending positive `steps`, one more than steps: the geometric mean between neighbours,
        and the ends as far out as the next edge is in (0.15 decades at most)."""
        at = np.log10(steps.astype(float))
        between = (at[1:] + at[:-1]) / 2
        first = min(between[0] - at[0], FIRST_HALF) if len(at) > 1 else FIRST_HALF
        last = min(at[-1] - between[-1], FIRST_HALF) if len(at) > 1 else FIRST_HALF
        return np.concatenate([[at[0] - first], between, [at[-1] + last]])

    def ticks(self) -> tuple[list[float], list[str]]:
        """Positions and labels: 0, powers of ten, and 2 and 5 times those where there would be fewer than three."""
        inside = self.low if self.zero is None else self.zero[1]
        exponents = range(int(np.floor(inside)), int(np.ceil(self.high)) + 1)
        for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
            marks = {round(factor * 10.0**exponent, 6) for exponent in exponents for factor in factors}
            steps = sorted(int(mark) for mark in marks if mark >= 1 and mark.is_integer())
            shown = [step for step in steps if inside <= np.log10(step) <= self.high]
            if len(shown) >= 3:
                break
        at, words = [float(np.log10(step)) for step in shown], [step_label(step) for step in shown]
        return ([sum(self.zero) / 2, *at], ["0", *words]) if self.zero else (at, words)

    def minor_ticks(self) -> list[float]:
        """Positions of 2 to 9 times the powers of ten, without labels."""
        inside = self.low if self.zero is None else self.zero[1]
        exponents = range(max(0, int(np.floor(inside))), int(np.ceil(self.high)) + 1)
        at = [float(np.log10(factor * 10.0**exponent)) for exponent in exponents for factor in range(2, 10)]
        return [position for position in at if inside <= position <= self.high]


def step_label(step: int) -> str:
    """A step as it is said: 0, 64, 1k, 12.5k, 143k, 2M. At most three figures beyond 10,000."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if step >= size:
            return f"{step / size:.4g}{letter}" if step < 10 * size else f"{step / size:.3g}{letter}"
    return str(step)


def step_word(step: int) -> str:
    """A step beside a mark: in full up to 10,000, so that it reads as in every table."""
    return f"{step:,}" if step < 10_000 else step_label(step)


def step_axis(steps: Iterable[int]) -> StepAxis:
    """The axis that holds all `steps` (>= 0). Without any positive step it spans 1 to 10."""
    known = np.array(sorted(set(steps)), dtype=np.int64)
    positive = known[known > 0]
    if not len(positive):
        positive = np.array([1, 10], dtype=np.int64)
    bare = StepAxis(0.0, 0.0, None)
    edges = bare.edges(positive)
    low, high = float(edges[0]), float(edges[-1])
    if not len(known) or known[0] > 0:
        return StepAxis(low, high, None)
    width = SLOT * (high - low)
    return StepAxis(low - 1.5 * width, high, (low - 1.5 * width, low - 0.5 * width))
