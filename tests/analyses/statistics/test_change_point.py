"""The fitted change point: against a slow search, on known answers, and its interval's coverage."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from interval_coverage import false_rises, measure_cell
from scipy import optimize
from synthetic_run import checkpoint_steps, rise

from copyscope.analyses.statistics.change_point import fit_change, log_steps

STEPS = np.array(checkpoint_steps(40))
AT = STEPS.astype(float)


def slow_fit(values: np.ndarray) -> np.ndarray:
    """Least squares over all four numbers by a general optimiser, from many starts."""
    x = log_steps(STEPS)

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[0] + p[1] / (1 + np.exp(-np.clip((x - p[2]) / np.exp(p[3]), -50, 50))) - values

    starts = [(values.min(), np.ptp(values), c, np.log(w)) for c in np.linspace(3, 8.5, 12) for w in (0.1, 0.3)]
    bounds = ([-1, 0, 0, np.log(0.03)], [1, 2, 9, 0])
    return min((optimize.least_squares(residuals, s, bounds=bounds) for s in starts), key=lambda r: r.cost).x


@pytest.mark.parametrize(("at", "width"), [(300, 0.15), (1500, 0.3), (800, 0.6)])
def test_the_grid_finds_what_an_optimiser_finds(at: float, width: float) -> None:
    values = 0.05 + 0.7 * rise(AT, at, width) + 0.01 * np.random.default_rng(0).normal(size=len(AT))
    fit, slow = fit_change(STEPS, values), slow_fit(values)
    assert fit.centre == pytest.approx(slow[2], abs=0.05 if width < 0.5 else 0.1)
    assert fit.interval[0] < slow[2] < fit.interval[1]
    assert fit.width == pytest.approx(np.exp(slow[3]), rel=0.75)
    assert (fit.low, fit.high) == pytest.approx((slow[0], slow[0] + slow[1]), abs=0.03 if width < 0.5 else 0.1)
    assert ((fit.fitted - values) ** 2).sum() < 0.01


def test_a_perfect_jump() -> None:
    values = np.where(STEPS >= 1000, 1.0, 0.0)
    fit = fit_change(STEPS, values)
    before, after = log_steps(STEPS[STEPS < 1000])[-1], np.log1p(1000)
    assert fit.centre == pytest.approx((before + after) / 2, abs=0.02)
    assert (fit.low, fit.high) == pytest.approx((0, 1), abs=5e-3)
    assert before < fit.interval[0] < fit.interval[1] < after


@examples(30)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_the_unit_of_the_curve_does_not_matter(scale: float, shift: float) -> None:
    values = rise(AT, 1200, 0.3) + 0.02 * np.random.default_rng(1).normal(size=len(AT))
    plain, other = fit_change(STEPS, values), fit_change(STEPS, shift + scale * values)
    assert other.centre == pytest.approx(plain.centre, abs=1e-4)
    assert other.width == plain.width
    assert other.high - other.low == pytest.approx(scale * (plain.high - plain.low), rel=1e-3)


def test_a_falling_curve_has_no_rise() -> None:
    fit = fit_change(STEPS, 1 - rise(AT, 1000))
    assert fit.high == pytest.approx(fit.low)


def test_two_checkpoints_are_enough_to_say_between_which() -> None:
    fit = fit_change(np.array([10, 100]), np.array([0.0, 1.0]))
    assert np.log1p(10) < fit.centre < np.log1p(100)


CELLS = [
    ("a jump", "powers of two, then every 250 to 6,000", 2.7, 0.5),
    ("width 0.3", "powers of two, then every 250 to 6,000", 0.7, 0.0),
    ("width 0.3", "every 25 to 2,000", 5.0, 0.5),
    ("width 0.6", "powers of two, then every 100 to 2,000", 10.0, 0.0),
    ("fast, then slow", "20 a factor of 1.7 apart", 5.0, 0.9),
    ("a straight line", "powers of two, then every 100 to 2,000", 1.4, 0.5),
    ("two stages, the first larger", "powers of two, then every 250 to 6,000", 1.4, 0.0),
]


def test_the_interval_covers(capsys: pytest.CaptureFixture[str]) -> None:
    """A small part of the table of docs/formation.md: intervals that hold the planted step."""
    cells = [measure_cell(*cell, curves=30, seed=1) for cell in CELLS]
    rises, covered = sum(cell.rises for cell in cells), sum(cell.covered for cell in cells)
    with capsys.disabled():
        print(f"\nchange point: {covered / rises:.1%} of {rises} 95 % intervals hold the truth")
    assert rises >= 200
    assert covered >= 0.93 * rises - 2 * np.sqrt(0.93 * 0.07 * rises)
    assert all(cell.covered >= 0.8 * cell.rises for cell in cells)


def test_flat_curves_have_no_rise() -> None:
    """Another small part of it: noise alone, which reaches the level only where it is ten times the prompt error."""
    assert [false_rises(25, jitter, 0.5)[0] for jitter in (0.0, 1.4, 5.0)] == [0, 0, 0]


def test_jitter_beyond_the_prompt_errors_widens_the_interval() -> None:
    """What an interval over prompts alone cannot see: the same curve, checkpoints that jump about more."""
    rng, clean = np.random.default_rng(3), 0.05 + 0.6 * rise(AT, 1200, 0.3)
    noise, errors = rng.normal(size=len(AT)), np.full(len(AT), 0.01)
    calm, jumpy = (fit_change(STEPS, clean + sd * noise, errors).interval for sd in (0.01, 0.1))
    assert jumpy[1] - jumpy[0] > 2 * (calm[1] - calm[0])
    unsure = fit_change(STEPS, clean + 0.01 * noise, 10 * errors).interval
    assert unsure[1] - unsure[0] > 2 * (calm[1] - calm[0])


def test_a_rise_in_two_stages() -> None:
    rng = np.random.default_rng(4)
    staged = 0.02 + 0.35 * rise(AT, 150, 0.2) + 0.6 * rise(AT, 1700, 0.1) + 0.01 * rng.normal(size=len(AT))
    fit = fit_change(STEPS, staged)
    assert fit.two_stages > 0.95
    assert fit.stages is not None
    assert np.expm1(fit.stages) == pytest.approx([150, 1700], rel=0.15)
    assert np.expm1(fit.centre) == pytest.approx(1500, rel=0.15)  # where the sum is half-way up
    for width in (0.1, 0.3, 0.6):
        single = 0.02 + 0.9 * rise(AT, 1000, width) + 0.01 * rng.normal(size=len(AT))
        assert fit_change(STEPS, single).two_stages < 0.5


def test_a_series_that_begins_half_way_up() -> None:
    rng, later = np.random.default_rng(5), STEPS[STEPS >= 1500]
    values = 0.02 + 0.8 * rise(later.astype(float), 1500, 0.3) + 0.01 * rng.normal(size=len(later))
    assert fit_change(later, values).begun > 0.95
    whole = 0.02 + 0.8 * rise(AT, 1500, 0.3) + 0.01 * rng.normal(size=len(AT))
    assert fit_change(STEPS, whole).begun == 0
    assert fit_change(STEPS[STEPS >= 250], whole[STEPS >= 250]).begun < 0.05
