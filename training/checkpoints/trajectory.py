"""Which checkpoints of a series lie off its way, judged by distances between weights alone.

Training moves weights by many small steps, so two checkpoints farther apart in steps are farther apart in weights:
d(a, c) is the longest side of the triangle of any a < b < c, and the angle at b at least 60 degrees. (A straight line
has 180, a random walk 90, noise about a fixed point 60.) Weights under a wrong label, or of another run, break this.
Only ratios of distances are used, so that neither scale, size nor spacing matter.

What cannot be seen: a wrong checkpoint as near to both neighbours as the right one; two in a row of one wrong run show
as two leaps, at their borders. A learning rate that falls or rises suddenly can look like a wrong label.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

TURN = 0.55
"""Largest cosine of the angle at a checkpoint between the ways to the one before and to the one after. 0.5 is that of
noise about a fixed point. Seven runs of up to 10,000 updates of 1.3 M weights (a constant rate, or falling at the end;
checkpoints at 1, 2, 4, … and evenly) came to 0.26 at most."""
MARGIN = 0.05
EXCHANGE = 1.05
"""A way over four checkpoints that is longer than this ratio to the way with the middle two exchanged: they are."""
LEAP, FIRST_LEAP = 2.5, 5.0
"""Largest ratio of a distance to those beside it, beyond what the numbers of steps explain. From about the start it may
be larger: the first updates move weights most."""
UNLIKE, ALIKE = 0.3, 0.8
"""Cosines of weights: neighbours below the one, beside neighbours above the other, are of different runs, unless they
reach back to about the start."""
NEARER = 0.65
"""An end that is nearer than this ratio to a checkpoint farther in, than to its neighbour, belongs there. A fall from
noise about a fixed point to that point gives 0.71."""


class Jump(NamedTuple):
    """A checkpoint, by its place in the series, and what is wrong with it."""

    place: int
    what: str


def find_jumps(steps: Sequence[int], norms: Sequence[float], distance: Callable[[int, int], float]) -> list[Jump]:
    """The checkpoints that lie off the way of a series, in order.

    Args:
        steps: of the checkpoints, increasing.
        norms: Euclidean norm of each checkpoint's weights.
        distance: Euclidean distance between the weights of two checkpoints, by place. Asked for neighbours and those
            next to them, and for few others.
    """
    chain, jumps = list(range(len(steps))), []
    series = _Series(steps, norms, distance)
    while True:
        wrong = series.turns(chain)
        if not wrong:
            break
        best = series.best_change(chain, max(wrong, key=lambda i: wrong[i]))
        if best.exchanged:
            first, second = best.exchanged
            jumps.append(Jump(second, f"lies before step {steps[first]}: the two are exchanged, or mislabelled"))
            jumps.append(Jump(first, f"lies after step {steps[second]}: the two are exchanged, or mislabelled"))
        else:
            before, after = _around(chain, best.removed)
            jumps.append(
                Jump(best.removed, f"lies off the way from step {steps[before]} to step {steps[after]}: wrong weights")
            )
        chain = best.chain
    for end in (0, -1):
        nearest = series.belongs(chain, end)
        if nearest is not None:
            place = chain.pop(end)
            neighbour = steps[chain[end]]
            jumps.append(Jump(place, f"is nearer to step {steps[nearest]} than to step {neighbour}: wrong weights"))
    jumps += series.leaps(chain)
    return sorted(jumps)


def _around(chain: Sequence[int], place: int) -> tuple[int, int]:
    at = chain.index(place)
    return chain[max(0, at - 1)], chain[min(len(chain) - 1, at + 1)]


class _Change(NamedTuple):
    left: int
    """Checkpoints still off the way nearby."""
    is_removal: bool
    length: float
    chain: list[int]
    removed: int
    exchanged: tuple[int, int] | None


class _Series:
    def __init__(self, steps: Sequence[int], norms: Sequence[float], distance: Callable[[int, int], float]):
        self.steps, self.norms, self.distance = steps, norms, distance

    def cosine(self, chain: Sequence[int], i: int) -> float:
        """Of the angle at place i of the chain."""
        a, b, c = chain[i - 1 : i + 2]
        first, second, across = self.distance(a, b), self.distance(b, c), self.distance(a, c)
        product = 2 * first * second
        return (first**2 + second**2 - across**2) / product if product else -1.0

    def turn(self, chain: Sequence[int], i: int) -> float:
        """By how much the chain turns back too far at place i; 0 if it does not."""
        if not 0 < i < len(chain) - 1:
            return 0.0
        excess = max(0.0, self.cosine(chain, i) - self._most(chain, i))
        if i < len(chain) - 2:
            excess = max(excess, self._shorter_exchanged(chain, i) - EXCHANGE)
        return excess

    def _shorter_exchanged(self, chain: Sequence[int], i: int) -> float:
        """Ratio of the way around places i and i + 1 to the same with the two exchanged."""
        before, a, b, after = chain[max(0, i - 1) : i], chain[i], chain[i + 1], chain[i + 2 : i + 3]
        ways = [sum(self.distance(*leg) for leg in pairwise([*before, *pair, *after])) for pair in ((a, b), (b, a))]
        return ways[0] / max(1e-300, ways[1])

    def turns(self, chain: Sequence[int]) -> dict[int, float]:
        """Places of the chain where it turns back, and by how much too far."""
        return {i: excess for i in range(len(chain)) if (excess := self.turn(chain, i))}

    def _most(self, chain: Sequence[int], i: int) -> float:
        """The largest cosine that training gives at place i. Where weights wander about a point, with cosine c from
        checkpoint to checkpoint, a sudden fall to that point (the learning rate drops) has cosine √c."""
        near = [j for j in range(max(1, i - 4), min(len(chain) - 1, i + 5)) if abs(j - i) > 1]
        near = [j for j in near if 2 * self._spacing(chain, j) >= self._spacing(chain, i)]  # else it says too little
        usual = sorted(self.cosine(chain, j) for j in near)
        middle = usual[len(usual) // 2] if len(usual) > 2 else 0.5  # too few to know: as much as it can be
        return max(TURN, math.sqrt(min(max(middle, 0.0), 0.5)) + MARGIN)

    def _spacing(self, chain: Sequence[int], i: int) -> int:
        before, here, after = (self.steps[chain[j]] for j in (i - 1, i, i + 1))
        return max(abs(here - before), abs(after - here))

    def best_change(self, chain: list[int], i: int) -> _Change:
        """The removal of one checkpoint, or exchange of two neighbours, that best mends the turn at place i."""
        changes = []
        for j in (i - 1, i, i + 1):
            if len(chain) > 2:
                changes.append(self._change(chain[:j] + chain[j + 1 :], i, chain[j], None))
        for j in (i - 1, i, i + 1):
            if 0 <= j < len(chain) - 1 and self._shorter_exchanged(chain, j) > EXCHANGE:
                exchanged = (chain[j], chain[j + 1])
                changes.append(self._change([*chain[:j], *reversed(exchanged), *chain[j + 2 :]], i, -1, exchanged))
        return min(changes)

    def _change(self, chain: list[int], i: int, removed: int, exchanged: tuple[int, int] | None) -> _Change:
        near = range(max(0, i - 4), min(len(chain), i + 5))
        left = sum(self.turn(chain, j) > 0 for j in near) + sum(self.leap(chain, j) > 0 for j in near)
        length = sum(self.distance(chain[j], chain[j + 1]) for j in near if j + 1 < len(chain))
        return _Change(left, exchanged is None, length, chain, removed, exchanged)

    def belongs(self, chain: Sequence[int], end: int) -> int | None:
        """Which checkpoint the first or last is much nearer to than to its neighbour; looks 2, 4, 8, … places in."""
        order = chain if end == 0 else chain[::-1]
        if len(order) < 3:
            return None
        lags = [2**k for k in range(1, len(order).bit_length()) if 2**k < len(order)]
        near = min((order[lag] for lag in lags), key=lambda place: self.distance(order[0], place))
        return near if self.distance(order[0], near) < NEARER * self.distance(order[0], order[1]) else None

    def leap(self, chain: Sequence[int], i: int) -> float:
        """How many times as long as those beside it the way from place i to the next is; 0 if that is no leap."""
        if not 0 <= i < len(chain) - 1:
            return 0.0
        leg = (chain[i], chain[i + 1])
        two = {0: (1, 2), len(chain) - 2: (i - 1, i - 2)}.get(i, (i - 1, i + 1))
        beside = [(chain[j], chain[j + 1]) for j in two if 0 <= j < len(chain) - 1]
        first, second = self.steps[leg[0]], self.steps[leg[1]]
        from_start = i == 0 and first < second - first
        if len(beside) < 2 or not all(self._is_leap(leg, other, from_start) for other in beside):
            return 0.0
        return self.distance(*leg) / max(1e-300, *(self.distance(*other) for other in beside))

    def leaps(self, chain: Sequence[int]) -> list[Jump]:
        found = []
        for i, (a, b) in enumerate(pairwise(chain)):
            if times := self.leap(chain, i):
                place, other = (a, b) if i == 0 else (b, a)
                which = "its weights" if i in (0, len(chain) - 2) else "its weights, and maybe those that follow,"
                far = f"{times:.1f} times as far from step {self.steps[other]} as the next is from there"
                found.append(Jump(place, f"{far}: {which} are another run's"))
        return found

    def _is_leap(self, leg: tuple[int, int], other: tuple[int, int], from_start: bool) -> bool:
        length, beside = self.distance(*leg), self.distance(*other)
        (a, b), (c, d) = ((self.steps[i], self.steps[j]) for i, j in (leg, other))
        longer = max(1.0, (b - a) / max(1, d - c))
        # A straight way while the learning rate warms up from step 0 has lengths as the differences of squared steps.
        warmer = max(1.0, (b + a) / max(1, d + c))
        if length > (FIRST_LEAP if from_start else LEAP) * longer * warmer * beside:
            return True
        return self._alike(leg) < UNLIKE and self._alike(other) > ALIKE and longer <= 4 and not from_start

    def _alike(self, leg: tuple[int, int]) -> float:
        x, y = self.norms[leg[0]], self.norms[leg[1]]
        return (x * x + y * y - self.distance(*leg) ** 2) / (2 * x * y) if x * y else 1.0
