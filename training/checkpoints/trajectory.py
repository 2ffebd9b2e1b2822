"""Which checkpoints of a series hold weights that do not belong there, by distances between weights alone.

Training moves weights by many small steps, so two checkpoints farther apart in steps are farther apart in weights, and
the path through all of them in their order is short. Three things break this:

- a checkpoint of another run, or of a far step: the path over it is a detour, much longer than the path past it;
- two neighbours that changed places: the path is shorter with the two exchanged;
- a wrong end, or another run from some step on: one step of the path is far too long, or an end is nearer to a
  checkpoint farther in than to its neighbour.

Only ratios of distances count, so neither the scale nor the number of the weights matters. How often a wrong checkpoint
is missed, and how often a right one is reported, is measured in docs/cannot-tell.md. Two neighbours that both hold
weights of other runs, each of another run, are missed: all of them are equally far apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MAX_DETOUR = 2.7
"""Largest ratio of the path over a checkpoint to the path past it: 1 on a straight line, 1.41 on a random walk, 2 for
noise about a fixed point, 2.41 where such noise falls to the point. Seven training runs of up to 10,000 updates came to
1.65 at most."""
MAX_EXCHANGE = 1.05
"""Largest ratio of the path over two neighbours to the same with the two exchanged. Noise about a fixed point gives 1,
all else less."""
MAX_STEP, MAX_FIRST_STEP = 2.5, 5.0
"""Largest ratio of a distance to those next to it, beyond what the numbers of updates explain. From step 0 or so it may
be larger: the first updates move weights most."""
MIN_END = 0.65
"""Least ratio of the distance from an end to a checkpoint farther in, to that from the end to its neighbour. A fall
from noise about a fixed point to that point gives 0.71."""

_EXCHANGED = "the two are exchanged, or mislabelled"
Distance = Callable[[int, int], float]
Order = list[int]


@dataclass(frozen=True, order=True)
class Misplaced:
    """A checkpoint, by its place in the series, and what is wrong with it."""

    place: int
    what: str


def find_misplaced(steps: Sequence[int], distance: Distance) -> list[Misplaced]:
    """The checkpoints whose weights do not belong where they are, in order.

    Args:
        steps: of the checkpoints, increasing.
        distance: Euclidean distance between the weights of two checkpoints, by place. Asked for neighbours and those
            next to them, and for few others.
    """
    order, misplaced = _without_detours(steps, distance)
    for end in (0, -1):
        nearest = _nearer_than_neighbour(order if end == 0 else order[::-1], distance)
        if nearest is not None:
            place = order.pop(end)
            what = f"is nearer to step {steps[nearest]} than to step {steps[order[end]]}: wrong weights"
            misplaced.append(Misplaced(place, what))
    return sorted(misplaced + _long_steps(order, steps, distance))


def _without_detours(steps: Sequence[int], distance: Distance) -> tuple[Order, list[Misplaced]]:
    """The order without detours: checkpoints taken out, and neighbours exchanged, one change at a time."""
    order, misplaced = list(range(len(steps))), []
    while turns := {i: turn for i in range(len(order)) if (turn := _turn(order, i, distance)) > 1}:
        i = max(turns, key=lambda i: turns[i])
        near = order[max(0, i - 4) : i + 5]
        best = min(
            _changes(near, order[max(0, i - 1) : i + 3], distance),
            key=lambda new: (_faults(new, steps, distance), -len(new), _length(new, distance)),
        )
        order[max(0, i - 4) : i + 5] = best
        if len(best) == len(near):
            first, second = (a for a, b in zip(near, best, strict=True) if a != b)
            misplaced.append(Misplaced(first, f"lies after step {steps[second]}: {_EXCHANGED}"))
            misplaced.append(Misplaced(second, f"lies before step {steps[first]}: {_EXCHANGED}"))
        else:
            at = near.index(*(set(near) - set(best)))
            before, after = near[max(0, at - 1)], near[min(len(near) - 1, at + 1)]
            path = f"from step {steps[before]} to step {steps[after]}"
            misplaced.append(Misplaced(near[at], f"lies off the path {path}: wrong weights"))
    return order, misplaced


def _changes(order: Order, concerned: Order, distance: Distance) -> list[Order]:
    """The order with two of those concerned exchanged, where that makes the path shorter, or without one of them."""
    exchanged = [[{a: b, b: a}.get(place, place) for place in order] for a, b in pairwise(concerned)]
    length = _length(order, distance)
    shorter = [new for new in exchanged if _length(new, distance) < length]
    return shorter + [[place for place in order if place != a] for a in concerned]


def _faults(order: Order, steps: Sequence[int], distance: Distance) -> int:
    turns = sum(_turn(order, i, distance) > 1 for i in range(len(order)))
    return turns + sum(_times_too_long(order, i, steps, distance) > 1 for i in range(len(order) - 1))


def _turn(order: Order, i: int, distance: Distance) -> float:
    """How many times longer than allowed the path is at place i: as a detour, or against i and i + 1 exchanged."""
    if not 0 < i < len(order) - 1:
        return 0.0
    before, here, after = order[i - 1 : i + 2]
    over = distance(before, here) + distance(here, after)
    turn = over / max(1e-300, MAX_DETOUR * distance(before, after))
    if i < len(order) - 2:
        exchange = [order[i - 1], order[i + 1], order[i], order[i + 2]]
        turn = max(
            turn, _length(order[i - 1 : i + 3], distance) / max(1e-300, MAX_EXCHANGE * _length(exchange, distance))
        )
    return turn


def _length(path: Order, distance: Distance) -> float:
    return float(sum(distance(a, b) for a, b in pairwise(path)))


def _nearer_than_neighbour(order: Order, distance: Distance) -> int | None:
    """The checkpoint that the first is much nearer to than to its neighbour; looks 2, 4, 8, … places on, and at the
    last."""
    if len(order) < 3:
        return None
    farther = [order[2**k] for k in range(1, len(order).bit_length()) if 2**k < len(order)] + [order[-1]]
    nearest = min(farther, key=lambda place: distance(order[0], place))
    return nearest if distance(order[0], nearest) < MIN_END * distance(order[0], order[1]) else None


def _times_too_long(order: Order, i: int, steps: Sequence[int], distance: Distance) -> float:
    """How many times longer than allowed the step from place i to the next is, by the two nearest steps; 0 where there
    are not two."""
    if len(order) < 4:
        return 0.0
    last = len(order) - 2
    beside = {0: (1, 2), last: (last - 1, last - 2)}.get(i, (i - 1, i + 1))
    here, there = steps[order[i]], steps[order[i + 1]]
    usual = MAX_FIRST_STEP if i == 0 and here < there - here else MAX_STEP
    ratios = []
    for j in beside:
        a, b = steps[order[j]], steps[order[j + 1]]
        longer = max(1.0, (there - here) / max(1, b - a))
        # A straight path while the learning rate rises from 0 has lengths as the differences of squared steps.
        warmer = max(1.0, (there + here) / max(1, b + a))
        allowed = usual * longer * warmer * distance(order[j], order[j + 1])
        ratios.append(distance(order[i], order[i + 1]) / max(1e-300, allowed))
    return min(ratios)


def _long_steps(order: Order, steps: Sequence[int], distance: Distance) -> list[Misplaced]:
    misplaced = []
    for i, (a, b) in enumerate(pairwise(order)):
        if _times_too_long(order, i, steps, distance) > 1:
            place, neighbour = (a, b) if i == 0 else (b, a)
            which = "its weights" if i in (0, len(order) - 2) else "its weights, and maybe those that follow,"
            what = f"is too far from step {steps[neighbour]}: {which} are another run's"
            misplaced.append(Misplaced(place, what))
    return misplaced
