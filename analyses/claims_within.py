"""Claims that each run can speak to: copying after the loss settled, shallow to deep, stage after stage."""

import math

import numpy as np
import polars as pl
from scipy import stats

from analyses.bootstrap import t_interval
from analyses.depth import depth_trend
from analyses.emergence import OTHER_SHARE
from analyses.evidence import Evidence
from analyses.settling import SHARE
from analyses.verdicts import LEAST_RUNS, Verdict, blank, elsewhere, few, number, undecided


def delayed_emergence(runs: list[Evidence]) -> Verdict:
    """Claim 1: copying surges only after the loss has settled."""
    claim = blank(
        "Copying emerges late: after the loss has settled",
        "step of copying ÷ step at which the loss settled",
        f"The mean log ratio over runs (Student's 95 % interval, at least {LEAST_RUNS} runs) lies above 0 by two rules "
        f"for settling: a doubling of the steps brings less than {SHARE:.0%}, and less than {OTHER_SHARE:.0%}, of the "
        "fall so far. A loss that had not settled by half of a run counts as settling there, if copying surged before.",
        "Copying surges before the loss settles, by both rules.",
    )
    known = [run for run in runs if run.emergence is not None and run.emergence.surge is not None]
    if not known:
        why = "copying has not formed in any run" if any(run.emergence for run in runs) else "no run has losses"
        return undecided(claim, 0, why)
    details = _emergence_table(known)
    columns = [details[name].drop_nulls().to_numpy().astype(float) for name in ("ratio", "ratio, lenient rule")]
    logs = [np.log(column) for column in columns]
    intervals = [t_interval(log) for log in logs]
    found = claim._replace(
        value=float(np.exp(logs[0].mean())) if len(logs[0]) else None, low=number(math.exp(intervals[0][0])),
        high=number(math.exp(intervals[0][1])), runs=len(logs[0]), details=details,
    )  # fmt: skip
    typical = float(np.median([run.emergence.abruptness or math.nan for run in known if run.emergence]))
    back = sum(run.emergence.fell_back for run in known if run.emergence)
    dips = sum(run.emergence.dip is not None for run in known if run.emergence)
    words = f"copying takes a factor {typical:.1f} in steps from 10 to 90 %; fell back in {back}, dipped in {dips} runs"
    if min(map(len, logs)) < LEAST_RUNS:
        return undecided(found, len(logs[0]), f"{few(len(logs[0]))}; {words}")
    if all(low > 0 for low, _ in intervals):
        return found._replace(verdict="supported", reason=f"by both rules; {words}")
    if all(high < 0 for _, high in intervals):
        return found._replace(verdict="contradicted", reason=f"copying came first by both rules; {words}")
    return found._replace(reason=f"the interval holds 1 by one rule or both, or the rules disagree; {words}")


def _emergence_table(known: list[Evidence]) -> pl.DataFrame:
    rows = []
    for run in known:
        found = run.emergence
        if found is None or found.surge is None:
            continue
        ratios = []
        for settled in (found.settled, found.settled_leniently):
            before = settled.step is None and (found.surge_high or math.inf) < settled.last / 2
            at = settled.last / 2 if before else settled.step
            ratios.append(None if at is None else found.surge / max(at, 1))
        rows.append((run.run, found.verdict, found.surge, found.settled.step, found.settled_leniently.step, *ratios,
                     found.delay_tokens, found.abruptness, found.fell_back, found.dip))  # fmt: skip
    names = {"run": pl.String, "copying": pl.String, "copying surges": pl.Float64, "loss settled": pl.Int64,
             "loss settled, lenient rule": pl.Int64, "ratio": pl.Float64, "ratio, lenient rule": pl.Float64,
             "delay in tokens": pl.Float64, "10 to 90 %, factor": pl.Float64, "fell back": pl.Boolean,
             "dip": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=names, orient="row")


def shallow_to_deep(runs: list[Evidence]) -> Verdict:
    """Claim 3: induction heads form from shallow to deep layers."""
    claim = blank(
        "Induction heads form from shallow to deep layers",
        "Kendall's tau between layer and formation step of induction heads",
        f"At least {LEAST_RUNS} runs, and p <= 0.05, one-sided, against all orders of the layers and against those "
        "that leave every induction head an earlier previous-token head below it.",
        "Deeper layers form earlier (p <= 0.05).",
    )
    depths = [run.n_layers for run in runs]
    usual = max(set(depths), key=depths.count)
    used = [run for run in runs if run.n_layers == usual]
    previous = [run.previous for run in used if run.previous is not None]
    trend = depth_trend([run.induction for run in used], previous if len(previous) == len(used) else None)
    found = claim._replace(
        value=number(trend.tau), low=number(trend.tau_low), high=number(trend.tau_high), runs=trend.n_runs,
        reason=trend.reason + elsewhere(len(runs) - len(used), f"another number of layers than {usual}"),
    )  # fmt: skip
    if trend.verdict == "undecided":
        return found
    if trend.n_runs < LEAST_RUNS:
        return found._replace(reason=f"{few(trend.n_runs)}: {trend.verdict}, {found.reason}")
    return found._replace(verdict="supported" if trend.verdict == "shallow to deep" else "contradicted")


def stage_after_stage(runs: list[Evidence]) -> Verdict:
    """Claim 3, within a run: previous-token head, then induction head, then copying."""
    claim = blank(
        "Within a run: previous-token head, then induction head, then copying",
        "share of runs in that order",
        f"At least {LEAST_RUNS} runs with all three stages, and so many in that order that one of the six orders at "
        "random would not reach it (binomial, p <= 0.05). Stages between the same two checkpoints are in no order.",
        "More than half of the runs have a stage before the one it should follow.",
    )
    stages = ["previous-token head", "induction head", "copying (loss)"]
    ordered, reverse, rows = 0, 0, []
    for run in runs:
        if run.order.is_empty():
            continue
        table = run.order.filter(pl.col("stage").is_in(stages))
        steps = dict(zip(table["stage"], table["step"], strict=True))
        if any(steps.get(stage) is None for stage in stages):
            continue
        since = table["since_previous"].to_list()[1:]
        ordered += since == ["later", "later"]
        reverse += "earlier" in since
        rows.append((run.run, *(steps[stage] for stage in stages), ", ".join(map(str, since))))
    if not rows:
        return undecided(claim, 0, "no run has all three stages")
    details = pl.DataFrame(rows, schema=["run", *stages, "each after the one before"], orient="row")
    low, high = stats.binomtest(ordered, len(rows)).proportion_ci()
    found = claim._replace(value=ordered / len(rows), low=float(low), high=float(high), runs=len(rows), details=details)
    words = f"{ordered} of {len(rows)} runs"
    if len(rows) < LEAST_RUNS:
        return found._replace(reason=f"{words}; {few(len(rows))}")
    if stats.binomtest(ordered, len(rows), 1 / 6, alternative="greater").pvalue <= 0.05:
        return found._replace(verdict="supported", reason=words)
    if reverse > len(rows) / 2:
        return found._replace(verdict="contradicted", reason=f"{words}; {reverse} with a stage before its time")
    return found._replace(reason=words)
