"""Claims that one thing forms before another: planted runs in either order, in one alone, in none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_run import model_table, rise, series_table
from written_run import AT, STEPS, config, write_run

from copyscope.analyses.claims.events import FUNCTION_VECTOR, SINKS, TOKEN_COPYING, WHOLE_COPYING, events_of
from copyscope.analyses.claims.evidence import STAGES, Evidence, gather
from copyscope.analyses.claims.order import induction_before_function_vector, sinks_after_induction, token_before_whole
from copyscope.analyses.claims.verdict import Verdict

FLAT = np.ones(len(AT))
CLAIMS: list[tuple[Callable[[list[Evidence]], Verdict], str, str]] = [
    (token_before_whole, TOKEN_COPYING, WHOLE_COPYING),
    (induction_before_function_vector, STAGES[1], FUNCTION_VECTOR),
    (sinks_after_induction, STAGES[1], SINKS),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Its induction head forms at about 2,400."""
    return gather(write_run(tmp_path_factory.mktemp("order") / "run", config(), 4000))


def with_steps(run: Evidence, number: int, first: str, at: float | None, second: str, then: float | None) -> Evidence:
    """The run with both events at these steps, seeds apart; an induction head is where the run has it, times `at`."""
    factor = 1 + 0.03 * number
    events = {n: None if s is None else (s * factor, s * 0.95, s * 1.1) for n, s in ((first, at), (second, then))}
    changed = replace(run, run=f"run{number}", events=events)
    return changed if at is not None else replace(changed, induction=run.induction.clear())


@pytest.mark.parametrize(("judge", "first", "second"), CLAIMS)
@pytest.mark.parametrize(("then", "verdict"), [(5000.0, "supported"), (1000.0, "contradicted"), (2400.0, "undecided")])
def test_the_order_that_was_planted(
    run: Evidence, judge: Callable[..., Verdict], first: str, second: str, then: float, verdict: str
) -> None:
    runs = [with_steps(run, i, first, 2400.0, second, then) for i in range(3)]
    found = judge(runs)
    assert (found.verdict, found.runs) == (verdict, 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= then / 2400 * 1.05
    assert found.high >= then / 2400 * 0.95
    assert judge(runs[:2]).verdict == "undecided"
    opposite = (None, then) if verdict == "supported" else (2400.0, None)
    alone = with_steps(run, 3, first, opposite[0], second, opposite[1])
    assert judge([*runs, alone]).verdict == "undecided"


def test_runs_that_were_not_measured_decide_nothing(run: Evidence) -> None:
    assert set(run.events) == set()
    for judge, first, second in CLAIMS:
        found = judge([run] * 3)
        assert (found.verdict, found.runs, found.value) == ("undecided", 0, None)
        neither = judge([with_steps(run, 0, first, None, second, None)])
        assert (neither.verdict, neither.runs) == ("undecided", 0)


def test_the_steps_of_events_are_read_from_the_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = {(layer, head): 0.01 * rng.normal(size=len(AT)) for layer in range(4) for head in range(4)}
    sinks = {name: 0.1 + (0.6 * rise(AT, 3000, 0.05) if name[0] > 1 else 0) + curve for name, curve in noise.items()}
    vector = {name: (0.2 * rise(AT, 1500, 0.1) if name == (2, 1) else 0) + 0.1 * c for name, c in noise.items()}
    heads = pl.concat(
        [
            series_table(sinks, STEPS, "bos_sink"),
            series_table(vector, STEPS, "function_vector"),
            series_table(dict.fromkeys(noise, 0 * FLAT), STEPS, "function_vector_null"),
            series_table({name: FLAT * (0.001 if name == (2, 1) else 1) for name in noise}, STEPS, "function_vector_p"),
        ]
    )
    tasks = pl.concat([of_names("strings token", 900), of_names("strings whole", 1800), of_names("names whole", 2600)])
    found = events_of(heads, tasks)
    for name, step in ((SINKS, 3000), (FUNCTION_VECTOR, 1500), (TOKEN_COPYING, 900), (WHOLE_COPYING, 2600)):
        event = found[name]
        assert event is not None, name
        assert event[0] == pytest.approx(step, rel=0.12)
        assert event[1] <= event[0] <= event[2]
    strings = events_of(heads, tasks.filter(pl.col("variant") != "names whole"))[WHOLE_COPYING]
    assert strings is not None
    assert strings[0] == pytest.approx(1800, rel=0.12)
    unsure = heads.with_columns(
        value=pl.when(pl.col("measure") == "function_vector_p").then(1.0).otherwise(pl.col("value"))
    )
    assert events_of(unsure, None)[FUNCTION_VECTOR] is None
    assert set(events_of(heads.filter(pl.col("measure") == "bos_sink"), None)) == {SINKS}


def of_names(variant: str, at: float) -> pl.DataFrame:
    curves = {
        "choice_accuracy": 0.125 + 0.6 * rise(AT, at, 0.1),
        "choice_accuracy_se": 0.01 * FLAT,
        "chance": 0.125 * FLAT,
        "chance_uniform": 0.125 * FLAT,
        "prompts": 128 * FLAT,
    }
    return model_table(curves, STEPS).with_columns(task=pl.lit("identifiers"), variant=pl.lit(variant))
