"""Copying, depth and order, on series with known answers."""

import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from scipy import stats
from synthetic_run import checkpoint_steps, model_table, rise, series_table, synthetic_run

from analyses.formation import copying_formation, depth_trend, formation_json, order_of_appearance
from training.errors import InputError

STEPS = checkpoint_steps(40)
AT = np.array(STEPS, dtype=float)


def copying(curve: np.ndarray, measure: str = "copying_accuracy_token", **options: float) -> dict:
    curves = {measure: curve}
    if measure == "copying_loss_difference":
        curves["copying_loss_first"] = np.full(len(curve), 8.0)
    return copying_formation(model_table(curves, STEPS), **options).row(0, named=True)  # type: ignore[arg-type]


def test_copying_that_rises() -> None:
    row = copying(0.8 * rise(AT, 3000, 0.05), chance=1 / 2000)
    assert row["status"] == "formed"
    assert row["bracket_low"] <= 3000 <= row["bracket_high"]
    assert row["onset"] < row["step"]


@pytest.mark.parametrize("level", [0.0, 1 / 2000])
def test_copying_at_chance_is_not_yet(level: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        row = copying(rng.binomial(3000, level, size=len(AT)) / 3000, chance=1 / 2000)
        assert row["status"] == "not yet"
        assert row["step"] is None
        assert row["onset"] is None


def test_copying_that_barely_began() -> None:
    row = copying(0.04 * rise(AT, 3000, 0.05), chance=1 / 2000)
    assert row["status"] == "begun"
    assert row["step"] is None
    assert row["onset"] is not None


def test_copying_loss_is_read_downwards() -> None:
    row = copying(-3.0 * rise(AT, 2000, 0.05), "copying_loss_difference")
    assert row["status"] == "formed"
    assert row["bracket_low"] <= 2000 <= row["bracket_high"]
    assert row["peak"] == pytest.approx(-3.0, abs=0.01)
    assert row["threshold"] == pytest.approx(-1.5, abs=0.01)
    assert copying(3.0 * rise(AT, 2000, 0.05), "copying_loss_difference")["status"] == "not yet"
    assert copying(-3.0 * rise(AT, 1000) * (1 - rise(AT, 6000, 0.05)), "copying_loss_difference")["fell_back"]


def test_copying_bad_input() -> None:
    with pytest.raises(InputError, match="no copying_accuracy_token"):
        copying_formation(model_table({"icl_score": AT}, STEPS))
    with pytest.raises(InputError, match="chance=2"):
        copying_formation(model_table({"copying_accuracy_token": AT}, STEPS), chance=2.0)
    with pytest.raises(InputError, match="2 checkpoints"):
        copying_formation(model_table({"copying_accuracy_token": AT[:2]}, STEPS[:2]))
    with pytest.raises(InputError, match="no measure 'copying_loss_first'"):
        copying_formation(model_table({"copying_loss_difference": AT}, STEPS))


def formation(rows: Sequence[tuple[int, int, int | None]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema={"layer": pl.Int64, "head": pl.Int64, "step": pl.Int64}, orient="row")
    return table.with_columns(formed=pl.col("step").is_not_null())


def test_depth_trend_against_a_slow_version() -> None:
    rng = np.random.default_rng(3)
    rows = [(layer, head, int(rng.integers(1, 30)) * 10) for layer in range(5) for head in range(3)]
    found = depth_trend(formation(rows))
    layer, step = np.array([r[0] for r in rows]), np.array([r[2] for r in rows])
    seen, _ = map(float, stats.kendalltau(layer, step))
    every = [
        next(map(float, stats.kendalltau(np.array(order)[layer], step))) for order in itertools.permutations(range(5))
    ]
    assert found.tau == pytest.approx(seen)
    assert found.rho == pytest.approx(stats.spearmanr(layer, step)[0])
    assert found.p_deep_later == pytest.approx(np.mean(np.array(every) >= float(seen) - 1e-9))
    assert found.p_deep_earlier == pytest.approx(np.mean(np.array(every) <= float(seen) + 1e-9))


@pytest.mark.parametrize("layers", [4, 6, 9])
def test_planted_depth_is_found_both_ways(layers: int) -> None:
    rows = [(layer, head, 100 * layer + 10 * head + 1) for layer in range(layers) for head in range(3)]
    assert depth_trend(formation(rows)).verdict == "shallow to deep"
    assert depth_trend(formation([(layers - layer, h, s) for layer, h, s in rows])).verdict == "deep to shallow"


def test_depth_is_undecided_on_too_few() -> None:
    assert depth_trend(formation([(0, 0, 1), (1, 0, 2), (2, 0, 3)])).verdict == "undecided"
    single = depth_trend(formation([(0, 0, 5)]))
    assert single.verdict == "undecided"
    assert math.isnan(single.tau)
    none = depth_trend(formation([(0, 0, None), (1, 0, None)]))
    assert (none.verdict, none.n_heads, none.n_never) == ("undecided", 0, 2)
    with pytest.raises(InputError, match="several measures"):
        depth_trend(formation([(0, 0, 1), (1, 0, 2)]).with_columns(measure=pl.Series(["a", "b"])))
    with pytest.raises(InputError, match="'formed' is missing"):
        depth_trend(pl.DataFrame({"layer": [1], "head": [1], "step": [1]}))


def test_depth_false_positives(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 runs whose heads resemble each other within a layer but not across: each verdict in at most 5 %."""
    rng = np.random.default_rng(4)
    found = {"shallow to deep": 0, "deep to shallow": 0, "undecided": 0}
    for _ in range(1000):
        layer = rng.integers(50, 5000, size=6)
        rows = [(i, h, int(step + rng.integers(0, 500))) for i, step in enumerate(layer) for h in range(2)]
        found[depth_trend(formation(rows)).verdict] += 1
    with capsys.disabled():
        print(f"\ndepth trend: {found} over 1,000 runs without order")
    assert found["shallow to deep"] <= 50 + 21  # 5 % and three standard errors of the simulation itself
    assert found["deep to shallow"] <= 50 + 21


def test_order_of_appearance_in_a_planted_run() -> None:
    run = synthetic_run()
    order = order_of_appearance(run.heads, run.model)
    assert order["stage"].to_list() == [
        "previous-token head", "induction head", "copying (loss)", "copying (accuracy)"
    ]  # fmt: skip
    assert order["since_previous"].to_list() == [None, "later", "later", "later"]
    assert (order["layer"][0], order["head"][0]) == (1, 2)
    assert (order["layer"][1], order["head"][1]) == (2, 1)


def test_order_same_bracket_and_absent_stages() -> None:
    jump = np.where(AT >= 1000, 0.9, 0.0)
    heads = pl.concat([series_table({(0, 0): jump}, STEPS, m) for m in ("previous_token", "prefix_matching_sum")])
    model = model_table({"copying_accuracy_token": 0 * AT}, STEPS)
    order = order_of_appearance(heads, model)
    assert order["since_previous"].to_list() == [None, "same bracket", None]
    assert order["status"].to_list() == ["formed", "formed", "not yet"]
    early = pl.concat([series_table({(0, 0): jump}, STEPS, "previous_token"),
                       series_table({(0, 0): np.where(AT >= 4, 0.9, 0.0)}, STEPS, "prefix_matching_sum")])  # fmt: skip
    assert order_of_appearance(early, model)["since_previous"].to_list()[1] == "earlier"


def test_a_weak_early_head_does_not_speak_for_its_stage() -> None:
    weak, strong = np.where(AT >= 4, 0.2, 0.0), np.where(AT >= 2000, 0.9, 0.0)
    heads = pl.concat([series_table({(0, 0): weak, (1, 0): strong}, STEPS, "previous_token"),
                       series_table({(2, 0): strong}, STEPS, "prefix_matching_sum")])  # fmt: skip
    order = order_of_appearance(heads, model_table({"copying_accuracy_token": 0 * AT}, STEPS))
    assert order["step"][0] == 2000


def test_formation_json_is_json_and_complete() -> None:
    run = synthetic_run()
    found = formation_json(run.heads, run.model, run.metrics)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert set(found) == {"rule", "checkpoints", "heads", "depth_trend", "copying", "emergence", "order"}
    assert found["checkpoints"] == STEPS
    assert found["emergence"]["settled"]["step"] < found["copying"][0]["step"]
    with pytest.raises(InputError, match="no measure 'nothing'"):
        formation_json(run.heads, run.model, run.metrics, measures=("nothing",))
