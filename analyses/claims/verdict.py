"""What a verdict on a claim holds, and the words all claims share."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from copyscope.analyses.statistics.intervals import Slope
from copyscope.analyses.words.json_values import number as number
from copyscope.training.environment import unlike

MIN_RUNS = 3
"""Runs (seeds) without which nothing is supported or contradicted: one run shows that something can happen."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One claim judged: the effect with its 95 % interval, the rule, and what would have contradicted it."""

    claim: str
    verdict: str
    """`supported`, `contradicted` or `undecided`."""
    effect: str
    """What was estimated, in words."""
    value: float | None = None
    low: float | None = None
    """95 % interval of `value`; None where there is none."""
    high: float | None = None
    runs: int = 0
    """Runs that count for this claim."""
    reason: str = ""
    rule: str
    """What decides."""
    breaks: str
    """What would have contradicted the claim."""
    details: pl.DataFrame | None = None


def with_ends(
    name: str, value: int | float | None, low: int | float | None, high: int | float | None
) -> dict[str, int | float | None]:
    """A value with its 95 % interval as three columns of a table, `name`, `name, low` and `name, high`. A bound has no
    value and one end: only `low` where it is above that, only `high` where it is below. All None: not known."""
    return {name: value, f"{name}, low": low, f"{name}, high": high}


def step_ends(
    name: str, step: int | float | None, low: int | float | None, high: int | float | None
) -> dict[str, int | float | None]:
    """The same of a formation step. One whose interval begins at step 0 is only known to be below its end: any step
    in it is as good."""
    return with_ends(name, None, None, high) if low is not None and low < 1 else with_ends(name, step, low, high)


def computed_unlike(runs: Iterable[Path]) -> str:
    """What to add to a verdict's reason where these runs (folders) were not all computed alike: other threads, another
    precision or device is as good as another seed. Raises InputError for a damaged note of it."""
    words = unlike(runs)
    return f"; not all computed alike ({words})" if words else ""


def undecided(claim: Verdict, runs: int, reason: str) -> Verdict:
    """The claim, not decided, and why."""
    return replace(claim, verdict="undecided", runs=runs, reason=reason)


def blank(claim: str, effect: str, rule: str, breaks: str) -> Verdict:
    """A claim before anything is known: undecided."""
    return Verdict(claim=claim, verdict="undecided", effect=effect, rule=rule, breaks=breaks)


def on_exponent(claim: Verdict, fit: Slope, reason: str) -> Verdict:
    """The claim that an exponent is negative, judged by the 95 % interval of the fitted line's slope."""
    verdict = "supported" if fit.high < 0 else "contradicted" if fit.low > 0 else "undecided"
    return replace(
        claim, verdict=verdict, value=number(fit.slope), low=number(fit.low), high=number(fit.high), reason=reason
    )


def interval(verdict: Verdict) -> str | None:
    """The interval in words, `above 0.2` where it is open at one end; None without any."""
    low, high = (None if end is None else f"{end:.3g}" for end in (verdict.low, verdict.high))
    if low and high:
        return f"{low} to {high}"
    return f"above {low}" if low else f"below {high}" if high else None


def line_of(setting: str) -> str:
    """The rule of claims on an exponent."""
    return (
        f"Least squares of ln step on ln {setting}; a run that has not formed counts as later than its last step (by "
        "likelihood)"
    )


def few(runs: int) -> str:
    """That there are too few runs."""
    return f"{runs} run{'s' * (runs != 1)}: a verdict needs {MIN_RUNS}"


def elsewhere(count: int, what: str) -> str:
    """A note on runs that do not count; empty without any."""
    return f"; {count} not counted ({what})" if count else ""


def taken_as_later(count: int) -> str:
    """A note on runs that count as later than their end (`analyses.statistics.censored`); empty without any."""
    return f"; {count} without copying yet, taken as later than their last step" if count else ""


def may_move(count: int) -> str:
    """A note on formation steps that are `provisional` (`analyses.formation.step_rule`); empty without any."""
    return f"; {count} provisional: longer runs may date copying later" if count else ""


def undated(count: int) -> str:
    """A note on runs whose series begins during the rise of copying; empty without any."""
    return elsewhere(count, "copying was under way at the first checkpoint")
