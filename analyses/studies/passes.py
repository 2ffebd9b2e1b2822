"""Text that is passed over many times: are induction heads lost again as it is learnt by heart?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from copyscope.analyses.claims.evidence import LAST
from copyscope.analyses.claims.verdict import MIN_RUNS, Verdict, blank, few, number, undecided, with_ends
from copyscope.analyses.statistics.intervals import CONFIDENCE, difference
from copyscope.analyses.studies.evidence import StudyRun


def keeps(names: tuple[str, str], shares: Sequence[Sequence[float]], comparisons: int) -> Verdict:
    """Of prefix matching, the end as a share of the highest: in runs of the second condition against the first.

    `shares`: `kept_share` of each run, by condition. `comparisons`: conditions that are held against the first, which
    share the 5 % of chance.
    """
    claim = blank(
        f"Many passes: {names[1]} keeps induction heads, more than {names[0]}",
        "difference in prefix matching at the end ÷ at its highest",
        f"Means of {LAST} checkpoints; runs without an induction head do not count. Welch's interval, 95 % for all "
        f"conditions together, lies above 0; {MIN_RUNS} runs of each.",
        "The interval lies below 0.",
    )
    count, fewest = sum(map(len, shares)), min(map(len, shares))
    if fewest < MIN_RUNS:
        return undecided(claim, count, few(fewest))
    first, second = map(np.array, shares)
    effect = difference(first, second, 1 - (1 - CONFIDENCE) / comparisons)
    verdict = "supported" if effect.low > 0 else "contradicted" if effect.high < 0 else "undecided"
    words = f"kept {second.mean():.2f} of the highest, {first.mean():.2f} with {names[0]}"
    found = {"value": effect.difference, "low": effect.low, "high": effect.high}
    return replace(claim, verdict=verdict, runs=count, reason=words, **found)


def kept(runs: Sequence[StudyRun]) -> list[float]:
    """`kept_share` of the runs in which an induction head has formed, one that fell back included."""
    formed = [run for run in runs if run.evidence and run.evidence.induction["formed"].any()]
    return [kept_share(run.curves["prefix_matching_sum"].drop_nulls().to_numpy()) for run in formed]


def kept_share(curve: Float[np.ndarray, " checkpoint"]) -> float:
    """A curve's end ÷ its highest, each a mean of three checkpoints (or of all, if there are fewer); of a score in
    [0, 1] that rose above 0, in [0, 1]."""
    means = np.convolve(curve, np.full(min(LAST, len(curve)), 1 / min(LAST, len(curve))), mode="valid")
    return float(means[-1] / means.max())


def beside(
    name: str, first: Sequence[StudyRun], other_name: str, other: Sequence[StudyRun], comparisons: int
) -> pl.DataFrame:
    """What else the text and its regularization did, at the end: a row a quantity, with the mean of either condition
    and their difference with Welch's interval, 95 % for all `comparisons` together (not for all rows together).

    Loss on held-out text and ICL score (nats) are means of three checkpoints; loss is there at its lowest too. Of
    in-context tasks, choice accuracy at the last step. Runs without a quantity are left out of its row.
    """
    groups = [[_quantities(run) for run in runs] for runs in (first, other)]
    rows = []
    for quantity in dict.fromkeys(key for values in (*groups[0], *groups[1]) for key in values):
        without, with_it = (np.array([one[quantity] for one in group if quantity in one]) for group in groups)
        if min(len(without), len(with_it)) == 0:
            continue
        found = difference(without, with_it, 1 - (1 - CONFIDENCE) / comparisons)
        means = {name: float(without.mean()), other_name: float(with_it.mean())}
        ends = with_ends("difference", found.difference, number(found.low), number(found.high))
        rows.append({"quantity": quantity} | means | ends)
    return pl.DataFrame(rows, infer_schema_length=None)


def _quantities(run: StudyRun) -> dict[str, float]:
    if run.curves.is_empty():
        return {}
    found = {}
    for quantity, column in (("loss on held-out text", "validation_loss"), ("ICL score", "icl_score")):
        curve = run.curves[column].drop_nulls().to_numpy()
        if len(curve):
            found[quantity] = float(curve[-LAST:].mean())
            if column == "validation_loss":
                found["lowest loss on held-out text"] = float(curve.min())
    for row in run.tasks.iter_rows(named=True):
        found[task_name(row)] = row["choice_accuracy"]
    return found


def task_name(row: dict[str, Any]) -> str:
    """A variant of a task as it is shown, such as "recall pairs=4"."""
    return f"{row['task']} {row['variant']}"
