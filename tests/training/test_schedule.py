"""Which steps are saved, and the learning rate of each."""

import pytest

from copyscope.training.config import RunConfig
from copyscope.training.schedule import checkpoint_steps, kept_steps, learning_rate


def test_steps_saved_are_log_spaced_then_even() -> None:
    wanted = RunConfig().with_values({"train.steps": 50, "checkpoints.every": 20, "checkpoints.steps": [33]})
    assert checkpoint_steps(wanted) == [0, 1, 2, 4, 8, 16, 20, 33, 40, 50]
    assert checkpoint_steps(RunConfig().with_values({"train.steps": 3, "checkpoints.every": 4})) == [0, 1, 2, 3]


def test_steps_that_stay() -> None:
    values = {"train.steps": 50, "checkpoints.every": 20, "checkpoints.steps": [33, 99]}
    kept = {
        keep: kept_steps(RunConfig().with_values({**values, "checkpoints.keep": keep}))
        for keep in ("all", "subset", "none")
    }
    assert kept == {"all": {0, 1, 2, 4, 8, 16, 20, 33, 40, 50}, "subset": {33, 50}, "none": set()}


def test_learning_rate_rises_holds_and_falls() -> None:
    values = {"train.steps": 100, "optimizer.warmup_steps": 10, "optimizer.lr": 1.0, "optimizer.decay_share": 0.5}
    linear = RunConfig().with_values({**values, "optimizer.schedule": "linear", "optimizer.final_lr_share": 0.2})
    assert [learning_rate(linear, step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(linear, 75) == pytest.approx(0.6)
    assert learning_rate(linear, 99) == pytest.approx(0.2, abs=0.02)
    assert learning_rate(RunConfig().with_values(values), 99) == 1.0
