"""Which runs are forks of which, what they are called, and what is held against chance."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats
from written_run import config, write_run

from copyscope.analyses.page.contents import Entry
from copyscope.analyses.page.family import BEYOND, WITHIN, Outcome, against_chance, chance_table, family_entries
from copyscope.analyses.page.payload import payload
from copyscope.analyses.statistics.intervals import prediction_interval
from copyscope.analyses.tables.family import Branch, families, what_differs
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run
from copyscope.training.checkpoints.trunk import Trunk, as_json, place_of
from copyscope.training.files import write_json


def trunk(parent: Path, fork: Path, step: int, run_id: str = "gone", **fields: object) -> Trunk:
    place = place_of(parent, fork)
    made = Trunk(
        step=step,
        tokens=0,
        run_id=run_id,
        place=place,
        store=place,
        text=None,
        changes={},
        until=None,
        kind="null",
        label="null",
        state=None,
        replay={},
        checkpoints={},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


LR = {"optimizer.lr": (0.008, 0.004), "checkpoints.keep": ("all", "none")}
"""What differs, and what is only written down otherwise."""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"changes": {"checkpoints.keep": ("all", "none")}}, "null fork"),
        ({"kind": "placebo", "label": "at 100 placebo2", "changes": {"seeds.data": (0, 2)}}, "placebo 2"),
        ({"kind": "placebo", "label": "data=7", "changes": {"seeds.data": (0, 7)}}, "other order (seed 0 → 7)"),
        ({"kind": "changed", "changes": LR}, "lr × 0.5"),
        ({"kind": "changed", "changes": LR, "until": 150}, "lr × 0.5, for 50 updates"),
        ({"kind": "changed", "changes": {"optimizer.weight_decay": (0.1, 0.0)}}, "weight decay 0.1 → 0"),
        ({"kind": "changed", "changes": {"data.corpus": ("python", "/a/b/text.txt")}}, "corpus python → text.txt"),
        ({"kind": "changed", "changes": {"intervention.heads": ([], [[1, 0]])}}, "held heads none → L1H0"),
        ({"kind": "changed", "changes": {"intervention.skip_predictable": (False, True)}}, "skip predictable off → on"),
        ({"kind": "changed", "changes": {"intervention.from_step": (0, None)}}, "from step 0 → none"),
    ],
)
def test_a_fork_is_called_by_what_differs(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert what_differs(trunk(tmp_path / "run", tmp_path / "fork", 100, **fields)) == words


@pytest.fixture
def grown(tmp_path: Path) -> list[Run]:
    """run → lr (from 100) → its placebo (from 700); two placebos of run from 100 and one from 300; a fork of a run that
    is gone; a run that nothing was forked from. As given: forks before their parents, and not lr."""
    names = ["run", "lr", "under", "a", "b", "late", "lost", "alone"]
    place = {name: write_run(tmp_path / name, config(), copies_at=3000) for name in names}
    placebo = {"kind": "placebo", "changes": {"seeds.data": (0, 1)}}
    for name, parent, step, fields in (
        ("lr", "run", 100, {"kind": "changed", "changes": LR}),
        ("under", "lr", 700, {**placebo, "label": "placebo1"}),
        ("a", "run", 100, {**placebo, "label": "placebo1"}),
        ("b", "run", 100, {**placebo, "label": "placebo2"}),
        ("late", "run", 300, {**placebo, "label": "placebo1"}),
        ("lost", "nowhere", 300, {}),
    ):
        above = place.get(parent, tmp_path / parent)
        write_json(place[name] / "fork.json", as_json(trunk(above, place[name], step, f"id of {parent}", **fields)))
    given = ["under", "b", "a", "late", "lost", "run", "alone"]
    return [replace(open_run(place[name]), trunk=None) for name in given]


def test_a_family_is_one_tree_whatever_order_its_runs_are_given_in(grown: list[Run]) -> None:
    first, second = families(grown)
    told = [(one.run, one.parent, one.at, one.title) for one in first]
    assert told == [
        (5, None, 0, "run"),
        (3, 0, 300, "placebo 1 from 300"),  # the latest fork is nearest to its parent
        (None, 0, 100, "lr × 0.5"),  # not given, but its fork was
        (0, 2, 700, "lr × 0.5, then placebo 1"),
        (2, 0, 100, "placebo 1 from 100"),
        (1, 0, 100, "placebo 2"),
    ]
    assert [(one.run, one.name, one.kind) for one in second] == [(None, "nowhere", "run"), (4, "lost", "null")]


def test_a_parent_that_was_moved_is_known_by_its_id(grown: list[Run], tmp_path: Path) -> None:
    moved = tmp_path / "run"
    run_id = grown[5].config.run_id  # type: ignore[union-attr]
    fork = tmp_path / "a"
    elsewhere = trunk(tmp_path / "elsewhere", fork, 100, run_id)
    write_json(fork / "fork.json", as_json(elsewhere))
    (family,) = families([open_run(moved), open_run(fork)])
    assert [one.run for one in family] == [0, 1]


def test_the_index_has_the_families(grown: list[Run]) -> None:
    found = payload([grown[0], grown[5]]).index
    (family,) = found["families"]
    assert [one["run"] for one in family["branches"]] == [1, None, 0]
    last = family["formed"]["columns"].index("last step")
    assert [row[last] is None for row in family["formed"]["rows"]] == [False, True, False]
    tidy = family["formed"]["tidy"]["columns"]
    assert len(tidy) == len(set(tidy)) == len(family["formed"]["columns"])
    first = dict(zip(tidy, family["formed"]["rows"][0], strict=True))
    assert (first["previous_token_head"], first["induction_head"]) == ("L0H1", "L1H0")
    assert first["final_copying_accuracy"] == pytest.approx(0.6, abs=0.05)
    assert any("the first 700 steps are shared with lr, then placebo 1" in line for line in found["summary"])
    assert family["chance"]["rows"] == []  # no change is on the page


def made(step: float | None, accuracy: float, last: int = 2000) -> dict[str, object]:
    event = {"kind": "induction", "step": step, "low": None, "high": None, "head": 3}
    curve = {"steps": [0, last], "values": [0.0, accuracy], "se": [0.01, 0.01]}
    return {
        "steps": [0, last],
        "n_heads": 4,
        "story": {"events": [event]},
        "curves": {"copying_accuracy_token": curve},
    }


def test_changes_are_held_against_placebos_of_the_same_step_and_their_parent() -> None:
    def branch(kind: str, at: int, parent: int | None = 0) -> Branch:
        title = f"{kind} {at}"
        return Branch(run=0, name=title, parent=parent, at=at, until=None, kind=kind, label=title, title=title)

    branches = [
        branch("run", 0, None),
        branch("changed", 300),
        branch("placebo", 300),
        branch("placebo", 300),
        branch("placebo", 100),
        branch("changed", 100),
        branch("changed", 50),
    ]
    fields = [made(step, accuracy) for step, accuracy in [(800, 0.5), (1600, 0.52)] + 2 * [(820, 0.47), (790, 0.55)]]
    fields += [made(900, 0.5)]
    table = chance_table(branches, fields)
    assert table["branch"].to_list() == 2 * ["changed 300"] + 2 * ["changed 100"]  # none at 50 has a placebo
    late, accuracy = table.rows(named=True)[:2]
    assert (late["value"], late["parent"], late["runs"], late["verdict"]) == (1600, 800, 3, BEYOND)
    logs = np.log([820, 790, 800])
    half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) * math.sqrt(4 / 3)
    assert late["to"] == pytest.approx(math.exp(logs.mean() + half))
    assert (accuracy["value"], accuracy["verdict"]) == (0.52, WITHIN)
    assert table["verdict"].to_list()[2].startswith("undecided")  # one placebo and the parent
    formed_before = [made(40, 0.5)] * len(branches)
    assert chance_table(branches, formed_before).filter(pl.col("what") == "induction head").is_empty()
    without: list[dict[str, object] | None] = [None, *fields[1:]]
    assert chance_table(branches, without)["runs"].to_list()[0] == 2


def test_what_has_not_formed() -> None:
    draws = [Outcome(float(step), 2000) for step in (400, 420, 440)]
    assert against_chance(Outcome(None, 2000), draws)[2].startswith(BEYOND)
    assert against_chance(Outcome(None, 450), draws)[2].startswith("undecided")
    assert against_chance(Outcome(500.0, 2000), [*draws, Outcome(None, 2000)])[0] is None


def test_equal_runs_scatter_by_their_own_errors() -> None:
    draws = [Outcome(0.0, 2000, share=True, error=0.01)] * 3
    low, high, verdict = against_chance(Outcome(0.004, 2000, share=True), draws)
    assert (low, verdict) == (0.0, WITHIN)
    assert high == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 * math.sqrt(4 / 3))
    bare = [replace(one, error=0.0) for one in draws]
    assert against_chance(Outcome(0.004, 2000, share=True), bare)[2].startswith("undecided")


def test_one_more_value_falls_into_the_interval_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(1500, 5))
    inside = [low <= row[4] <= high for row in draws for low, high in [prediction_interval(row[:4])]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    assert math.isnan(prediction_interval(np.ones(1))[0])


def test_a_family_without_tables_of_a_branch(grown: list[Run]) -> None:
    fields = {"steps": [0], "n_heads": 1, "story": {"events": []}, "curves": {}}
    entries = [Entry(dict(fields), {}, [], None) for _ in grown]
    assert len(family_entries(grown, entries)) == 2
