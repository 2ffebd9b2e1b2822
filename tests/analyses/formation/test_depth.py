"""Shallow to deep: planted orders, composition that only looks like depth, seeds, and the false-positive rate."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from scipy import stats

from copyscope.analyses.formation.depth import depth_trend
from copyscope.training.errors import InputError


def formation(rows: Sequence[tuple[int, int, int | None]]) -> pl.DataFrame:
    table = pl.DataFrame(rows, schema={"layer": pl.Int64, "head": pl.Int64, "step": pl.Int64}, orient="row")
    return table.with_columns(formed=pl.col("step").is_not_null())


def test_against_a_slow_version() -> None:
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
    assert (found.n_runs, found.p_composition) == (1, None)
    assert math.isnan(found.tau_low)


def test_composition_against_a_slow_version() -> None:
    """Orders of five layers counted by hand: those that keep a previous-token head below each induction head."""
    rng = np.random.default_rng(8)
    previous = [(0, 0, 100), (1, 0, 400), (2, 0, 150)]
    rows = [(1, 1, 300), (2, 1, 120), (3, 1, 500), (3, 2, int(rng.integers(200, 600))), (4, 1, 450)]
    found = depth_trend(formation(rows), formation(previous))
    layer, step = np.array([r[0] for r in rows]), np.array([r[2] for r in rows])
    seen = next(map(float, stats.kendalltau(layer, step)))
    taus = []
    for depth in itertools.permutations(range(5)):  # depth[l]: where layer l is put
        free = True
        for own, _, formed in rows:
            supports = [a for a, _, t in previous if a < own and t <= formed]
            free &= not supports or min(depth[a] for a in supports) < depth[own]
        if free:
            taus.append(next(map(float, stats.kendalltau(np.array(depth)[layer], step))))
    assert 1 < len(taus) < 120
    assert found.p_composition == pytest.approx(np.mean(np.array(taus) >= seen - 1e-9))


@pytest.mark.parametrize("layers", [4, 6, 9])
def test_planted_depth_is_found_both_ways(layers: int) -> None:
    rows = [(layer, head, 100 * layer + 10 * head + 1) for layer in range(layers) for head in range(3)]
    assert depth_trend(formation(rows)).verdict == "shallow to deep"
    assert depth_trend(formation([(layers - layer, h, s) for layer, h, s in rows])).verdict == "deep to shallow"
    three = depth_trend([formation([(a, h, s + 7 * seed) for a, h, s in rows]) for seed in range(3)])
    assert (three.verdict, three.n_runs) == ("shallow to deep", 3)
    assert three.tau_low <= three.tau <= three.tau_high


def test_the_interval_of_tau_is_of_values_that_tau_can_have() -> None:
    rows = [(layer, 0, 100 * layer + 1) for layer in range(4)]
    both = depth_trend([formation(rows), formation([(3 - layer, h, s) for layer, h, s in rows])])
    assert (both.tau_low, both.tau, both.tau_high) == (-1, 0, 1)


def test_seeds_make_a_noisy_order_clear() -> None:
    rng = np.random.default_rng(5)
    runs = [
        formation([(a, h, int(1000 + 60 * a + rng.normal(0, 150))) for a in range(8) for h in range(2)])
        for _ in range(12)
    ]
    together = depth_trend(runs)
    assert together.verdict == "shallow to deep"
    assert together.p_deep_later < np.median([depth_trend(run).p_deep_later for run in runs])


def test_depth_is_undecided_on_too_few() -> None:
    assert depth_trend(formation([(0, 0, 1), (1, 0, 2), (2, 0, 3)])).verdict == "undecided"
    single = depth_trend(formation([(0, 0, 5)]))
    assert single.verdict == "undecided"
    assert math.isnan(single.tau)
    none = depth_trend(formation([(0, 0, None), (1, 0, None)]))
    assert (none.verdict, none.n_heads, none.n_never) == ("undecided", 0, 2)
    balanced = depth_trend(formation([(0, 0, 1), (1, 0, 2), (2, 0, 2), (3, 0, 1)]))
    assert (balanced.verdict, balanced.tau) == ("undecided", 0)


def test_bad_tables() -> None:
    with pytest.raises(InputError, match="several measures"):
        depth_trend(formation([(0, 0, 1), (1, 0, 2)]).with_columns(measure=pl.Series(["a", "b"])))
    with pytest.raises(InputError, match="'formed' is missing"):
        depth_trend(pl.DataFrame({"layer": [1], "head": [1], "step": [1]}))
    one = formation([(0, 0, 1), (1, 0, 2)])
    with pytest.raises(InputError, match="1 tables of heads, 2 of previous-token heads"):
        depth_trend(one, [one, one])


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


def test_seeds_that_share_their_layers_do_not_fake_an_order(capsys: pytest.CaptureFixture[str]) -> None:
    """300 studies of five seeds whose layers have one order, unrelated to depth, in common."""
    rng = np.random.default_rng(6)
    found = {"shallow to deep": 0, "deep to shallow": 0, "undecided": 0}
    for _ in range(300):
        layer = rng.integers(50, 5000, size=5)
        runs = [
            formation([(i, h, int(step + rng.integers(0, 200))) for i, step in enumerate(layer) for h in range(2)])
            for _ in range(5)
        ]
        found[depth_trend(runs).verdict] += 1
    with capsys.disabled():
        print(f"\ndepth trend, five seeds with one order in common: {found} of 300 studies")
    assert found["shallow to deep"] <= 15 + 12
    assert found["deep to shallow"] <= 15 + 12


def composed_run(rng: np.random.Generator, slope: float = 0.0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Induction heads of 6 layers form after the previous-token head of layer 0 or 1, at random (or later by depth)."""
    first = [(0, 0, int(rng.integers(50, 2000))), (1, 0, int(rng.integers(50, 2000)))]
    rows = []
    for layer in range(1, 6):
        supports = [step for at, _, step in first if at < layer]
        rows.append((layer, 1, int(min(supports) + rng.integers(1, 3000) + slope * layer)))
    return formation(rows), formation(first)


def test_composition_alone_is_not_shallow_to_deep(capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 runs in which only composition orders heads; and 300 in which depth does too."""
    rng = np.random.default_rng(7)
    false = sum(depth_trend(*composed_run(rng)).verdict == "shallow to deep" for _ in range(1000))
    found = sum(depth_trend(*composed_run(rng, 3000.0)).verdict == "shallow to deep" for _ in range(300))
    with capsys.disabled():
        print(f"\ndepth trend: {false} of 1,000 runs that only compose; {found} of 300 that deepen as well")
    assert false <= 50 + 21
    assert found >= 200


def test_what_composition_explains_is_undecided() -> None:
    """One head a layer, in order. All need layer 0 only: the order of the rest counts. Each the one below: not."""
    rows = [(layer, 0, 100 * layer) for layer in range(1, 6)]
    assert depth_trend(formation(rows), formation([(0, 0, 10)])).verdict == "shallow to deep"
    chain = [formation([(b, 0, 100 * b), (b - 1, 1, 100 * b - 2)]) for b in range(1, 6)]
    needs = [formation([(b - 1, 0, 100 * b - 2)]) for b in range(1, 6)]
    found = depth_trend(chain, needs)
    assert found.p_deep_later <= 0.05
    assert f"(p {found.p_deep_later:.2g})" in found.reason
    assert found.verdict == "undecided"
    assert "previous-token head below every induction head" in found.reason
