"""What the studies of forks answer: how much is decided by the state at a step, and when a short change matters.

All of it is computed from the table of forks alone (`forked.gather_forks`). Everything is compared within a parent
first; intervals are over parents.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float
from scipy import stats
from scipy.special import polygamma

from copyscope.analyses.claims.verdict import MIN_RUNS, Verdict, blank, elsewhere, number, undecided, with_ends
from copyscope.analyses.statistics.intervals import CONFIDENCE, t_interval
from copyscope.analyses.studies.forked import ORDER_ALONE, PARENT
from copyscope.training.sweeps.worker import FINISHED

LEFT = 0.5
"""Share of the scatter that may be left for the step to count as decided."""
ALIKE = 0.1
"""Relative change of the formation step up to which a change counts as without effect."""
MIN_SCATTER = 1e-3
"""Standard deviation of ln step that forks are taken to have at least: checkpoints tell steps apart no better."""
MIN_FORKS = 4
"""Forks of a parent at a step without which their scatter is not known."""


def scatter_table(forks: pl.DataFrame) -> pl.DataFrame:
    """A row a parent and share, of the forks that differ in the order of the text alone.

    Columns: parent, share, forks, late (how many had no induction head by their end; they count as formed there, so
    that the scatter is a lower bound), scatter (standard deviation of ln step), own_head (share of forks in which the
    first head is the parent's), most_common (share that the most common first head has).
    """
    heads = dict(forks.filter(pl.col("change") == PARENT).select("parent", "head").iter_rows())
    rows: list[dict[str, Any]] = []
    ordered = forks.filter((pl.col("change") == ORDER_ALONE) & (pl.col("state") == FINISHED))
    for (parent, share), some in ordered.group_by("parent", "share", maintain_order=True):
        names = some["head"].fill_null("")
        common = max((count for name, count in names.value_counts().iter_rows() if name), default=0)
        rows.append(
            {
                "parent": parent,
                "share": share,
                "forks": some.height,
                "late": some["step"].null_count(),
                "scatter": float(np.std(_logs(some), ddof=1)) if some.height > 1 else None,
                "own_head": float((names == heads[parent]).mean()),  # type: ignore[arg-type]
                "most_common": common / some.height,
            }
        )
    names = ("forks", "late"), ("scatter", "own_head", "most_common")
    schema = {"parent": pl.String, "share": pl.Float64, **dict.fromkeys(names[0], pl.Int64)}
    return pl.DataFrame(rows, schema=schema | dict.fromkeys(names[1], pl.Float64))


def commitment_table(forks: pl.DataFrame) -> pl.DataFrame:
    """A row a share of the formation step, with 95 % intervals over parents (`paired`).

    Parents, forks, late; scatter of ln step (geometric mean over parents); scatter left (as a share of that from the
    first share on, paired by parent); the share of forks in which the parent's head is first, with its rise since the
    first share; and the share that the most common first head has.
    """
    table = scatter_table(forks).filter(pl.col("forks") >= MIN_FORKS)
    rows: list[dict[str, Any]] = []
    shares = table["share"].unique().sort().to_list()
    first = {row["parent"]: row for row in table.filter(pl.col("share") == shares[0]).to_dicts()} if shares else {}
    for share in shares:
        pairs = [
            (row, first[row["parent"]])
            for row in table.filter(pl.col("share") == share).to_dicts()
            if row["parent"] in first
        ]
        now, before = ([pair[side] for pair in pairs] for side in (0, 1))
        logs = _scatters(now)
        left, left_error = logs - _scatters(before), np.hypot(_scatter_errors(now), _scatter_errors(before))
        rise = np.array([one["own_head"] - other["own_head"] for one, other in pairs])
        rise_error = np.hypot(_share_errors(now), _share_errors(before))
        is_first = share == shares[0]
        rows.append(
            {
                "s / formation step": share,
                "parents": len(pairs),
                "forks": sum(row["forks"] for row in now),
                "late": sum(row["late"] for row in now),
                **with_ends("scatter of ln step", *_exp(paired(logs, _scatter_errors(now)))),
                **with_ends("scatter left", *((None,) * 3 if is_first else _exp(paired(left, left_error)))),
                "parent's head first": float(np.mean([row["own_head"] for row in now])) if now else None,
                **with_ends("rise of that", *((None,) * 3 if is_first else _possible(paired(rise, rise_error)))),
                "most common head first": float(np.mean([row["most_common"] for row in now])) if now else None,
            }
        )
    return pl.DataFrame(rows, infer_schema_length=None)


def paired(
    values: Float[np.ndarray, " parent"], errors: Float[np.ndarray, " parent"], confidence: float = CONFIDENCE
) -> tuple[float | None, float | None, float | None]:
    """Mean over parents of what was compared within each, with Student's interval, but no narrower than the standard
    `errors` of the values alone make it: three parents may agree by chance. One parent has no interval."""
    if not len(values):
        return None, None, None
    centre = float(values.mean())
    low, high = t_interval(values, confidence)
    half = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(float((errors**2).sum())) / len(values)
    return centre, number(min(low, centre - half)), number(max(high, centre + half))


def commitment(forks: pl.DataFrame) -> list[Verdict]:
    """Two verdicts, on the last step of the ladder: is the formation step decided there, and the head?"""
    table = commitment_table(forks)
    shares = table["s / formation step"].to_list() if table.height else []
    last, first = (shares[-1], shares[0]) if len(shares) > 1 else (math.nan, math.nan)
    step = blank(
        f"By {last:.3g} of the formation step, most of the chance in when the first induction head forms is spent",
        f"scatter of ln step left, as a share of that from {first:.3g} on",
        "Standard deviation of ln step over forks that read the remaining text in another order, last step of the "
        "ladder against its first, paired by parent; the 95 % interval over at least "
        f"{MIN_RUNS} parents lies below {LEFT:g}.",
        f"The interval lies above {LEFT:g}.",
    )
    head = blank(
        f"By {last:.3g} of the formation step, which head is first is more settled than at {first:.3g}",
        "rise of the share of forks in which the parent's head is first",
        f"The same forks, paired by parent; the 95 % interval over at least {MIN_RUNS} parents lies above 0.",
        "The interval lies below 0.",
    )
    if len(shares) < 2:
        return [undecided(one, 0, "fewer than two steps of the ladder have forks") for one in (step, head)]
    row = table.row(-1, named=True)
    note = (
        f"{row['forks']} forks there{elsewhere(_lost(forks), 'forks that did not finish')}"
        + f"; {table['late'].sum()} without an induction head by their end, taken as formed there"
        * bool(table["late"].sum())
    )
    shown = replace(step, details=table), replace(head, details=table)
    judged = [
        _on(shown[0], row, "scatter left", lambda low, high: (high < LEFT, low > LEFT), note),
        _on(shown[1], row, "rise of that", lambda low, high: (low > 0, high < 0), note),
    ]
    return [
        one if row["parents"] >= MIN_RUNS else undecided(one, row["parents"], f"{row['parents']} parents; {note}")
        for one in judged
    ]


def window_table(forks: pl.DataFrame) -> pl.DataFrame:
    """A row a change and share of the formation step: parents, pairs (forks with and without the change that read the
    same text), late (of either, taken as formed at their end), relative change of the formation step with its interval
    over parents (`paired`, 95 % for all shares of a change together), both formed (pairs in which neither is late),
    other head (share of those whose first heads differ; null without any)."""
    done = forks.filter(pl.col("state") == FINISHED)
    keys = ["parent", "share", "order"]
    plain = done.filter(pl.col("change") == ORDER_ALONE)
    rows: list[dict[str, Any]] = []
    for change in [one for one in done["change"].unique(maintain_order=True) if one not in (PARENT, ORDER_ALONE)]:
        both = done.filter(pl.col("change") == change).join(plain, on=keys, suffix="_plain")
        shares = both["share"].unique().sort().to_list()
        for share in shares:
            some = both.filter(pl.col("share") == share)
            means, errors = [], []
            for (_,), own in some.group_by("parent", maintain_order=True):
                apart = _logs(own) - _logs(own, "_plain")
                if len(apart) > 1:
                    means.append(float(apart.mean()))
                    errors.append(float(stats.sem(apart)))
            heads = some.drop_nulls(["step", "step_plain"])
            confidence = 1 - (1 - CONFIDENCE) / len(shares)
            mean, low, high = paired(np.array(means), np.array(errors), confidence)
            ends = (None if one is None else math.expm1(one) for one in (mean, low, high))
            rows.append(
                {
                    "change": change,
                    "s / formation step": share,
                    "parents": len(means),
                    "pairs": some.height,
                    "late": some["step"].null_count() + some["step_plain"].null_count(),
                    **with_ends("relative change of the step", *ends),
                    "both formed": heads.height,
                    "other head": (heads["head"] != heads["head_plain"]).mean() if heads.height else None,
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def window(forks: pl.DataFrame) -> list[Verdict]:
    """A verdict a change and share of the formation step: does the change, begun there for a while, move that step?"""
    table, verdicts = window_table(forks), []
    until = forks.filter(pl.col("until").is_not_null()).with_columns(lasts=pl.col("until") - pl.col("at"))
    lasted = {
        change: f"{least:,}" if least == most else f"{least:,} to {most:,}"
        for change, least, most in until.group_by("change")
        .agg(pl.col("lasts").min(), pl.col("lasts").max().alias("most"))
        .iter_rows()
    }
    for row in table.iter_rows(named=True):
        change, share = row["change"], row["s / formation step"]
        claim = blank(
            f"{change} for {lasted[change]} updates from {share:.3g} of the formation step on moves that step"
            if change in lasted
            else f"{change} from {share:.3g} of the formation step on moves that step",
            "relative change of the step at which the first induction head forms",
            "ln step of forks with the change minus that of forks that read the same text without it; mean by parent, "
            f"then the interval over at least {MIN_RUNS} parents, 95 % for all steps of a change together: it leaves "
            "out 0.",
            f"The whole interval lies within {ALIKE:.0%} of 0.",
        )
        note = f"{row['pairs']} pairs"
        if formed := row["both formed"]:
            note += f"; another head was first in {round(row['other head'] * formed)} of {formed} that both formed one"
        if late := row["late"]:
            note += f"; {late} fork{'s' * (late > 1)} without an induction head by the end, taken as formed there"
        found = _on(
            replace(claim, details=table.filter(pl.col("change") == change)),
            row,
            "relative change of the step",
            lambda low, high: (low > 0 or high < 0, max(-low, high) < ALIKE),
            note + elsewhere(_lost(forks), "forks that did not finish"),
        )
        short = row["parents"] < MIN_RUNS
        verdicts.append(undecided(found, row["parents"], f"{row['parents']} parents; {note}") if short else found)
    if not verdicts:
        claim = blank("A change that lasts for a while moves the formation step", "its relative change", "", "")
        return [undecided(claim, 0, "no pair of forks with and without a change is finished")]
    return verdicts


JUDGES = {"commitment": commitment, "window": window}
TABLES = {"commitment": commitment_table, "window": window_table}


def _on(claim: Verdict, row: dict[str, Any], name: str, rule: Any, reason: str) -> Verdict:
    """The claim judged by the interval in a table's row. `rule(low, high)`: whether it speaks for it, and against."""
    value, low, high = row[name], row[f"{name}, low"], row[f"{name}, high"]
    found = replace(claim, value=value, low=low, high=high, runs=row["parents"], reason=reason)
    if low is None or high is None:
        return found
    speaks, against = rule(low, high)
    return replace(found, verdict="supported" if speaks else "contradicted" if against else "undecided")


def _logs(forks: pl.DataFrame, suffix: str = "") -> Float[np.ndarray, " fork"]:
    """ln of the formation step, or of the last step where none formed; at least half an update."""
    steps = forks[f"step{suffix}"].fill_null(forks[f"last_step{suffix}"]).to_numpy().astype(float)
    return np.log(np.maximum(steps, 0.5))


def _scatters(rows: Sequence[dict[str, Any]]) -> Float[np.ndarray, " parent"]:
    return np.log(np.maximum([row["scatter"] for row in rows], MIN_SCATTER))


def _scatter_errors(rows: Sequence[dict[str, Any]]) -> Float[np.ndarray, " parent"]:
    """Standard error of ln of a standard deviation: the variance of ln χ² with n − 1 degrees of freedom, halved."""
    return np.array([math.sqrt(float(polygamma(1, (row["forks"] - 1) / 2))) / 2 for row in rows])


def _share_errors(rows: Sequence[dict[str, Any]]) -> Float[np.ndarray, " parent"]:
    """Standard error of a share, with one success and one failure added: none of eight is not known to be never."""
    shares = [((row["own_head"] * row["forks"] + 1) / (row["forks"] + 2), row["forks"]) for row in rows]
    return np.array([math.sqrt(share * (1 - share) / count) for share, count in shares])


def _possible(values: tuple[float | None, ...]) -> tuple[float | None, ...]:
    """A difference of two shares, cut to what it can be."""
    return tuple(None if value is None else min(1.0, max(-1.0, value)) for value in values)


def _exp(values: tuple[float | None, ...]) -> tuple[float | None, ...]:
    return tuple(None if value is None else math.exp(value) for value in values)


def _lost(forks: pl.DataFrame) -> int:
    return forks.filter((pl.col("change") != PARENT) & (pl.col("state") != FINISHED)).height
