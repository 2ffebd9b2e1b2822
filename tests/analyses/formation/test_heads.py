"""Formation steps on planted series: right where there is something, silent where there is only noise."""

import numpy as np
import polars as pl
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import checkpoint_steps, rise, series_table, synthetic_run

from copyscope.analyses.formation.heads import formation_map, formation_steps
from copyscope.training.errors import InputError

MEASURE = "prefix_matching_sum"
STEPS = checkpoint_steps(40)
AT = np.array(STEPS, dtype=float)


def one(curve: np.ndarray, null: np.ndarray | None = None, steps: list[int] = STEPS) -> dict:
    table = series_table({(0, 0): curve}, steps, MEASURE)
    if null is not None:
        table = pl.concat([table, series_table({(0, 0): null}, steps, f"{MEASURE}_null")])
    return formation_steps(table, MEASURE).row(0, named=True)


def test_a_planted_run_is_read_back() -> None:
    run = synthetic_run()
    for measure in ("previous_token", MEASURE):
        found = formation_steps(run.heads, measure)
        assert found.height == 16
        for row in found.iter_rows(named=True):
            when = run.planted.get((measure, row["layer"], row["head"]))
            assert row["formed"] == (when is not None), row
            if when is not None:
                assert row["bracket_low"] <= when <= row["bracket_high"] + 250, row
                assert row["bracket_low"] <= row["estimate"] <= row["bracket_high"] == row["step"]
                assert row["tokens"] == row["step"] * 2048
            else:
                assert row["status"] == "never"
                assert row["step"] is None


def test_a_jump_by_hand() -> None:
    row = one(np.array([0.1, 0.1, 0.1, 0.9, 0.9, 0.9]), steps=[0, 1, 2, 4, 8, 16])
    assert (row["step"], row["bracket_low"], row["bracket_high"]) == (4, 2, 4)
    assert row["threshold"] == pytest.approx(0.5, abs=1e-3)
    assert row["estimate"] == pytest.approx(3 * (5 / 3) ** 0.5 - 1, rel=0.02)  # the middle of the gap on log(1 + step)
    assert (row["low"], row["high"]) == pytest.approx((2, 4))  # no noise: the spacing of the checkpoints is all
    assert (row["baseline"], row["final"], row["peak"]) == (0.1, 0.9, 0.9)
    assert row["status"] == "formed"


@pytest.mark.parametrize("steps", [[0, 1, 2, 4, 8], [0, 1000, 2000, 3000, 4000]])
def test_a_bracket_that_begins_at_step_0_has_no_estimate(steps: list[int]) -> None:
    row = one(np.array([0.0, 1.0, 1.0, 1.0, 1.0]), steps=steps)
    assert (row["bracket_low"], row["step"], row["estimate"]) == (0, steps[1], None)
    assert (row["formed"], row["low"], row["high"], row["began_earlier"]) == (True, 0, steps[1], False)


@pytest.mark.parametrize("with_null", [True, False])
def test_a_series_that_begins_half_way_up_a_rise_says_so(with_null: bool) -> None:
    later = [step for step in STEPS if step >= 1500]
    noise = 0.01 * np.random.default_rng(0).normal(size=len(later))
    curve = 0.02 + 0.8 * rise(np.array(later, dtype=float), 1500, 0.3) + noise
    row = one(curve, np.full(len(later), 0.02) if with_null else None, later)
    assert (row["formed"], row["began_earlier"], row["estimate"]) == (True, True, None)
    assert row["low"] == row["bracket_low"] == 0
    assert row["high"] >= row["step"] >= 1500
    assert not one(0.02 + 0.8 * rise(AT, 1500, 0.3))["began_earlier"]
    assert not one(np.where(np.array(later) >= 3000, 0.9, 0.1), steps=later)["began_earlier"]


def test_a_rise_in_two_stages_is_described_as_two() -> None:
    noise = 0.01 * np.random.default_rng(0).normal(size=len(AT))
    row = one(0.02 + 0.35 * rise(AT, 150, 0.2) + 0.6 * rise(AT, 1700, 0.1) + noise)
    assert row["stages"] == 2
    assert (row["first_stage"], row["second_stage"]) == pytest.approx((150, 1700), rel=0.2)
    single = one(0.02 + 0.9 * rise(AT, 1000, 0.3) + noise)
    assert (single["stages"], single["first_stage"], single["second_stage"]) == (1, None, None)


def test_a_head_that_falls_back_is_flagged() -> None:
    curve = 0.8 * rise(AT, 1000) * (1 - rise(AT, 5000, 0.1)) + 0.02
    row = one(curve)
    assert row["status"] == "formed, fell back"
    assert row["fell_back"]
    assert row["formed"]


def test_a_rise_short_of_the_level_is_weak() -> None:
    """Three tenths of the room: what puts a fifth of its attention where a head would look is not yet that head."""
    row = one(0.02 + 0.2 * rise(AT, 1000))
    assert (row["status"], row["formed"], row["step"]) == ("weak", False, None)
    assert one(0.02 + 0.4 * rise(AT, 1000))["formed"]
    assert one(0.02 + 0.05 * rise(AT, 1000))["status"] == "never"
    assert formation_steps(series_table({(0, 0): 0.02 + 0.2 * rise(AT, 1000)}, STEPS, MEASURE), least=0.1)["formed"][0]


@examples(15)
@given(at=st.floats(100, 600), end=st.floats(0.4, 0.9), drift=st.floats(-0.3, 0.5), more=st.integers(1, 12))
def test_watching_longer_does_not_move_the_step(at: float, end: float, drift: float, more: int) -> None:
    """A rise, then a slow drift once the horizon is past: cut anywhere after that, the answer is the same."""
    later = np.clip(np.log(np.maximum(AT, 1) / 4500), 0, None)
    curve = np.clip(0.02 + end * rise(AT, at, 0.1) + drift * later, 0, 1)
    whole = one(curve)
    cut = len(AT) - more
    assert not whole["provisional"]
    early = one(curve[:cut], steps=STEPS[:cut])
    for name in ("step", "bracket_low", "estimate", "low", "high", "rise_low", "rise_high", "threshold"):
        assert early[name] == whole[name], name


def test_a_rise_near_the_end_is_provisional() -> None:
    assert one(0.02 + 0.8 * rise(AT, 6000, 0.05))["provisional"]


def test_standard_errors_over_prompts_make_the_interval() -> None:
    curve = 0.02 + 0.8 * rise(AT, 1600, 0.3)
    table = series_table({(0, 0): curve}, STEPS, MEASURE)
    sure, unsure = (
        formation_steps(pl.concat([table, series_table({(0, 0): np.full(len(AT), error)}, STEPS, f"{MEASURE}_se")]))
        for error in (1e-4, 0.1)
    )
    for found in (sure, unsure):
        row = found.row(0, named=True)
        assert row["interval"] == "prompts and neighbours"
        assert row["low"] <= row["bracket_low"] < row["bracket_high"] <= row["high"]
    assert (unsure["high"] - unsure["low"])[0] > 1.3 * (sure["high"] - sure["low"])[0]
    assert one(curve)["interval"] == "neighbours"
    one_prompt = pl.concat([table, series_table({(0, 0): np.full(len(AT), np.nan)}, STEPS, f"{MEASURE}_se")])
    assert formation_steps(one_prompt)["interval"].to_list() == ["neighbours"]
    with pytest.raises(InputError, match="prefix_matching_sum_se is missing at step 8, layer 0"):
        formation_steps(pl.concat([table, series_table({(0, 0): curve}, STEPS, f"{MEASURE}_se").remove(step=8)]))


def test_one_lucky_checkpoint_is_no_formation() -> None:
    curve = np.full(len(AT), 0.02)
    curve[20:22] = 0.9
    assert one(curve)["status"] == "never"


def test_a_rise_at_the_very_end_is_unconfirmed() -> None:
    curve = np.full(len(AT), 0.02)
    curve[-2:] = 0.9
    assert one(curve)["status"] == "unconfirmed"


def test_a_rise_of_the_null_alike_is_no_formation() -> None:
    curve = 0.02 + 0.8 * rise(AT, 1000)
    assert one(curve)["formed"]
    assert not one(curve, null=curve - 0.01)["formed"]


@pytest.mark.parametrize("null", [np.full(len(AT), 0.02), None])
def test_high_from_the_start_is_said_so(null: np.ndarray | None) -> None:
    row = one(np.full(len(AT), 0.9), null)
    assert row["status"] == "from the start"
    assert row["step"] is None
    assert one(np.full(len(AT), 0.1), null)["status"] == "never"


def test_without_a_null_the_start_is_judged_against_the_median_head() -> None:
    curves = {(0, h): np.full(len(AT), 0.5) for h in range(6)} | {(1, 0): np.full(len(AT), 0.95)}
    table = formation_steps(series_table(curves, STEPS, MEASURE))
    assert table["status"].to_list() == ["never"] * 6 + ["from the start"]


def test_a_head_within_the_spread_at_the_start_has_not_formed() -> None:
    rng = np.random.default_rng(0)
    curves = {(0, h): np.full(len(AT), v) for h, v in enumerate(rng.normal(0.3, 0.1, size=12))}
    curves[0, 0] = 0.1 + 0.37 * rise(AT, 500)
    assert formation_steps(series_table({(0, 0): curves[0, 0]}, STEPS, MEASURE))["formed"].all()
    assert not formation_steps(series_table(curves, STEPS, MEASURE))["formed"].any()


def noise(kind: str, rng: np.random.Generator, heads: int, steps: int) -> np.ndarray:
    """Noise-only curves of many heads: white, slowly wandering (autocorrelation 0.9), or white with rare outliers."""
    white = rng.normal(size=(heads, steps))
    if kind == "white":
        return white
    if kind == "outliers":
        return white + 8 * (rng.random((heads, steps)) < 0.02)
    out = np.empty_like(white)
    out[:, 0] = white[:, 0]
    for i in range(1, steps):
        out[:, i] = 0.9 * out[:, i - 1] + np.sqrt(1 - 0.81) * white[:, i]
    return out


@pytest.mark.parametrize("kind", ["white", "wandering", "outliers"])
@pytest.mark.parametrize("with_null", [True, False])
def test_false_positives_on_noise_only_heads(kind: str, with_null: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """1,024 heads in 64 runs around 0.3; noise of 0.15 reaches the level now and then by itself."""
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(64):
        curves = np.clip(0.3 + 0.15 * noise(kind, rng, 16, 40), 0, 1)
        table = series_table({(i // 4, i % 4): curve for i, curve in enumerate(curves)}, STEPS, MEASURE)
        if with_null:
            nulls = {(i // 4, i % 4): 0.3 + 0.005 * rng.normal(size=40) for i in range(16)}
            table = pl.concat([table, series_table(nulls, STEPS, f"{MEASURE}_null")])
        false += int(formation_steps(table, MEASURE)["formed"].sum())
    with capsys.disabled():
        print(f"\nformation: {kind} noise, null {with_null}: {false} of 1,024 heads formed ({false / 1024:.2%})")
    assert false / 1024 <= 0.05


def test_the_noise_would_fool_a_rule_without_margin() -> None:
    """The simulation above can fail: drop level and margin and nearly every noise-only head "forms"."""
    curves = 0.3 + 0.05 * noise("white", np.random.default_rng(1), 64, 40)
    table = series_table({(i // 4, i % 4): curve for i, curve in enumerate(curves)}, STEPS, MEASURE)
    loose = formation_steps(table, MEASURE, confirm=1, z=0.1, least=0.0)
    assert loose["formed"].mean() > 0.5  # type: ignore[operator]


@pytest.mark.parametrize("width", [0.05, 0.3])
@pytest.mark.parametrize("height", [0.35, 0.8])
def test_power_place_and_coverage_on_planted_rises(
    height: float, width: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 heads that rise by `height` at a random step, noise 0.02: found, in place, and inside the interval."""
    rng = np.random.default_rng(2)
    found, placed, covered = 0, 0, 0
    for _ in range(15):
        when = {(i // 4, i % 4): float(np.exp(rng.uniform(np.log(60), np.log(3000)))) for i in range(10)}
        curves = {
            name: 0.03 + height * rise(AT, at, width) + 0.02 * rng.normal(size=len(AT)) for name, at in when.items()
        }
        for row in formation_steps(series_table(curves, STEPS, MEASURE), MEASURE).iter_rows(named=True):
            truth = when[row["layer"], row["head"]]
            found += row["formed"]
            if row["formed"]:
                placed += abs(STEPS.index(row["step"]) - int(np.searchsorted(AT, truth))) <= 1
                covered += row["low"] <= truth <= row["high"]
    with capsys.disabled():
        print(
            f"\nformation: a rise of {height}, width {width}: {found / 1.5:.1f} % found, {placed / found:.1%} "
            f"within a checkpoint, {covered / found:.1%} inside the 95 % interval"
        )
    assert found >= (142 if height > 0.4 else 105)
    assert placed >= 0.9 * found
    assert covered >= 0.93 * found - 6


@pytest.mark.parametrize("likeness", [0.5, 0.9])
def test_coverage_where_neighbouring_checkpoints_are_alike(likeness: float, capsys: pytest.CaptureFixture[str]) -> None:
    """80 heads whose noise (sd 0.06) wanders: harder, since a wander at the rise looks like a part of it."""
    rng = np.random.default_rng(3)
    covered = found = 0
    for _ in range(80):
        at = float(np.exp(rng.uniform(np.log(100), np.log(1500))))
        wander = rng.normal(size=len(AT))
        for i in range(1, len(AT)):
            wander[i] = likeness * wander[i - 1] + np.sqrt(1 - likeness**2) * wander[i]
        row = one(0.05 + 0.6 * rise(AT, at, 0.3) + 0.06 * wander)
        found += row["formed"]
        covered += row["formed"] and row["low"] <= at <= row["high"]
    with capsys.disabled():
        print(
            f"\nformation: noise alike by {likeness} from one checkpoint to the next: {covered / found:.1%} of 95 % "
            "intervals hold the truth"
        )
    assert found >= 78
    assert covered >= 0.93 * found - 4


@examples(15)
@given(scale=st.floats(0.35, 0.9), jump=st.integers(1, 30), shift=st.integers(0, 5))
def test_the_step_does_not_depend_on_scale_or_row_order(scale: float, jump: int, shift: int) -> None:
    curve = np.where(np.arange(len(AT)) >= jump, scale, 0.0)
    table = series_table({(0, 0): curve}, STEPS, MEASURE)
    row = formation_steps(table.sample(fraction=1.0, shuffle=True, seed=shift)).row(0, named=True)
    assert row["step"] == STEPS[jump]
    assert row["bracket_low"] == STEPS[jump - 1]


def test_the_map_has_gaps_where_checkpoints_are_missing() -> None:
    run = synthetic_run(count=14)
    present = run.heads["step"].unique().sort().to_list()
    lacking = run.heads.filter(~((pl.col("step") == 8) & (pl.col("layer") == 1) & (pl.col("head") == 2)))
    found = formation_map(lacking, "previous_token", steps=[*present, 3])
    assert found.rows == [(layer, head) for layer in range(4) for head in range(4)]
    assert found.steps.tolist() == sorted([*present, 3])
    assert np.isnan(found.values[:, found.steps.tolist().index(3)]).all()
    eight = found.values[:, found.steps.tolist().index(8)]
    assert np.isnan(eight[6])
    assert np.isnan(eight).sum() == 1
    row = run.heads.filter((pl.col("measure") == "previous_token") & (pl.col("step") == 250) & (pl.col("layer") == 2))
    assert found.values[8:12, found.steps.tolist().index(250)].tolist() == row.sort("head")["value"].to_list()


def flat(steps: list[int]) -> pl.DataFrame:
    return series_table({(0, 0): np.zeros(len(steps))}, steps, MEASURE)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (flat([0]), "1 checkpoint; a formation step needs at least 4"),
        (flat([0, 1, 2]), "3 checkpoints"),
        (pl.concat([flat(STEPS), flat([4])]), "step 4, layer 0, head 0 twice"),
        (series_table({(0, 0): np.where(AT == 4, np.nan, 0)}, STEPS, MEASURE), "not a number at step 4, layer 0"),
        (flat(STEPS).with_columns(measure=pl.lit("prefix_matching_sun")), "did you mean 'prefix_matching_sun'"),
        (flat(STEPS).drop("layer"), "column 'layer' is missing"),
        (pl.concat([flat(STEPS), flat(STEPS).with_columns(run=pl.lit("b"))]), "several runs ('b', 'planted')"),
        (flat([-1, 1, 2, 4]), "negative"),
        (flat(STEPS).with_columns(tokens=100000000 - pl.col("tokens")), "tokens fall at step 1;"),
    ],
)
def test_bad_tables_get_one_clear_line(table: pl.DataFrame, words: str) -> None:
    with pytest.raises(InputError) as raised:
        formation_steps(table, MEASURE)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="confirm >= 1"):
        formation_steps(flat(STEPS), MEASURE, confirm=0)
    with pytest.raises(InputError, match="calibration"):
        formation_steps(flat(STEPS), f"{MEASURE}_null")
    short_null = pl.concat([flat(STEPS), flat(STEPS[:-1]).with_columns(measure=pl.lit(f"{MEASURE}_null"))])
    with pytest.raises(InputError, match="null is missing at step"):
        formation_steps(short_null, MEASURE)


def test_a_head_missing_at_one_step_is_said(caplog: pytest.LogCaptureFixture) -> None:
    heads = {(0, 0): rise(AT, 1000, 0.1), (1, 2): 0 * AT}
    table = series_table(heads, STEPS, MEASURE)
    whole = formation_steps(table, MEASURE)
    assert not caplog.records
    gap = table.filter(~((pl.col("step") == STEPS[3]) & (pl.col("layer") == 1)))
    lacking = formation_steps(gap, MEASURE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"step {STEPS[3]}, layer 1, head 2" in caplog.text
    assert lacking.select("status", "step").equals(whole.select("status", "step"))
    assert np.isnan(formation_map(gap, MEASURE).values).sum() == 1
