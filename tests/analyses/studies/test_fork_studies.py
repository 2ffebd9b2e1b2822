"""Studies of forks: what was planted in a table of forks is what the verdicts say; forks are made as planned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_demo import small_config, write_corpus

from copyscope.analyses.figures.paper import rendered
from copyscope.analyses.studies import OF_FORKS, SIZES, forked
from copyscope.analyses.studies.fork_figures import fork_figure
from copyscope.analyses.studies.fork_verdicts import (
    MIN_FORKS,
    commitment,
    commitment_table,
    paired,
    scatter_table,
    window,
    window_table,
)
from copyscope.analyses.studies.forked import ORDER_ALONE, PARENT, SCHEMA, fork_plan, gather_forks, train_forks
from copyscope.analyses.studies.study import study_forks, study_sweep, write_forks
from copyscope.training.errors import InputError
from copyscope.training.sweeps.driver import Outcome
from copyscope.training.sweeps.plan import PlannedRun, Sweep
from copyscope.training.sweeps.worker import Status, write_status
from copyscope.training.trainer import train

SHARES = (0.0, 0.4, 0.8)
LAST = 3000


def row(parent: int, change: str, share: float, order: int, step: float | None, head: str | None) -> dict[str, Any]:
    return dict.fromkeys(SCHEMA) | {
        "parent": f"seed={parent}",
        "parent_id": f"{parent}",
        "run_id": f"{parent}-{change}-{share}-{order}",
        "change": change,
        "share": share,
        "at": round(1000 * share),
        "until": None if change in (PARENT, ORDER_ALONE) else round(1000 * share) + 200,
        "order": order,
        "state": "finished",
        "reason": "",
        "step": step,
        "low": step,
        "high": step,
        "head": head,
        "last_step": LAST,
    }


def planted(
    scatter: Callable[[float], float],
    own: Callable[[float], float] = lambda share: share,
    moves: dict[str, Callable[[float], float]] | None = None,
    parents: int = 3,
    seed: int = 5,
) -> pl.DataFrame:
    """Forks whose ln step scatters by `scatter(share)` about their parent's, whose head it is with the chance
    `own(share)`, and which a change moves by so much."""
    draw, rows = np.random.default_rng(seed), []
    for parent in range(parents):
        base = 1000 * 1.1**parent
        rows.append(row(parent, PARENT, 0.0, 0, base, "L1H0"))
        for share in SHARES:
            for order in range(1, 9):
                step = base * float(np.exp(scatter(share) * draw.normal()))
                head = "L1H0" if draw.random() < own(share) else f"L2H{draw.integers(4)}"
                rows.append(row(parent, ORDER_ALONE, share, order, step, head))
                for change, by in (moves or {}).items():
                    moved = step * float(np.exp(by(share) + 0.02 * draw.normal()))
                    rows.append(row(parent, change, share, order, moved if moved < LAST else None, head))
    return pl.DataFrame(rows, schema=SCHEMA)


def test_what_is_decided_is_found() -> None:
    forks = planted(lambda share: 0.3 - 0.35 * share)
    step, head = commitment(forks)
    assert (step.verdict, head.verdict) == ("supported", "supported")
    assert step.value == pytest.approx(0.02 / 0.3, rel=0.4)
    assert head.value == pytest.approx(0.8, abs=0.2)
    assert step.high is not None
    assert 0.05 < step.high < 0.5
    table = commitment_table(forks)
    assert table["s / formation step"].to_list() == [*SHARES]
    assert table["scatter of ln step"].to_list() == pytest.approx([0.3, 0.16, 0.02], rel=0.4)
    assert table["scatter left"][0] is None
    assert table["forks"].to_list() == [24] * 3
    each = scatter_table(forks)
    assert each.height == 9
    by_hand = forks.filter(pl.col("change") == ORDER_ALONE, pl.col("parent") == "seed=1", pl.col("share") == 0.4)
    found = each.filter(pl.col("parent") == "seed=1", pl.col("share") == 0.4).row(0, named=True)
    assert found["scatter"] == pytest.approx(float(np.std(np.log(by_hand["step"].to_numpy()), ddof=1)))
    assert found["own_head"] == (by_hand["head"] == "L1H0").mean()


def test_what_is_left_to_chance_is_found() -> None:
    step, head = commitment(planted(lambda share: 0.2 + 0.2 * share, own=lambda share: 0.25))
    assert step.verdict == "contradicted"
    assert head.verdict == "undecided"


def test_it_takes_three_parents() -> None:
    step, head = commitment(planted(lambda share: 0.3 - 0.35 * share, parents=2))
    assert (step.verdict, head.verdict, step.runs) == ("undecided", "undecided", 2)
    assert commitment(pl.DataFrame(schema=SCHEMA))[0].verdict == "undecided"
    assert window(pl.DataFrame(schema=SCHEMA))[0].verdict == "undecided"


def test_an_interval_is_no_narrower_than_its_values_are_known() -> None:
    errors = np.array([0.3, 0.3, 0.3])
    centre, low, high = paired(np.array([0.1, 0.1, 0.1]), errors)
    assert centre == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.1 - 1.96 * 0.3 / 3**0.5, 0.1 + 1.96 * 0.3 / 3**0.5), abs=1e-3)
    apart = paired(np.array([-1.0, 0.1, 1.2]), errors)
    assert apart[1] == pytest.approx(0.1 - 4.303 * 1.1 / 3**0.5, abs=1e-3)
    assert paired(np.array([0.1]), errors[:1])[1:] == (None, None)


def test_a_window_that_matters_and_one_that_does_not() -> None:
    moves = {"Late": lambda share: 0.4 * (share > 0.5), "Never": lambda share: 0.0, "Off": lambda share: 9.0}
    forks = planted(lambda share: 0.3, moves=moves)
    verdicts = {one.claim: one for one in window(forks)}
    assert len(verdicts) == 9
    late = verdicts["Late for 200 updates from 0.8 of the formation step on moves that step"]
    assert late.verdict == "supported"
    assert late.value == pytest.approx(np.expm1(0.4), abs=0.03)  # though orders alone scatter by 0.3
    early = verdicts["Late for 200 updates from 0.4 of the formation step on moves that step"]
    never = verdicts["Never for 200 updates from 0 of the formation step on moves that step"]
    assert (early.verdict, never.verdict) == ("contradicted", "contradicted")
    off = verdicts["Off for 200 updates from 0 of the formation step on moves that step"]
    assert off.reason == "24 pairs; 24 forks without an induction head by the end, taken as formed there"
    assert late.reason == "24 pairs; another head was first in 0 of 24 that both formed one"
    assert off.verdict == "supported"
    assert window_table(forks)["pairs"].to_list() == [24] * 9


def test_forks_that_did_not_finish_are_said() -> None:
    forks = planted(lambda share: 0.3 - 0.35 * share)
    lost = forks.with_row_index().with_columns(
        state=pl.when(pl.col("index") == 20).then(pl.lit("diverged")).otherwise("state")
    )
    step = commitment(lost.drop("index"))[0]
    assert "1 not counted" in step.reason
    assert commitment_table(lost.drop("index"))["forks"].sum() == 71


@pytest.mark.parametrize("name", OF_FORKS)
def test_what_is_written(name: str, tmp_path: Path) -> None:
    moves = {"Late": lambda share: 0.4 * share} if name == "window" else None
    forks = planted(lambda share: 0.3 - 0.3 * share, moves=moves)
    result = write_forks(name, forks, tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    verdicts = {f"verdicts.{kind}" for kind in ("html", "json", "txt")}
    assert files == {"runs.csv", f"{name}.csv", "figure.png", "figure.pdf"} | verdicts
    assert pl.read_csv(tmp_path / "runs.csv").height == forks.height == result.runs.height
    assert rendered(fork_figure(name, pl.DataFrame(schema=SCHEMA), "Nothing?"), "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("end", [None, 1.4])
def test_forks_are_made_as_planned(end: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fork of the plan, each scored; those with a change end with its settings only while it lasts."""
    config = small_config(write_corpus(tmp_path / "text"), **{"checkpoints.resume_every": 4})
    run = PlannedRun(run_id=config.run_id, label="seed=0", condition="base", values={}, config=config)
    parent = Outcome(run=run, folder=tmp_path / "out" / config.run_id, status=Status(state="finished"))
    train(config, parent.folder)
    write_status(parent.folder, parent.status)
    formed = {"step": 10.0, "low": 8.0, "high": 12.0, "head": "L1H1"}
    monkeypatch.setattr(forked, "first_induction", lambda folder: formed)
    changes = [{"label": "Faster", "optimizer": {"lr": 0.05}}]
    plan = fork_plan({"at": [0.8], "orders": 2, "lasting": 0.4, "end": end, "changes": changes})
    assert plan.count(1) == 4
    assert len(plan.about([run], tmp_path / "out")) == 4
    made: list[Path] = []
    how = Sweep(runs=(run,), samples=4)
    where = {"options": None, "planned": how, "device": "cpu", "dtype": "float32", "progress": None}
    train_forks(plan, [parent], tmp_path / "out", HereEngine(made), None, **where)
    table = gather_forks(plan, [parent], tmp_path / "out")
    assert len(made) == 4
    assert table["change"].to_list() == [PARENT, ORDER_ALONE, ORDER_ALONE, "Faster", "Faster"]
    assert table["at"].to_list() == [0, 8, 8, 8, 8]
    assert table["until"].to_list() == [None, None, None, 12, 12]
    assert table["order"].to_list() == [0, 1, 2, 1, 2]
    assert table["state"].unique().to_list() == ["finished"]
    assert table["last_step"].to_list()[1:] == [14 if end else config.train.steps] * 4
    assert plan.about([run], tmp_path / "out") == []
    for folder in made:
        scored = sorted(path.name for path in (folder / "results" / "heads").iterdir())
        assert scored[-1] == f"step{14 if end else config.train.steps:08}.parquet"
        assert not (folder / "resume").exists()  # only tables stay
        assert not any((folder / "checkpoints").iterdir())
    train_forks(plan, [parent], tmp_path / "out", HereEngine(made), None, **where)
    assert len(made) == 4


class HereEngine:
    """Does each job at once, in this process."""

    def __init__(self, made: list[Path]) -> None:
        self.done: list[Any] = []
        self.made = made

    def room(self) -> int:
        return 1

    def start(self, job: Any) -> None:
        from copyscope.analyses.studies.scored_run import work
        from copyscope.training.engines.protocol import Ended
        from copyscope.training.sweeps.worker import execute

        samples, *where = job.arguments
        assert execute(job.folder, work(int(samples), *where)).state == "finished"
        self.made.append(job.folder)
        self.done.append(Ended(job, 0, ""))

    def ended(self) -> list[Any]:
        done, self.done = self.done, []
        return done

    def stop(self) -> None:
        pass


@pytest.mark.parametrize("name", OF_FORKS)
@pytest.mark.parametrize("size", SIZES)
def test_every_preset_forks_enough(name: str, size: str) -> None:
    plan, sweep = study_forks(name, size), study_sweep(name, size)
    assert plan is not None
    assert len(sweep.runs) >= 3
    assert plan.orders * (1 + len(plan.changes)) >= 8
    assert len(plan.at) >= 2
    for run in sweep.runs:
        assert run.config.checkpoints.keep == "all"
        assert (run.config.optimizer.schedule, run.config.fork.of) == ("constant", "")
        for values in plan.changes.values():
            assert run.config.with_values(values) != run.config
    if name == "window":
        assert plan.lasting is not None
        layer = plan.changes["Layer 0 attends uniformly"]["intervention.heads"]
        assert layer == [[0, head] for head in range(sweep.runs[0].config.model.n_heads)]
        assert plan.changes["Learning rate × 2"]["optimizer.lr"] == 2 * sweep.runs[0].config.optimizer.lr
    else:
        assert (plan.at[0], plan.orders >= MIN_FORKS) == (0, True)
    assert study_forks("seeds") is None


@pytest.mark.parametrize(
    "table",
    [
        {"at": [0.5]},
        {"at": [], "orders": 8},
        {"at": [0.5, 0.2], "orders": 8},
        {"at": [-0.5], "orders": 8},
        {"at": [0.5], "orders": 1},
        {"at": [0.5], "orders": 8, "last": 1},
        {"at": [0.5], "orders": 8, "lasting": 0},
        {"at": [0.5], "orders": 8, "lasting": 0.4, "end": 0.9},
        {"at": [0.5], "orders": 8, "changes": [{"optimizer": {"lr": 1.0}}]},
        {"at": [0.5], "orders": 8, "changes": [{"label": "Wide", "model": {"d_model": 64}}]},
        {"at": [0.5], "orders": 8, "changes": [{"label": "Nothing"}]},
    ],
)
def test_a_plan_that_cannot_be_is_one_line(table: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="fork") as error:
        fork_plan(table)
    assert "\n" not in str(error.value)
