"""Claims that one thing forms before another, from runs in which both can be seen. They are of other papers."""

from dataclasses import replace

import numpy as np
import polars as pl

from copyscope.analyses.claims.events import FUNCTION_VECTOR, SINKS, TOKEN_COPYING, WHOLE_COPYING, Step
from copyscope.analyses.claims.evidence import STAGES, Evidence
from copyscope.analyses.claims.verdict import (
    MIN_RUNS,
    Verdict,
    blank,
    elsewhere,
    few,
    step_ends,
    undecided,
    with_ends,
)
from copyscope.analyses.formation.emergence import step_ratio
from copyscope.analyses.statistics.intervals import over_runs


def token_before_whole(runs: list[Evidence]) -> Verdict:
    """After Feucht et al. 2025 (arXiv 2504.03022)."""
    claim = "Token copying forms before whole-entity copying (after Feucht et al. 2025)"
    return _first(claim, TOKEN_COPYING, WHOLE_COPYING, "copyscope tasks", runs)


def induction_before_function_vector(runs: list[Evidence]) -> Verdict:
    """Yin and Steinhardt 2025 (arXiv 2502.14010)."""
    claim = "Induction heads form before function-vector heads (Yin and Steinhardt 2025)"
    return _first(claim, STAGES[1], FUNCTION_VECTOR, "copyscope score --measures all", runs)


def sinks_after_induction(runs: list[Evidence]) -> Verdict:
    """arXiv 2606.02378."""
    claim = "Attention sinks form after induction heads (arXiv 2606.02378)"
    return _first(claim, STAGES[1], SINKS, "copyscope score", runs)


def _first(claim: str, first: str, second: str, command: str, runs: list[Evidence]) -> Verdict:
    verdict = blank(
        claim,
        f"step of {second} ÷ step of {first}",
        f"The mean log ratio over runs (Student's 95 % interval, no narrower than the runs' own, at least {MIN_RUNS} "
        "runs with both) lies above 0, and no run has the second without the first.",
        "It lies below 0, and no run has the first without the second.",
    )
    seen = [(run, {**run.events, **run.steps}) for run in runs if {first, second} <= run.events.keys() | {STAGES[1]}]
    if not seen:
        return undecided(verdict, 0, f"no run was measured so; run `{command}` on it")
    pairs = [(run, events.get(first), events.get(second)) for run, events in seen]
    both = [ratio for _, a, b in pairs if a and b and (ratio := step_ratio(b, a))]
    only_first = sum(a is not None and b is None for _, a, b in pairs)
    only_second = sum(a is None and b is not None for _, a, b in pairs)
    notes = elsewhere(len(runs) - len(seen), "not measured so")
    notes += elsewhere(only_first, f"no {second} by the end")
    notes += elsewhere(only_second, f"{second} without {first}")
    verdict = replace(verdict, runs=len(both), details=_table(first, second, pairs))
    if not both:
        return undecided(verdict, 0, f"no run has both{notes}")
    value, low, high = over_runs(*np.array(both, dtype=float).T)
    verdict = replace(verdict, value=value, low=low, high=high)
    if len(both) < MIN_RUNS:
        return undecided(verdict, len(both), few(len(both)) + notes)
    if low > 1 and not only_second:
        return replace(verdict, verdict="supported", reason=f"{len(both)} runs have both{notes}")
    if high < 1 and not only_first:
        return replace(verdict, verdict="contradicted", reason=f"{second} came first{notes}")
    why = "the interval holds 1" if low <= 1 <= high else "runs with one of the two alone speak against it"
    return undecided(verdict, len(both), why + notes)


def _table(first: str, second: str, pairs: list[tuple[Evidence, Step | None, Step | None]]) -> pl.DataFrame:
    rows = []
    for run, a, b in pairs:
        ratio = None if a is None or b is None else step_ratio(b, a)
        ends = with_ends("ratio", *(ratio or (None,) * 3))
        rows.append(
            {"run": run.run, **step_ends(first, *(a or (None,) * 3)), **step_ends(second, *(b or (None,) * 3)), **ends}
        )
    return pl.DataFrame(rows, schema={"run": pl.String()} | {name: pl.Float64() for name in [*rows[0]][1:]})
