"""A walk in order raises no alarm, whatever its noise, drift and spacing; a checkpoint out of place does, by name."""

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.checkpoints.trajectory import find_jumps

SIZE = 1000


def walk(
    steps: Sequence[int], seed: int, pull: float = 0.0, drift: float = 0.0, warm: int = 0, cool: int = 0
) -> np.ndarray:
    """Weights at `steps`, [step, SIZE], of noisy descent: a random walk that a valley not far from its start draws back
    by `pull` and carries along by `drift`. The rate of all rises over the first `warm` steps and falls to a
    tenth over the last `cool`."""
    draw = np.random.default_rng(seed)
    weights = draw.normal(size=SIZE)
    valley = weights + 0.2 * draw.normal(size=SIZE)
    way = draw.normal(size=SIZE)
    saved, now = [], 0
    for step in steps:
        for at in range(now, step):
            rate = min(1.0, (at + 1) / max(1, warm)) * max(0.1, min(1.0, (steps[-1] - at) / max(1, cool)))
            valley = valley + rate * drift * way
            weights = weights + rate * (0.05 * draw.normal(size=SIZE) - pull * (weights - valley))
        now = step
        saved.append(weights)
    return np.array(saved)


def jumps(steps: Sequence[int], weights: np.ndarray) -> dict[int, str]:
    norms = np.linalg.norm(weights, axis=1)
    apart = np.linalg.norm(weights[:, None] - weights, axis=2)
    found = find_jumps(steps, norms.tolist(), lambda i, j: float(apart[i, j]))
    assert [jump.place for jump in found] == sorted(jump.place for jump in found)
    return dict(found)


EVEN = list(range(0, 600, 50))
LOGS = [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500, 600]
KINDS = [
    {}, {"drift": 0.03}, {"pull": 0.003}, {"pull": 0.02}, {"pull": 0.2}, {"warm": 100}, {"warm": 600, "drift": 0.03},
    {"cool": 100}, {"cool": 100, "pull": 0.02}, {"cool": 30, "pull": 0.2}, {"cool": 300, "pull": 0.2, "warm": 50},
    {"drift": 0.003, "pull": 0.02, "warm": 100, "cool": 200},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("steps", [EVEN, LOGS, [0, 100, 600], [0, 1, 500, 501, 600], [7], [1, 2]], ids=str)
def test_no_false_alarm(steps: list[int], kind: dict[str, float]) -> None:
    assert jumps(steps, walk(steps, 0, **kind)) == {}  # type: ignore[arg-type]


@examples(30)
@given(
    steps=st.sets(st.integers(0, 400), min_size=1, max_size=25).map(sorted),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
)
def test_no_false_alarm_on_any_steps(steps: list[int], seed: int, kind: dict[str, float]) -> None:
    assert jumps(steps, walk(steps, seed, **kind)) == {}  # type: ignore[arg-type]


@examples(25)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS[:9]), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_two_that_changed_places_are_named(seed: int, kind: dict[str, float], scale: float) -> None:
    weights = walk(EVEN, seed, **kind)  # type: ignore[arg-type]
    if kind.get("pull", 0) > 0.1:
        return  # noise about a point has no order
    first = random.Random(seed).randrange(1, len(EVEN) - 2)
    weights[[first, first + 1]] = weights[[first + 1, first]]
    found = jumps(EVEN, scale * weights)
    assert set(found) == {first, first + 1}
    assert all("exchanged" in what for what in found.values())
    assert f"step {EVEN[first]}:" in found[first + 1]


@examples(25)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS), steps=st.sampled_from([EVEN, LOGS]))
def test_another_runs_checkpoint_is_named(seed: int, kind: dict[str, float], steps: list[int]) -> None:
    weights = walk(steps, seed, **kind)  # type: ignore[arg-type]
    place = random.Random(seed).randrange(len(steps))
    weights[place] = walk(steps, seed + 1, **kind)[place]  # type: ignore[arg-type]
    if 0 < place < len(steps) - 1:
        assert set(jumps(steps, weights)) == {place}
    elif math.dist(weights[place], weights[abs(place - 1)]) > 6 * math.dist(weights[1], weights[2]):
        assert set(jumps(steps, weights)) == {place}  # at an end there is less to compare with


@examples(25)
@given(seed=st.integers(0, 10**6), away=st.integers(4, 11), data=st.data())
def test_a_step_far_away_is_named(seed: int, away: int, data: st.DataObject) -> None:
    """Weights of a step between those saved, so that no two are equal."""
    every = sorted({*EVEN, *range(25, 600, 50)})
    all_of_them = dict(zip(every, walk(every, seed), strict=True))
    weights = np.array([all_of_them[step] for step in EVEN])
    place = data.draw(st.integers(0, len(EVEN) - 1))
    other = data.draw(st.sampled_from([s for s in range(25, 600, 50) if abs(s - EVEN[place]) >= 50 * away] or [None]))
    if other is not None:
        weights[place] = all_of_them[other]
        found = jumps(EVEN, weights)
        assert place in found
        assert len(found) <= 2


def test_from_some_step_on_another_run() -> None:
    weights = walk(EVEN, 0)
    weights[7:] = walk(EVEN, 1)[7:]
    found = jumps(EVEN, weights)
    assert set(found) == {7}
    assert "those that follow" in found[7]
    weights[7:10], weights[10:] = walk(EVEN, 1)[7:10], walk(EVEN, 0)[10:]
    assert set(jumps(EVEN, weights)) == {7, 10}


def test_most_of_them_wrong() -> None:
    """As in pythia-2.8b (EleutherAI/pythia#205), where nearly every early step holds the weights of the last. Equal
    weights are taken out before; one of each is left."""
    steps = [0, *range(300, 600, 25)]
    weights = walk(sorted({*steps, 599}), 0, drift=0.03)
    weights[0] = weights[-1]
    assert 0 in jumps(steps, weights[:-1])


def test_equal_and_zero_weights_divide_by_nothing() -> None:
    assert jumps([0, 1, 2, 3], np.zeros((4, SIZE))) == {}
    assert jumps([0, 1, 2, 3], np.ones((4, SIZE))) == {}
    assert jumps([], np.ones((0, SIZE))) == {}


def test_few_distances_are_asked_for_when_all_is_well() -> None:
    steps = list(range(200))
    weights, asked = walk(steps, 0), set()

    def distance(i: int, j: int) -> float:
        asked.add((min(i, j), max(i, j)))
        return float(np.linalg.norm(weights[i] - weights[j]))

    assert find_jumps(steps, [float(np.linalg.norm(x)) for x in weights], distance) == []
    assert len({(i, j) for i, j in asked if j - i > 2}) <= 20
