"""A series in order raises no alarm; a checkpoint out of place is named.

In plain geometry, where distances are known exactly. How often noise hides a fault is measured by
tests/benchmarks/misplaced_rates.py, not here.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_path import EVEN, KINDS, LOGS, SIZE, simulated_path

from copyscope.training.checkpoints.trajectory import find_misplaced

FAR = 40.0
"""Between two runs, where one update moves weights by 1."""
MOVES: dict[str, Callable[[float], float]] = {
    "a straight path": float,
    "a random walk": math.sqrt,
    "a valley": lambda updates: 10 * math.sqrt(1 - math.exp(-updates / 100)),
}
"""Distance between two checkpoints of a run by the updates between them."""


def named(steps: Sequence[int], at: Sequence[float | None], move: Callable[[float], float]) -> dict[int, str]:
    """What is said of a series in which the checkpoint labelled steps[i] holds the weights of update at[i]; None: of
    another run, each of another one."""

    def distance(i: int, j: int) -> float:
        a, b = at[i], at[j]
        return FAR * max(1.0, move(steps[-1]) / 10) if a is None or b is None else move(abs(a - b))

    misplaced = find_misplaced(steps, distance)
    assert [one.place for one in misplaced] == sorted(one.place for one in misplaced)
    return {one.place: one.what for one in misplaced}


@given(st.sets(st.integers(0, 1000), max_size=25).map(sorted), st.sampled_from(sorted(MOVES)))
def test_no_false_alarm_whatever_the_steps(steps: list[int], move: str) -> None:
    assert named(steps, steps, MOVES[move]) == {}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("place", range(1, len(EVEN) - 2))
def test_two_that_changed_places_are_named(place: int, move: str) -> None:
    at = [*EVEN[:place], EVEN[place + 1], EVEN[place], *EVEN[place + 2 :]]
    said = named(EVEN, at, MOVES[move])
    assert said.keys() == {place, place + 1}
    assert all("exchanged" in what for what in said.values())
    assert f"step {EVEN[place]}:" in said[place + 1]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("steps", [EVEN, LOGS], ids=["even", "logs"])
def test_another_runs_checkpoint_is_named_wherever_it_is(steps: list[int], move: str) -> None:
    for place in range(1, len(steps)):
        at = [None if i == place else step for i, step in enumerate(steps)]
        assert named(steps, at, MOVES[move]).keys() == {place}, place


@pytest.mark.parametrize("move", ["a straight path", "a random walk"])
@pytest.mark.parametrize("place", range(len(EVEN)))
def test_the_weights_of_a_far_step_are_named(place: int, move: str) -> None:
    for other in range(len(EVEN)):
        if abs(other - place) >= 5:
            at = [*map(float, EVEN)]
            at[place] = EVEN[other] + 25.0  # of no checkpoint: equal weights are found before
            assert place in named(EVEN, at, MOVES[move])


def test_two_faults_are_both_named() -> None:
    at = [0, 100, 50, 150, 200, 250, 300, None, 400, 450, 500, 550]
    assert named(EVEN, at, math.sqrt).keys() == {1, 2, 7}


@pytest.mark.parametrize("steps", [EVEN, LOGS, [0, 100, 600], [0, 1, 500, 501, 600], [7], [1, 2]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_simulated_run_raises_no_alarm(steps: list[int], kind: str) -> None:
    assert of_weights(steps, simulated_path(steps, 0, **KINDS[kind])) == {}  # type: ignore[arg-type]


def of_weights(steps: Sequence[int], weights: np.ndarray) -> dict[int, str]:
    apart = np.linalg.norm(weights[:, None] - weights, axis=2)
    return {one.place: one.what for one in find_misplaced(steps, lambda i, j: float(apart[i, j]))}


def test_neither_scale_nor_size_matters() -> None:
    weights = simulated_path(EVEN, 3)
    weights[[4, 5]] = weights[[5, 4]]
    weights[8] = simulated_path(EVEN, 4)[8]
    for changed in (weights, 1e-6 * weights, 1e6 * weights, np.tile(weights, 3)):
        assert of_weights(EVEN, changed).keys() == {4, 5, 8}


def test_from_some_step_on_another_run() -> None:
    weights = simulated_path(EVEN, 0)
    weights[7:] = simulated_path(EVEN, 1)[7:]
    said = of_weights(EVEN, weights)
    assert said.keys() == {7}
    assert "those that follow" in said[7]
    weights[7:10], weights[10:] = simulated_path(EVEN, 1)[7:10], simulated_path(EVEN, 0)[10:]
    assert of_weights(EVEN, weights).keys() == {7, 10}


def test_most_of_them_wrong() -> None:
    """As in pythia-2.8b (EleutherAI/pythia#205), where nearly every early step holds the weights of the last. Equal
    weights are taken out before; one of each is left."""
    steps = [0, *range(300, 600, 25)]
    weights = simulated_path(sorted({*steps, 599}), 0, drift=0.03)
    weights[0] = weights[-1]
    assert 0 in of_weights(steps, weights[:-1])


def test_equal_and_zero_weights_divide_by_nothing() -> None:
    assert of_weights([0, 1, 2, 3], np.zeros((4, SIZE))) == {}
    assert of_weights([0, 1, 2, 3], np.ones((4, SIZE))) == {}
    assert of_weights([], np.ones((0, SIZE))) == {}


def test_few_distances_are_asked_for_when_all_is_well() -> None:
    steps = list(range(200))
    weights, asked = simulated_path(steps, 0), set()

    def distance(i: int, j: int) -> float:
        asked.add((min(i, j), max(i, j)))
        return float(np.linalg.norm(weights[i] - weights[j]))

    assert find_misplaced(steps, distance) == []
    assert len({(i, j) for i, j in asked if j - i > 2}) <= 20
