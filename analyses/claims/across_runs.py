"""Claims on a setting, from runs that differ in it: batch size, regularization, learning rate."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.claims.batch_size import LAWS, Exponent, batch_exponent
from copyscope.analyses.claims.contrast import INTERVALS, contrast, step_effect
from copyscope.analyses.claims.evidence import Evidence
from copyscope.analyses.claims.factors import comparable, varied
from copyscope.analyses.claims.intensity import CLAIMED, intensity
from copyscope.analyses.claims.verdict import (
    MIN_RUNS,
    Verdict,
    blank,
    elsewhere,
    few,
    line_of,
    may_move,
    number,
    on_exponent,
    step_ends,
    taken_as_later,
    undated,
    undecided,
    with_ends,
)
from copyscope.analyses.statistics.censored import censored_slope
from copyscope.analyses.statistics.intervals import Slope

REGULARIZATION = ("optimizer.weight_decay", "model.attention_dropout", "model.residual_dropout")
RATE, BATCH = "optimizer.lr", "train.batch_size"
SCHEDULE = (
    "optimizer.warmup_steps",
    "optimizer.schedule",
    "optimizer.decay_share",
    "optimizer.final_lr_share",
    "train.steps",
)
"""What may vary along with the learning rate: it belongs to it."""


def updates_not_tokens(runs: list[Evidence]) -> Verdict:
    """Claim 2: it is updates that count, not tokens."""
    laws = ", ".join(f"{law:g} {name}" for law, name in LAWS.items())
    claim = blank(
        "Updates count, not tokens: copying forms at the same step for every batch size",
        f"exponent of the batch size in the formation step ({laws})",
        f"{line_of('batch size')}; 0 is the only one of the three exponents in the 95 % interval. Three batch sizes, "
        "the largest four times the smallest.",
        "The interval does not hold 0.",
    )
    used, notes = _comparable(runs, BATCH)
    if not used:
        return undecided(claim, 0, notes)
    verdict, fit = on_size(claim, used, "batch size", [run.config[BATCH] for run in used], notes)
    if fit.law == LAWS[0.0]:
        return replace(verdict, verdict="supported")
    if fit.enough and not fit.low <= 0 <= fit.high:
        law = f"the {fit.law} law fits: " if fit.law else ""
        return replace(verdict, verdict="contradicted", reason=law + verdict.reason)
    return verdict


def on_size(
    claim: Verdict, runs: Sequence[Evidence], name: str, sizes: Sequence[int], notes: str = ""
) -> tuple[Verdict, Exponent]:
    """The claim, not decided yet, with the exponent of each run's size (> 0; called `name`) in the formation step."""
    sized = list(zip(runs, sizes, strict=True))
    formed = [(run, size) for run, size in sized if run.step is not None]
    late = [(run, size) for run, size in sized if run.late]
    steps, low, high = np.array([(run.step, *run.copying.interval) for run, _ in formed], dtype=float).reshape(-1, 3).T
    fit = batch_exponent(
        np.array([size for _, size in formed], dtype=float),
        steps,
        low,
        high,
        np.array([size for _, size in late], dtype=float),
        np.array([run.last_step for run, _ in late], dtype=float),
    )
    verdict = replace(
        claim,
        value=number(fit.exponent),
        low=number(fit.low),
        high=number(fit.high),
        runs=len(runs),
        reason=fit.reason + notes + on_steps(runs),
        details=steps_table(runs, name, sizes),
    )
    return verdict, fit


def regularization(runs: list[Evidence]) -> Verdict:
    """Claim 4: regularization makes copying earlier or stronger."""
    claim = blank(
        "Regularization helps copying: it forms earlier or ends more accurate",
        "relative change of the formation step, for the strongest setting",
        f"{INTERVALS}, 95 % for all that decide together: one on the better side of 0, none on the worse. Loss and ICL "
        "score stand beside them and do not decide.",
        "Copying forms later or ends less accurate, and nothing speaks for it.",
    )
    settings = [name for name in REGULARIZATION if name in varied([run.config for run in runs if run.config])]
    verdicts = [_contrasted(runs, name, len(settings), claim) for name in settings]
    if not verdicts:
        return undecided(claim, 0, f"the runs differ in none of {', '.join(REGULARIZATION)}")
    decided = [one for one in verdicts if one.verdict != "undecided"]
    details = pl.concat([one.details for one in verdicts if one.details is not None])
    if len({one.verdict for one in decided}) > 1:
        return replace(
            verdicts[0], verdict="undecided", reason="; ".join(one.reason for one in verdicts), details=details
        )
    chosen = (decided or verdicts)[0]
    return replace(chosen, reason="; ".join(one.reason for one in verdicts), details=details)


def learning_rate(runs: list[Evidence]) -> Verdict:
    """Claim 4: a higher learning rate makes copying form in fewer updates."""
    claim = blank(
        "A higher learning rate makes copying form in fewer updates",
        "exponent of the learning rate in the formation step",
        f"{line_of('learning rate')}, over at least three that formed at two rates or more; the 95 % interval lies "
        "below 0.",
        "The interval lies above 0.",
    )
    used, notes = _comparable(runs, RATE, SCHEDULE)
    if not used:
        return undecided(claim, 0, notes)
    formed, _ = parted(used)
    notes += on_steps(used)
    rates = {run.config[RATE] for run in formed}
    details = contrast([run.config[RATE] for run in used], [compared(run) for run in used]).table
    verdict = replace(claim, runs=len(used), details=_named(details, RATE))
    if len(rates) < 2:
        return undecided(verdict, len(used), f"copying formed at one learning rate only{notes}")
    fit = exponent([run.config[RATE] for run in used], used)
    verdict = on_exponent(verdict, fit, f"{len(rates)} learning rates{notes}")
    return undecided(verdict, len(used), few(len(formed)) + notes) if verdict.low is None else verdict


def optimization_intensity(runs: list[Evidence]) -> Verdict:
    """Copying forms when the summed learning rate passes a threshold."""
    claim = blank(
        "Optimization intensity: copying forms when the summed learning rate passes a threshold",
        "typical error of a left-out run, as a factor in steps",
        "Leave-one-run-out: each run is predicted from the others' threshold; the summed learning rate has a smaller "
        "error than updates, tokens and sums of other powers, by Student's 95 % interval over runs. Two "
        "learning rates, three runs.",
        "Another rule has a smaller error, by the same test.",
    )
    used, notes = _comparable(runs, RATE, (*SCHEDULE, BATCH))
    if not used:
        return undecided(claim, 0, notes)
    formed, late = parted(used)
    formed = [run for run in formed if run.rates is not None]
    notes += elsewhere(len(late), "no copying yet")
    if len({run.config[RATE] for run in formed}) < 2 or len(formed) < MIN_RUNS:
        return undecided(claim, len(formed), f"copying formed in {len(formed)} runs that can be compared{notes}")
    comparison = intensity(
        [run.rates for run in formed if run.rates is not None],
        np.array([run.step for run in formed], dtype=float),
        np.array([run.tokens_per_step for run in formed]),
    )
    error = comparison.rivals.filter(pl.col("rival") == CLAIMED)["error"][0]
    verdict = "undecided" if comparison.best is None else "supported" if comparison.best == CLAIMED else "contradicted"
    return replace(
        claim,
        verdict=verdict,
        value=math.exp(error),
        runs=len(formed),
        reason=comparison.reason + notes,
        details=comparison.rivals,
    )


def _comparable(runs: list[Evidence], factor: str, also: Sequence[str] = ()) -> tuple[list[Evidence], str]:
    """The runs that differ in the factor alone, and a note on the others.

    Without any to compare the list is empty, and the note says why.
    """
    known = [run for run in runs if run.config]
    if factor not in varied([run.config for run in known]):
        return [], f"the runs do not differ in {factor}"
    comparison = comparable([run.config for run in known], factor, also)
    used = [known[i] for i in comparison.used]
    notes = ""
    if comparison.left_out:
        i, differs = next(iter(comparison.left_out.items()))
        notes = (
            f"; {len(comparison.left_out)} left out, such as {known[i].run}, which differs in {', '.join(differs)} too"
        )
    if len({run.config[factor] for run in used}) < 2:
        return [], f"the runs that differ in {factor} differ in more{notes}"
    return used, notes


def parted(runs: Sequence[Evidence]) -> tuple[list[Evidence], list[Evidence]]:
    """Those with a formation step of copying, and those in which it has not formed yet."""
    return [run for run in runs if run.step is not None], [run for run in runs if run.late]


def exponent(values: Sequence[int | float], runs: Sequence[Evidence]) -> Slope:
    """Slope of ln formation step on the logarithm of each run's value (> 0); runs that have not formed count as later
    than their last step. Needs runs that formed at two values."""
    pairs = list(zip(np.log(np.array(values, dtype=float)), runs, strict=True))
    formed = [(x, run, max(run.step, 0.5)) for x, run in pairs if run.step is not None]
    late = [(x, run) for x, run in pairs if run.late]
    return censored_slope(
        np.array([x for x, _, _ in formed]),
        np.log([step for _, _, step in formed]),
        np.array([x for x, _ in late]),
        np.log([float(run.last_step) for _, run in late]),
        np.array([run.log_error for _, run, _ in formed], dtype=float),
    )


def _contrasted(runs: list[Evidence], factor: str, settings: int, claim: Verdict) -> Verdict:
    used, notes = _comparable(runs, factor)
    if not used:
        return undecided(claim, 0, notes)
    notes += on_steps(used)
    effect = contrast([run.config[factor] for run in used], [compared(run) for run in used], settings)
    verdict = {"helps": "supported", "harms": "contradicted"}.get(effect.verdict, "undecided")
    value, low, high = step_effect(effect.table)
    return replace(
        claim,
        verdict=verdict,
        value=value,
        low=low,
        high=high,
        runs=len(used),
        reason=f"{factor}: {effect.reason}{notes}",
        details=_named(effect.table, factor),
    )


def on_steps(runs: Sequence[Evidence]) -> str:
    """A note on what the formation steps of copying leave open; empty if nothing."""
    formed, late = parted(runs)
    moving = sum(run.copying.provisional for run in formed)
    return taken_as_later(len(late)) + undated(len(runs) - len(formed) - len(late)) + may_move(moving)


def steps_table(runs: Sequence[Evidence], setting: str, values: Sequence[Any]) -> pl.DataFrame:
    """When copying formed in each run with its interval, by the setting's value; one that has not formed it only has
    the low end, its last step."""
    rows = []
    for run, value in zip(runs, values, strict=True):
        if run.late:
            forms = with_ends("copying forms", None, float(run.last_step), None)
        else:
            forms = step_ends("copying forms", run.step, run.copying.low, run.copying.high)
        rows.append({"run": run.run, setting: value, **forms})
    schema = {"run": pl.String(), setting: None} | dict.fromkeys(with_ends("copying forms", *(None,) * 3), pl.Float64())
    return pl.DataFrame(rows, schema=schema).sort(setting, maintain_order=True)


def compared(run: Evidence) -> dict[str, float | None]:
    """What `contrast` compares."""
    if run.late:
        return {"log_last_step": math.log(run.last_step), **run.final}
    if run.step is None:
        return dict(run.final)
    return {"log_step": math.log(max(run.step, 0.5)), "log_step_error": run.log_error, **run.final}


def _named(table: pl.DataFrame, factor: str) -> pl.DataFrame:
    return table.select(pl.lit(factor).alias("setting"), pl.all())
