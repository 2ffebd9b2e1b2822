"""Claims that each run can speak to: copying after the loss settled, shallow to deep, stage after stage."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from copyscope.analyses.claims.evidence import Evidence
from copyscope.analyses.claims.verdict import (
    MIN_RUNS,
    Verdict,
    blank,
    elsewhere,
    few,
    number,
    step_ends,
    undecided,
    with_ends,
)
from copyscope.analyses.formation.depth import DepthTrend, depth_trend
from copyscope.analyses.formation.emergence import OTHER_SHARE, Emergence, Estimate, step_ratio
from copyscope.analyses.formation.loss import SHARE
from copyscope.analyses.formation.step_rule import middle
from copyscope.analyses.statistics.intervals import over_runs


def delayed_emergence(runs: list[Evidence]) -> Verdict:
    """Claim 1: copying surges only after the loss has settled."""
    claim = blank(
        "Copying emerges late: after the loss has settled",
        "step of copying ÷ step at which the loss settled",
        f"The mean log ratio over runs (Student's 95 % interval, no narrower than the runs' own, at least {MIN_RUNS} "
        f"runs) lies above 0 by two rules for settling: a doubling of the steps brings less than {SHARE:.0%}, and less "
        f"than {OTHER_SHARE:.0%}, of the fall so far. A loss that had not settled by half of a run counts as settling "
        "there, if copying surged before; the ratio is then an upper bound.",
        "Copying surges before the loss settles, by both rules.",
    )
    known = [run for run in runs if run.emergence is not None and run.emergence.surge is not None]
    if not known:
        why = "copying has not formed in any run" if any(run.emergence for run in runs) else "no run has losses"
        return undecided(claim, 0, why)
    rules = [_ratios(known, lenient) for lenient in (False, True)]
    strict, lenient = (_over_runs(of_rule) for of_rule in rules)
    counts = [len(of_rule) for of_rule in rules]
    verdict = replace(
        claim,
        value=number(strict.value),
        low=number(strict.low),
        high=number(strict.high),
        runs=counts[0],
        details=_emergence_table(known),
    )
    typical = float(np.median([run.emergence.abruptness or math.nan for run in known if run.emergence]))
    back = sum(run.emergence.fell_back for run in known if run.emergence)
    dips = sum(run.emergence.dip is not None for run in known if run.emergence)
    by_lenient = f"by the lenient rule {lenient.words()}; " if counts[1] else ""
    words = (
        f"{by_lenient}copying takes a factor {typical:.1f} in steps from 10 to 90 %; fell back in {back}, "
        f"dipped in {dips} runs"
    )
    if min(counts) < MIN_RUNS:
        why = "copying surged in the second half, with the loss not settled by then: longer runs would tell"
        return undecided(verdict, counts[0], f"{few(min(counts))}{elsewhere(len(known) - min(counts), why)}; {words}")
    if strict.low > 1 and lenient.low > 1:
        return replace(verdict, verdict="supported", reason=words)
    if strict.high < 1 and lenient.high < 1:
        return replace(verdict, verdict="contradicted", reason=f"copying came first; {words}")
    return replace(verdict, reason=f"the two rules do not agree on one side of 1; {words}")


@dataclass(frozen=True, kw_only=True)
class _Ratio:
    """Step of copying over the step at which the loss settled; only an upper bound, with NaN for `value` and `low`,
    where the loss has not settled yet."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def words(self) -> str:
        if math.isnan(self.value):
            return f"< {self.high:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, kw_only=True)
class _RunRatio:
    """The same of one run."""

    ratio: tuple[float, float, float]
    """With its 95 % interval."""
    settled: bool
    """False: the loss is taken to settle at half of the run, the earliest that it can, so that the ratio is a bound."""


def _over_runs(ratios: list[_RunRatio]) -> _Ratio:
    """The geometric mean over runs; a bound if it is one in any of them."""
    if not ratios:
        return _Ratio()
    value, low, high = over_runs(*np.array([run.ratio for run in ratios], dtype=float).T)
    return _Ratio(value=value, low=low, high=high) if all(run.settled for run in ratios) else _Ratio(high=high)


def _ratios(known: list[Evidence], lenient: bool) -> list[_RunRatio]:
    """Of the runs that have one."""
    ratios = [_ratio(run.emergence, lenient) for run in known if run.emergence is not None]
    return [ratio for ratio in ratios if ratio is not None]


def _ratio(emergence: Emergence, lenient: bool) -> _RunRatio | None:
    """Of one run; None where copying has not formed, or formed too late to compare it with a loss that goes on
    falling."""
    surge: Estimate = (emergence.surge, emergence.surge_low, emergence.surge_high)
    settled = emergence.settled_leniently if lenient else emergence.settled
    at: Estimate = (settled.step, settled.low, settled.high)
    if settled.step is None and (emergence.surge_high or math.inf) < settled.last / 2:
        half = settled.last / 2
        at = (half, half, half)
    ratio = step_ratio(surge, at)
    return None if ratio is None else _RunRatio(ratio=ratio, settled=settled.step is not None)


def _emergence_table(known: list[Evidence]) -> pl.DataFrame:
    """A row a run. Of what is only bounded the value is null, and one end of the interval with it."""
    rows: list[dict[str, Any]] = []
    for run in known:
        emergence = run.emergence
        if emergence is None:
            continue
        row: dict[str, Any] = {"run": run.run, "copying": emergence.verdict}
        row |= step_ends("copying surges", emergence.surge, emergence.surge_low, emergence.surge_high)
        for name, lenient in (("", False), (", lenient rule", True)):
            settled = emergence.settled_leniently if lenient else emergence.settled
            if settled.step is None:
                row |= with_ends(f"loss settled{name}", None, settled.last / 2, None)
            else:
                row |= with_ends(f"loss settled{name}", settled.step, settled.low, settled.high)
            ratio = _ratio(emergence, lenient)
            if ratio is None or ratio.settled:
                row |= with_ends(f"ratio{name}", *((None,) * 3 if ratio is None else ratio.ratio))
            else:
                row |= with_ends(f"ratio{name}", None, None, ratio.ratio[2])
        row |= {"delay in tokens": emergence.delay_tokens, "10 to 90 %, factor": emergence.abruptness}
        rows.append(row | {"fell back": emergence.fell_back, "dip": emergence.dip})
    words = {"run": pl.String(), "copying": pl.String(), "fell back": pl.Boolean()}
    return pl.DataFrame(rows, schema={name: words.get(name, pl.Float64()) for name in rows[0]} if rows else None)


def shallow_to_deep(runs: list[Evidence]) -> Verdict:
    """Claim 3: induction heads form from shallow to deep layers."""
    used, note = _of_usual_depth(runs)
    previous = [run.previous for run in used if run.previous is not None]
    trend = depth_trend([run.induction for run in used], previous if len(previous) == len(used) else None)
    claim = blank(
        "Induction heads form from shallow to deep layers",
        "Kendall's tau between layer and formation step of induction heads",
        f"At least {MIN_RUNS} runs, and p <= 0.05, one-sided, against all orders of the layers and against those "
        "that leave every induction head an earlier previous-token head below it.",
        "Deeper layers form earlier (p <= 0.05).",
    )
    return _on_trend(claim, trend, note)


def previous_shallow_to_deep(runs: list[Evidence]) -> Verdict:
    """The same question put to previous-token heads, which need no other head below them."""
    used, note = _of_usual_depth(runs)
    claim = blank(
        "Previous-token heads form from shallow to deep layers",
        "Kendall's tau between layer and formation step of previous-token heads",
        f"At least {MIN_RUNS} runs, and p <= 0.05, one-sided, against all orders of the layers.",
        "Deeper layers form earlier (p <= 0.05).",
    )
    tables = [run.previous for run in used if run.previous is not None]
    if not tables:
        return undecided(claim, 0, f"no run has scores of previous-token heads{note}")
    return _on_trend(claim, depth_trend(tables), note)


def _of_usual_depth(runs: list[Evidence]) -> tuple[list[Evidence], str]:
    """The runs with the commonest number of layers, and a note on the others."""
    depths = [run.n_layers for run in runs]
    usual = max(set(depths), key=depths.count, default=0)
    used = [run for run in runs if run.n_layers == usual]
    return used, elsewhere(len(runs) - len(used), f"another number of layers than {usual}")


def _on_trend(claim: Verdict, trend: DepthTrend, note: str) -> Verdict:
    verdict = replace(
        claim,
        value=number(trend.tau),
        low=number(trend.tau_low),
        high=number(trend.tau_high),
        runs=trend.n_runs,
        reason=trend.reason + note,
    )
    if trend.verdict == "undecided":
        return verdict
    if trend.n_runs < MIN_RUNS:
        return replace(verdict, reason=f"{few(trend.n_runs)}: {trend.verdict}, {verdict.reason}")
    return replace(verdict, verdict="supported" if trend.verdict == "shallow to deep" else "contradicted")


def stage_after_stage(runs: list[Evidence]) -> Verdict:
    """Claim 3, within a run: previous-token head, then induction head, then copying."""
    claim = blank(
        "Within a run: previous-token head, then induction head, then copying",
        "share of runs in that order",
        f"At least {MIN_RUNS} runs with all three stages, and so many in that order that one of the six orders at "
        "random would not reach it (binomial, p <= 0.05). Stages between the same two checkpoints are in no order.",
        "More than half of the runs have a stage before the one it should follow.",
    )
    stages = ["previous-token head", "induction head", "copying (loss)"]
    ordered, reverse = 0, 0
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run.order.is_empty():
            continue
        table = run.order.filter(pl.col("stage").is_in(stages))
        events = table.drop_nulls("step").rows_by_key("stage", named=True, unique=True)
        if any(stage not in events for stage in stages):
            continue
        since = table["since_previous"].to_list()[1:]
        ordered += since == ["later", "later"]
        reverse += "earlier" in since
        row: dict[str, Any] = {"run": run.run}
        for stage in stages:
            row |= step_ends(stage, middle(events[stage]), events[stage]["low"], events[stage]["high"])
        rows.append(row | {"each after the one before": ", ".join(map(str, since))})
    if not rows:
        return undecided(claim, 0, "no run has all three stages")
    details = pl.DataFrame(rows, infer_schema_length=None)
    low, high = stats.binomtest(ordered, len(rows)).proportion_ci()
    verdict = replace(
        claim, value=ordered / len(rows), low=float(low), high=float(high), runs=len(rows), details=details
    )
    words = f"{ordered} of {len(rows)} runs"
    if len(rows) < MIN_RUNS:
        return replace(verdict, reason=f"{words}; {few(len(rows))}")
    if stats.binomtest(ordered, len(rows), 1 / 6, alternative="greater").pvalue <= 0.05:
        return replace(verdict, verdict="supported", reason=words)
    if reverse > len(rows) / 2:
        return replace(verdict, verdict="contradicted", reason=f"{words}; {reverse} with a stage out of order")
    return replace(verdict, reason=words)
