"""When the loss settled, and whether copying came after it: known answers, invariances, simulated runs."""

import math

import numpy as np
import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import checkpoint_steps, model_table, rise

from copyscope.analyses.formation.emergence import deepest_dip, emergence, step_ratio
from copyscope.analyses.formation.loss import loss_settled
from copyscope.training.errors import InputError

STEPS = checkpoint_steps(44)
AT = np.array(STEPS, dtype=float)
EVERY, SPARSE = np.arange(0, 10_001, 50), np.arange(0, 10_001, 250)


def losses(
    values: np.ndarray | list, steps: np.ndarray | list | None = None, name: str = "validation_loss"
) -> pl.DataFrame:
    steps = np.arange(len(values)) if steps is None else np.asarray(steps)
    return pl.DataFrame({"step": steps, "tokens": steps * 10, name: values})


def power_law(steps: np.ndarray = EVERY, end: float = 2.0) -> np.ndarray:
    """A fall by halves: from s to 2 s it brings s^-0.5 · (1 - 2^-0.5) of 5 nats."""
    return end + 5 / np.sqrt(1 + steps / 50)


def slowly_settled(steps: np.ndarray, loss: np.ndarray, share: float) -> int | None:
    """The rule said with loops: no smoothing, no vectors."""
    for i, step in enumerate(steps):
        fallen = loss[0] - loss[i]
        if step == 0 or 2 * step > steps[-1] or fallen < 0.5 * (loss[0] - min(loss)):
            continue
        later = np.interp(math.log1p(2 * step), np.log1p(steps), loss)
        if loss[i] - later < share * fallen:
            return int(step)
    return None


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_settled_against_loops(share: float) -> None:
    loss = power_law()
    found = loss_settled(losses(loss, EVERY), share)
    wanted = slowly_settled(EVERY, loss, share)
    assert wanted is not None
    assert found.step is not None
    assert abs(found.step - wanted) <= 100  # a median of a smooth curve is off by less than two points
    assert found.bracket_low == found.step - 50
    low, high = found.low or math.nan, found.high or math.nan
    assert low <= (found.bracket_low or math.nan) < found.step <= high
    assert found.tokens == found.step * 10


@examples(25)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), factor=st.integers(2, 50))
def test_neither_the_unit_of_loss_nor_that_of_steps_matters(scale: float, shift: float, factor: int) -> None:
    plain = loss_settled(losses(power_law(), EVERY))
    assert loss_settled(losses(shift + scale * power_law(), EVERY)).step == plain.step
    # ln(1 + step) is not quite free of scale near 0; at the settling step it is.
    stretched = loss_settled(losses(power_law(), EVERY * factor)).step
    assert stretched == pytest.approx((plain.step or 0) * factor, rel=0.02)


@pytest.mark.parametrize("drop", [0.2, 0.5, 1.0])
def test_a_learning_rate_let_down_at_the_end_does_not_move_it(drop: float) -> None:
    plain = loss_settled(losses(power_law(), EVERY))
    decay = -drop * np.clip((EVERY - 8500) / 1500, 0, 1)
    decayed = loss_settled(losses(power_law() + decay, EVERY))
    assert plain.step is not None
    assert plain.step < 4250  # what happens from 8,500 on concerns no doubling before half of that
    for field in ("step", "tokens", "bracket_low", "low", "high", "level"):
        assert getattr(decayed, field) == getattr(plain, field), field
    assert decayed.lowest < plain.lowest


def test_watching_longer_does_not_move_it() -> None:
    plain = loss_settled(losses(power_law(), EVERY))
    short = EVERY[: int(2.5 * (plain.step or 0)) // 50]
    assert loss_settled(losses(power_law(short), short)).step == plain.step


def test_not_settled() -> None:
    falling = 10 - np.log1p(EVERY)  # as much with every doubling
    found = loss_settled(losses(falling, EVERY))
    assert (found.step, found.low, found.last) == (None, None, 10_000)
    assert loss_settled(losses([1.0, 2.0, 3.0, 4.0])).step is None


def test_an_early_plateau_is_not_the_end() -> None:
    loss = 10 - 3 * rise(EVERY, 60, 0.05) - 6 * rise(EVERY, 1500, 0.1)
    found = loss_settled(losses(loss, EVERY))
    assert found.step is not None
    assert found.step > 1500


def test_the_training_loss_stands_in() -> None:
    noisy = power_law() + 0.05 * np.random.default_rng(0).normal(size=len(EVERY))
    found, plain = loss_settled(losses(noisy, EVERY, "loss")), loss_settled(losses(power_law(), EVERY))
    assert found.source == "loss"
    assert found.low is not None
    assert found.high is not None
    assert plain.step is not None
    assert found.low <= plain.step <= found.high


def test_settled_bad_input() -> None:
    with pytest.raises(InputError, match="fewer than three"):
        loss_settled(losses([1.0]))
    with pytest.raises(InputError, match="diverged"):
        loss_settled(losses([3.0, math.nan, 1.0]))
    with pytest.raises(InputError, match="step 1 is there twice"):
        loss_settled(losses([3.0, 2.0, 1.0]).with_columns(step=pl.lit(1)))
    with pytest.raises(InputError, match="share"):
        loss_settled(losses([3.0, 2.0, 1.0]), share=90.0)
    with pytest.raises(InputError, match="'tokens' is missing"):
        loss_settled(losses([3.0, 2.0, 1.0]).drop("tokens"))


def copying(at: float, sd: float = 0.0, seed: int = 0, width: float = 0.1) -> pl.DataFrame:
    noise = sd * np.random.default_rng(seed).normal(size=len(AT))
    return model_table({"copying_accuracy_token": 0.6 * rise(AT, at, width) + noise}, STEPS)


def fast_loss(steps: np.ndarray = EVERY) -> pl.DataFrame:
    """Falls with a time constant of 100 steps: settled within a few hundred by either rule."""
    return losses(2 + 5 * np.exp(-steps / 100), steps)


def test_copying_long_after_the_loss_settled() -> None:
    found = emergence(copying(4000), fast_loss())
    assert found.verdict == "after"
    assert found.settled.step is not None
    assert found.delay == pytest.approx(4000 - found.settled.step, abs=150)
    assert found.delay_tokens == pytest.approx(2048 * (found.delay or 0))
    assert found.ratio_low is not None
    assert found.ratio is not None
    assert 1 < found.ratio_low < found.ratio
    assert found.abruptness == pytest.approx(math.exp(4.394 * 0.1), rel=0.35)


def test_copying_before_the_loss_settled() -> None:
    slow = losses(power_law(), EVERY)
    found = emergence(copying(150, width=0.05), slow)
    assert found.verdict == "before"
    assert (found.delay or 0) < 0
    unsettled = emergence(copying(300), losses(10 - np.log1p(EVERY), EVERY))
    assert unsettled.verdict == "before"
    assert unsettled.ratio is None
    assert "not by step 5,000" in unsettled.reason


def test_undecided_where_the_rule_decides_or_nothing_formed() -> None:
    slow = losses(power_law(), EVERY)
    strict, lenient = loss_settled(slow).step, loss_settled(slow, 0.1).step
    assert strict is not None
    assert lenient is not None
    between = emergence(copying(math.sqrt(strict * lenient), width=0.05), slow)
    assert between.verdict == "undecided"
    none = emergence(copying(1e9), slow)
    assert (none.verdict, none.reason, none.surge) == ("undecided", "copying has not formed", None)


@pytest.mark.parametrize("at", [4000, 60])
def test_errors_and_power_of_the_verdict(at: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Noise of 0.04 on copying and 0.02 nats on the loss, 100 runs each way: hardly a wrong verdict, few undecided."""
    right = "after" if at > 1000 else "before"
    metrics = fast_loss(SPARSE) if right == "after" else losses(power_law(SPARSE), SPARSE)
    rng = np.random.default_rng(1)
    counts = {"after": 0, "before": 0, "undecided": 0}
    for seed in range(100):
        noisy = metrics.with_columns(pl.col("validation_loss") + 0.02 * pl.Series(rng.normal(size=len(SPARSE))))
        counts[emergence(copying(at, 0.04, seed), noisy).verdict] += 1
    with capsys.disabled():
        print(f"\nemergence, copying {right} the loss: {counts} of 100 runs")
    assert counts["before" if right == "after" else "after"] <= 2
    assert counts[right] >= 90


def test_no_side_is_taken_when_both_come_together(capsys: pytest.CaptureFixture[str]) -> None:
    """100 runs whose copying rises exactly when the loss settles by the stricter rule."""
    metrics = fast_loss(SPARSE)
    clean = loss_settled(metrics)
    assert clean.step is not None
    rng = np.random.default_rng(2)
    counts = {"after": 0, "before": 0, "undecided": 0}
    for seed in range(100):
        noisy = metrics.with_columns(pl.col("validation_loss") + 0.02 * pl.Series(rng.normal(size=len(SPARSE))))
        counts[emergence(copying(clean.step, 0.02, seed), noisy).verdict] += 1
    with capsys.disabled():
        print(f"\nemergence, both at once: {counts} of 100 runs")
    assert counts["after"] + counts["before"] <= 5


def test_ratio_of_steps() -> None:
    assert step_ratio((200, 100, 400), (100, 100, 100)) == pytest.approx((2, 1, 4))
    assert step_ratio((200, 200, 200), (100, 50, 400)) == pytest.approx((2, 0.5, 4))
    ratio = step_ratio((400, 200, 800), (100, 50, 200))
    assert ratio == pytest.approx((4, 4 / 2 ** math.sqrt(2), 4 * 2 ** math.sqrt(2)))
    assert step_ratio((None, None, None), (1, 1, 1)) is None


def test_dips() -> None:
    steps = np.arange(12)
    down = np.array([0, 0, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.2, 0.7, 0.7, 0.7])
    assert deepest_dip(steps, down) == (pytest.approx(0.75), 6)
    assert deepest_dip(steps, np.sort(down)) == (None, None)
    wobble = 0.5 + 0.05 * np.random.default_rng(0).normal(size=60)
    assert deepest_dip(np.arange(60), wobble) == (None, None)
    assert emergence(copying(1000), fast_loss()).dip is None
