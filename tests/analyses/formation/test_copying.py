"""Copying and order, on series with known answers."""

import json

import numpy as np
import polars as pl
import pytest
from synthetic_run import checkpoint_steps, model_table, rise, series_table, synthetic_run

from copyscope.analyses.formation.heads import copying_formation, formation_json, order_of_appearance
from copyscope.analyses.formation.order import carriers
from copyscope.training.errors import InputError

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


@pytest.mark.parametrize("with_errors", [True, False])
def test_onset_does_not_move_with_the_length_of_training(with_errors: bool) -> None:
    """Copying that starts at 1,500 and then jumps about: cut anywhere later, it starts at 1,500."""
    noise = np.random.default_rng(2).normal(size=len(AT))
    curve = np.where(AT >= 1500, 0.04 + 0.5 * rise(AT, 2600, 0.2) * (1 + 0.3 * noise), 0.0)
    onsets, statuses = set(), set()
    for cut in range(2250, STEPS[-1] + 1, 500):
        seen = [step for step in STEPS if step <= cut]
        curves = {"copying_accuracy_token": curve[: len(seen)]}
        if with_errors:
            curves["copying_accuracy_token_se"] = np.full(len(seen), 0.005)
        row = copying_formation(model_table(curves, seen), 1 / 1000).row(0, named=True)
        onsets.add(row["onset"])
        statuses.add(row["status"])
    assert onsets == {1500}
    assert "formed" in statuses


def test_copying_loss_is_read_downwards() -> None:
    row = copying(-3.0 * rise(AT, 2000, 0.05), "copying_loss_difference")
    assert row["status"] == "formed"
    assert row["bracket_low"] <= 2000 <= row["bracket_high"]
    assert row["peak"] == pytest.approx(-3.0, abs=0.01)
    assert row["threshold"] == pytest.approx(-1.5, abs=0.05)
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


def test_order_of_appearance_in_a_planted_run() -> None:
    run = synthetic_run()
    order = order_of_appearance(run.heads, run.model)
    assert order["stage"].to_list() == ["previous-token head", "induction head", "copying (loss)", "copying (accuracy)"]
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
    early = pl.concat(
        [
            series_table({(0, 0): jump}, STEPS, "previous_token"),
            series_table({(0, 0): np.where(AT >= 4, 0.9, 0.0)}, STEPS, "prefix_matching_sum"),
        ]
    )
    assert order_of_appearance(early, model)["since_previous"].to_list()[1] == "earlier"


def test_a_weak_early_head_does_not_speak_for_its_stage() -> None:
    weak, strong = np.where(AT >= 4, 0.2, 0.0), np.where(AT >= 2000, 0.9, 0.0)
    heads = pl.concat(
        [
            series_table({(0, 0): weak, (1, 0): strong}, STEPS, "previous_token"),
            series_table({(2, 0): strong}, STEPS, "prefix_matching_sum"),
        ]
    )
    order = order_of_appearance(heads, model_table({"copying_accuracy_token": 0 * AT}, STEPS))
    assert order["step"][0] == 2000


def test_formation_json_is_json_and_complete() -> None:
    run = synthetic_run()
    found = formation_json(run.heads, run.model, run.metrics)
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert set(found) == {"rule", "checkpoints", "heads", "depth_trend", "copying", "emergence", "order", "carriers"}
    assert found["checkpoints"] == STEPS
    assert found["emergence"]["settled"]["step"] < found["copying"][0]["step"]
    assert formation_json(run.heads, run.model, run.metrics.clear())["emergence"] is None
    with pytest.raises(InputError, match="no measure 'nothing'"):
        formation_json(run.heads, run.model, run.metrics, measures=("nothing",))


def test_carriers_hand_over() -> None:
    """L0H0 leads from step 16, L1H0 takes over at 2,000; a single checkpoint of L0H1 in front changes nothing."""
    first = np.where((AT >= 16) & (AT < 4000), 0.6, 0.0)
    second = np.where(AT >= 2000, 0.9, 0.0)
    blip = np.where(AT == 500, 1.0, 0.0)
    heads = series_table({(0, 0): first, (0, 1): blip, (1, 0): second}, STEPS, "previous_token")
    found = carriers(heads, "previous_token")
    assert found.select("layer", "head", "from_step", "to_step").rows() == [(0, 0, 16, 1750), (1, 0, 2000, STEPS[-1])]
    assert found["value"].to_list() == pytest.approx([0.6, 0.9])
    assert carriers(heads, "previous_token", least=0.95).is_empty()


def test_a_carrier_that_fades_leaves_a_gap() -> None:
    curve = np.where((AT >= 16) & (AT < 1000) | (AT >= 4000), 0.8, 0.05)
    found = carriers(series_table({(0, 0): curve}, STEPS, "previous_token"), "previous_token")
    assert found.select("from_step", "to_step").rows() == [(16, 750), (4000, STEPS[-1])]
