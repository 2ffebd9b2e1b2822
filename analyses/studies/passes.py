"""Text that is passed over many times: are induction heads lost again as it is learnt by heart?"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from copyscope.analyses.claims.evidence import LAST
from copyscope.analyses.claims.verdict import MIN_RUNS, Verdict, blank, few, undecided
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
