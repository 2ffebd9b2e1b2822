"""The statistics behind comparisons of runs: known answers, false positives and power over at least 1,000 studies."""

import math
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from copyscope.analyses.claims.batch_size import batch_exponent
from copyscope.analyses.claims.contrast import contrast, step_effect
from copyscope.analyses.claims.intensity import intensity
from copyscope.analyses.statistics.censored import censored_difference, censored_slope
from copyscope.analyses.statistics.intervals import difference, over_runs, slope, t_interval

SIZES = np.repeat([4.0, 8.0, 16.0, 32.0], 3)


def test_intervals_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 6), rng.normal(1, 3, 4)
    assert t_interval(a) == pytest.approx(stats.ttest_1samp(a, 0).confidence_interval(0.95))
    welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.975)
    found = difference(a, b, 0.975)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))
    line, wanted = slope(a, a**2 + a), cast(Any, stats.linregress(a, a**2 + a))
    assert (line.slope, line.intercept) == pytest.approx((wanted.slope, wanted.intercept))
    half = stats.t.ppf(0.975, 4) * wanted.stderr
    assert (line.low, line.high) == pytest.approx((wanted.slope - half, wanted.slope + half))


def test_intervals_that_there_are_not() -> None:
    assert all(map(math.isnan, t_interval(np.array([1.0]))))
    assert math.isnan(difference(np.array([1.0]), np.array([2.0, 3.0])).low)
    assert math.isnan(difference(np.array([1.0, 1.0]), np.array([2.0, 2.0])).low)
    assert difference(np.array([1.0, 1.0]), np.array([2.0, 2.0]), error=0.1).low < 1
    assert math.isnan(slope(np.array([0.0, 1.0]), np.array([0.0, 1.0])).low)


def test_points_on_a_line_are_not_known_better_than_each_of_them() -> None:
    x, error = np.array([0.0, 1.0, 2.0]), np.full(3, 0.5)
    assert slope(x, 2 * x).high == pytest.approx(2)
    assert slope(x, 2 * x, error).high == pytest.approx(2 + 1.96 * 0.5 / math.sqrt(2))


def test_a_step_over_seeds() -> None:
    steps = np.array([1000.0, 1200.0, 1440.0])
    centre, low, high = over_runs(steps, steps / 1.01, steps * 1.01)
    between = np.exp(t_interval(np.log(steps)))
    assert (centre, low, high) == pytest.approx((1200, *between))
    alike = np.full(3, 1000.0)  # equal seeds are known no better than their checkpoints lie apart
    assert over_runs(alike, alike / 2, alike * 3) == pytest.approx((1000, 500, 3000))
    assert over_runs(alike[:1], alike[:1] / 2, alike[:1] * 3) == pytest.approx((1000, 500, 3000))


def test_intervals_over_seeds_hold_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 studies of three seeds that scatter by a fifth, checkpoints 10 % apart."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        steps = 2000 * np.exp(0.2 * rng.normal(size=3))
        _, low, high = over_runs(steps, steps / 1.1, steps * 1.1)
        covered += low <= 2000 <= high
    with capsys.disabled():
        print(f"\nover seeds: {covered / 10:.1f} % of 95 % intervals hold the truth")
    assert covered >= 930


def study(alpha: float, rng: np.random.Generator, scatter: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Formation steps of twelve runs and their intervals, ± 10 %."""
    steps = 2000 * (SIZES / 8) ** alpha * np.exp(scatter * rng.normal(size=len(SIZES)))
    return steps, steps / 1.1, steps * 1.1


@pytest.mark.parametrize(("alpha", "law"), [(0.0, "updates only"), (-0.5, "square root"), (-1.0, "tokens only")])
def test_the_law_is_found(alpha: float, law: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    found = [batch_exponent(SIZES, *study(alpha, rng)) for _ in range(1000)]
    named = sum(one.law == law for one in found)
    wrong = sum(one.law not in (law, None) for one in found)
    covered = sum(one.low <= alpha <= one.high for one in found)
    with capsys.disabled():
        print(
            f"\nexponent {alpha}: {named} of 1,000 studies name the law, {wrong} another; {covered / 10:.1f} % of "
            "the intervals hold the truth"
        )
    assert named >= 900
    assert wrong <= 50
    assert covered >= 930


def test_no_law_on_too_little() -> None:
    two = batch_exponent(np.array([8.0, 32.0]), *(np.array([2000.0, 2000.0]) * f for f in (1, 0.9, 1.1)))
    assert (two.law, two.enough) == (None, False)
    assert "it takes three" in two.reason
    narrow = batch_exponent(np.array([8.0, 12.0, 16.0]), *(np.full(3, 2000.0) * f for f in (1, 0.9, 1.1)))
    assert (narrow.law, narrow.enough) == (None, False)
    one = batch_exponent(np.array([8.0, 8.0]), *(np.full(2, 2000.0) * f for f in (1, 0.9, 1.1)))
    assert math.isnan(one.exponent)
    between = batch_exponent(SIZES, *study(-0.25, np.random.default_rng(0), 0.02))
    assert (between.law, between.reason) == (None, "the interval holds none of the three laws")


def test_runs_that_have_not_formed_yet(capsys: pytest.CaptureFixture[str]) -> None:
    """100 studies whose runs of the two smallest sizes end a fifth of a log step before the typical step there."""
    rng = np.random.default_rng(6)
    small, slopes, covered, dropped = SIZES <= 8, [], 0, []
    for _ in range(100):
        steps, low, high = study(-0.7, rng, 0.25)
        ends = np.where(small, 2000 * (SIZES / 8) ** -0.7 * math.exp(-0.2), np.inf)
        late = steps > ends
        sizes, steps, low, high = (array[~late] for array in (SIZES, steps, low, high))
        found = batch_exponent(sizes, steps, low, high, SIZES[late], ends[late])
        slopes.append(found.exponent)
        covered += found.low <= -0.7 <= found.high
        dropped.append(batch_exponent(sizes, steps, low, high).exponent)
    with capsys.disabled():
        print(
            f"\nunformed runs: exponent {np.mean(slopes):.2f} ({np.nanmean(dropped):.2f} without them) of -0.70; "
            f"{covered} % of the intervals hold the truth"
        )
    assert np.nanmean(dropped) > -0.6  # what leaving them out does
    assert np.mean(slopes) == pytest.approx(-0.7, abs=0.05)
    assert covered >= 88


def test_a_line_through_open_runs() -> None:
    rng = np.random.default_rng(0)
    x, none = np.log(SIZES), np.empty(0)
    y = 8 - 0.7 * x + 0.2 * rng.normal(size=12)
    assert censored_slope(x, y, none, none) == slope(x, y)
    told_nothing = censored_slope(x, y, x[:1], y[:1] - 50)  # a run that ended at once says nothing
    line = slope(x, y)
    assert (told_nothing.slope, told_nothing.low) == pytest.approx((line.slope, line.low), abs=1e-4)
    late = censored_slope(x, y, x[:3], y[:3] + 3)
    assert late.slope < slope(x, y).low
    assert late.low < late.slope < late.high
    few = censored_slope(x[[0, 11]], y[[0, 11]], x[:3], y[:3])
    assert math.isnan(few.low)


NONE = np.empty(0)


def test_differences_with_open_runs() -> None:
    rng = np.random.default_rng(0)
    a, b = 7 + 0.1 * rng.normal(size=4), 7.3 + 0.1 * rng.normal(size=4)
    assert censored_difference(a, b, NONE, NONE, 0.975) == difference(a, b, 0.975)
    pooled = stats.ttest_ind(b, a).confidence_interval(0.975)  # with one scatter for both
    told_nothing = censored_difference(a, b, a[:1] - 50, NONE, 0.975)
    assert told_nothing == pytest.approx((b.mean() - a.mean(), pooled.low, pooled.high), abs=1e-4)
    late = censored_difference(a, b, NONE, b[:2] + 0.3)
    assert late.low < b.mean() - a.mean() < late.difference < late.high

    never = censored_difference(a, NONE, NONE, np.full(4, 7.5))
    assert never.difference == never.high == math.inf
    assert 0.1 < never.low < 0.5  # later than the difference to the last step allows for scatter
    other = censored_difference(NONE, a, np.full(4, 7.5), NONE)
    assert (other.difference, other.low, other.high) == pytest.approx((-math.inf, -math.inf, -never.low))
    assert censored_difference(a, NONE, NONE, np.full(2, 7.5)).low < never.low  # fewer runs say less
    assert censored_difference(a, NONE, NONE, np.full(4, 7.5), 0.999).low < never.low
    assert censored_difference(a, NONE, NONE, np.full(4, 7.5), error=0.5).low < never.low  # badly known steps
    alike = np.full(3, 7.0)
    assert math.isnan(censored_difference(alike, NONE, NONE, alike + 1).low)
    assert censored_difference(alike, NONE, NONE, alike + 1, error=0.1).low > 0
    assert all(map(math.isnan, censored_difference(a[:1], NONE, NONE, a)))
    assert all(map(math.isnan, censored_difference(NONE, NONE, a, a)))


def test_censored_fits_agree_with_lifelines() -> None:
    """Constants from lifelines 0.30.3: `LogNormalAFTFitter().fit(frame, "T", "E")`, whose `mu_` is the same regression
    of ln T by maximum likelihood, with E = 0 where T is a lower bound and one covariate (ln size; group 0 or 1)."""
    sizes = np.log(np.repeat([4.0, 8.0, 16.0, 32.0], 3))
    steps = np.log([1900.0, 2400, 2000, 1500, 1250, 2000, 980, 1300, 1100, 700, 820, 650])
    late = np.isin(np.arange(12), [1, 2, 5])
    line = censored_slope(sizes[~late], steps[~late], sizes[late], steps[late])
    assert (line.slope, line.intercept) == pytest.approx((-0.560984, 8.543597), abs=1e-4)
    assert line.scatter == pytest.approx(0.165360, abs=1e-4)
    first, second = np.log([1200.0, 1350, 1100, 1500]), np.log([1700.0, 2100])
    effect = censored_difference(first, second, NONE, np.log([2000.0, 2000]))
    assert effect.difference == pytest.approx(0.471528, abs=1e-4)


def test_open_runs_make_no_effects(capsys: pytest.CaptureFixture[str]) -> None:
    """300 studies of four runs a side without any difference, half of which end before they form."""
    rng, wrong, used = np.random.default_rng(8), 0, 0
    for _ in range(300):
        a, b, end = 0.1 * rng.normal(size=4), 0.1 * rng.normal(size=4), 0.0
        ends = [np.full(int((group > end).sum()), end) for group in (a, b)]
        found = censored_difference(a[a <= end], b[b <= end], ends[0], ends[1], error=0.02)
        used += not math.isnan(found.low)
        wrong += found.low > 0 or found.high < 0
    with capsys.disabled():
        print(f"\nopen runs without effect: {wrong} of {used} intervals exclude 0")
    assert used > 250
    assert wrong <= 0.05 * used + 3 * math.sqrt(0.05 * 0.95 * used)


def test_a_value_that_never_forms_is_later() -> None:
    rng = np.random.default_rng(9)
    rows = [{"log_step": 7.2 + 0.1 * rng.normal(), "log_step_error": 0.05} for _ in range(4)]
    found = contrast([0] * 4 + [1] * 4, [*rows, *({"log_last_step": 7.6} for _ in range(4))])
    assert found.verdict == "harms"
    row = found.table.row(0, named=True)
    assert (row["difference"], row["high"], row["runs"], row["baseline_runs"]) == (None, None, 4, 4)
    assert 0 < row["low"] < 0.4
    value, low, high = step_effect(found.table)
    assert (value, high) == (None, None)
    assert low == pytest.approx(math.exp(row["low"]) - 1)
    assert contrast([1] * 4 + [0] * 4, [*rows, *({"log_last_step": 7.6} for _ in range(4))]).verdict == "helps"


def outcomes(shift: float, stronger: float, rng: np.random.Generator, count: int = 4) -> tuple[list[float], list[dict]]:
    values = [0.0] * count + [0.1] * count
    rows = [
        {
            "log_step": 7.6 + (value > 0) * shift + 0.1 * rng.normal(),
            "log_step_error": 0.05,
            "copying_accuracy_token": 0.5 + (value > 0) * stronger + 0.05 * rng.normal(),
            "natural_loss": 3 + 0.02 * rng.normal(),
            "icl_score": -0.3 + 0.05 * rng.normal(),
        }
        for value in values
    ]
    return values, rows


def test_contrasts_without_effect(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 studies, four seeds a side: verdicts other than `open` in at most 5 %."""
    rng = np.random.default_rng(2)
    verdicts = [contrast(*outcomes(0, 0, rng)).verdict for _ in range(1000)]
    with capsys.disabled():
        print(f"\ncontrast without effect: {1000 - verdicts.count('open')} of 1,000 studies decide")
    assert verdicts.count("open") >= 950 - 21


@pytest.mark.parametrize(
    ("shift", "stronger", "verdict"),
    [(-0.5, 0, "helps"), (0, 0.25, "helps"), (0.5, 0, "harms"), (-0.5, -0.25, "mixed")],
)
def test_contrasts_with_effect(shift: float, stronger: float, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    found = [contrast(*outcomes(shift, stronger, rng)).verdict for _ in range(300)].count(verdict)
    with capsys.disabled():
        print(f"\ncontrast, ln step {shift:+}, accuracy {stronger:+}: {found} of 300 studies say {verdict}")
    assert found >= 240


def test_contrast_by_hand() -> None:
    rows = [{"log_step": 1.0, "copying_accuracy_token": 0.2}, {"log_step": None, "copying_accuracy_token": 0.4}]
    found = contrast([0, 1], rows)
    assert (found.verdict, found.reason) == ("open", "fewer than two runs of a value")
    assert found.table.select("quantity", "difference").rows() == [("copying_accuracy_token", pytest.approx(0.2))]
    assert contrast([1, 1], rows).table.is_empty()


RATES = np.repeat([5e-4, 1e-3, 2e-3, 4e-3], 2)


def rising(rate: float, steps: int = 40_000) -> np.ndarray:
    """Warm-up over 200 updates, then constant: sums of different powers part from each other."""
    return rate * np.minimum(1, np.arange(1, steps + 1) / 200)


@pytest.mark.parametrize(
    ("power", "best"), [(1.0, "summed learning rate"), (0.0, "updates"), (2.0, "summed square of the learning rate")]
)
def test_the_sum_that_decides_is_found(power: float, best: str, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(4)
    rates = [rising(rate) for rate in RATES]
    sums = [np.cumsum(rate**power) for rate in rates]
    wanted = float(np.exp(np.mean([np.log(one[3000]) for one in sums])))
    clean = np.array([float(np.searchsorted(one, wanted)) + 1 for one in sums])
    found = []
    for _ in range(100):
        steps = np.minimum(clean * np.exp(0.05 * rng.normal(size=len(clean))), 39_000)
        # Batch sizes vary, so that tokens are another rule than updates.
        found.append(intensity(rates, steps, np.tile([1000.0, 3000.0], 4)).best)
    with capsys.disabled():
        print(
            f"\nintensity, power {power}: {found.count(best)} of 100 studies name it, "
            f"{100 - found.count(best) - found.count(None)} another"
        )
    assert found.count(best) >= 90
    assert found.count(best) + found.count(None) >= 98


def test_intensity_by_hand() -> None:
    rates = [np.full(4000, rate) for rate in (1e-3, 2e-3, 4e-3)]
    found = intensity(rates, np.array([3000.0, 1500.0, 750.0]), np.full(3, 512.0))
    table = {row["rival"]: row for row in found.rivals.to_dicts()}
    assert table["summed learning rate"]["threshold"] == pytest.approx(3)
    assert table["summed learning rate"]["error"] == pytest.approx(0, abs=1e-6)
    assert table["updates"]["threshold"] == pytest.approx(1500)
    # Left out, each is foretold from the other two: 1,061, 1,500 and 2,121 updates.
    errors = [math.log(3000 / 1061), 0, math.log(2121 / 750)]
    assert table["updates"]["error"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert table["updates"]["error"] == pytest.approx(table["tokens"]["error"])
    assert all(a["error"] <= b["error"] + 1e-12 for a, b in pairwise(found.rivals.to_dicts()))
    assert intensity(rates[:2], np.array([3000.0, 1500.0]), np.full(2, 512.0)).best is None


def test_a_sum_that_ends_early_goes_on() -> None:
    rates = [np.full(3000, 1e-3), np.full(1500, 2e-3), np.full(800, 4e-3)]
    found = intensity(rates, np.array([3000.0, 1500.0, 800.0]), np.full(3, 512.0))
    row = {r["rival"]: r for r in found.rivals.to_dicts()}["updates"]
    assert np.isfinite(row["error"])
