"""The fitted change point: against a slow search, on known answers, and its interval's coverage."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from synthetic_run import checkpoint_steps, rise

from copyscope.analyses.statistics.change_point import TEN_TO_NINETY, bootstrap_centres, fit_change, log_steps

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
    assert fit.centre == pytest.approx(slow[2], abs=0.05)
    assert fit.width == pytest.approx(np.exp(slow[3]), rel=0.5)
    assert (fit.low, fit.high) == pytest.approx((slow[0], slow[0] + slow[1]), abs=0.03)
    assert ((fit.fitted - values) ** 2).sum() < 1.2 * 40 * 0.01**2 + 1e-3


def test_a_perfect_jump() -> None:
    values = np.where(STEPS >= 1000, 1.0, 0.0)
    fit = fit_change(STEPS, values)
    before, after = log_steps(STEPS[STEPS < 1000])[-1], np.log1p(1000)
    assert fit.centre == pytest.approx((before + after) / 2, abs=0.02)
    assert (fit.low, fit.high) == pytest.approx((0, 1), abs=5e-3)
    assert np.ptp(bootstrap_centres(STEPS, values, fit)) < 0.1  # of a gap of 0.29


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


@pytest.mark.parametrize(("sd", "width"), [(0.02, 0.1), (0.05, 0.3), (0.05, 0.6)])
def test_the_interval_covers(sd: float, width: float, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 curves with a rise of 0.6 and noise: the share of bootstrap intervals that hold the truth."""
    rng = np.random.default_rng(0)
    covered, missed_width = 0, []
    for seed in range(1000):
        truth = rng.uniform(np.log(100), np.log(3000))
        values = 0.05 + 0.6 * rise(AT, np.expm1(truth), width) + sd * rng.normal(size=len(AT))
        fit = fit_change(STEPS, values)
        low, high = np.quantile(bootstrap_centres(STEPS, values, fit, seed=seed), (0.025, 0.975))
        index = int(np.searchsorted(log_steps(STEPS), fit.centre))
        low, high = min(low, log_steps(STEPS)[index - 1]), max(high, log_steps(STEPS)[index])
        covered += low <= truth <= high
        missed_width.append(fit.width)
    factor = np.exp(TEN_TO_NINETY * np.median(missed_width))
    with capsys.disabled():
        print(f"\nchange point: noise {sd}, width {width}: {covered / 10:.1f} % of 95 % intervals hold the truth; "
              f"10 to 90 % fitted as × {factor:.1f} (planted × {np.exp(TEN_TO_NINETY * width):.1f})")  # fmt: skip
    assert covered >= 925
