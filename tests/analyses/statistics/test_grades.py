"""Grades of a part of a model, on accuracies with known answers."""

import numpy as np
import pytest

from copyscope.analyses.statistics.grades import GRADES, grade

CHANCE = 0.25


def hits(share: float, seed: int, n: int = 400) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < share).astype(float)


@pytest.mark.parametrize(
    ("clean", "without", "control", "wanted"),
    [
        (0.9, 0.3, 0.88, "primary"),
        (0.9, 0.75, 0.9, "contributes"),
        (0.9, 0.6, 0.6, "correlates"),
        (0.9, 0.9, 0.9, "correlates"),
        (0.5, 0.9, 0.5, "interferes"),
        (0.25, 0.1, 0.25, "nothing to see"),
    ],
)
def test_grades(clean: float, without: float, control: float, wanted: str) -> None:
    sets = np.stack([hits(control, seed) for seed in range(2, 6)])
    verdict = grade(hits(clean, 0), hits(without, 1), {"random": sets}, CHANCE)
    assert verdict.grade == wanted
    assert wanted in GRADES
    assert verdict.drop_low <= verdict.drop <= verdict.drop_high
    assert verdict.excess_low <= verdict.excess <= verdict.excess_high


def test_every_kind_of_control_counts_and_so_does_their_spread() -> None:
    easy, hard = np.stack([hits(0.9, 2)]), np.stack([hits(0.3, 3)])
    both = grade(hits(0.9, 0), hits(0.3, 1), {"random": easy, "entropy": hard}, CHANCE)
    assert (both.grade, both.control) == ("correlates", "entropy")
    apart = np.stack([hits(share, 4) for share in (0.9, 0.3)])  # one of two random sets costs as much
    assert grade(hits(0.9, 0), hits(0.3, 1), {"random": apart}, CHANCE).grade == "correlates"
