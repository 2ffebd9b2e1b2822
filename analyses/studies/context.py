"""Batch and context: do the tokens it takes to form copying grow as the square root of their product?"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from copyscope.analyses.claims.across_runs import BATCH, compared, on_size, on_steps, parted
from copyscope.analyses.claims.batch_size import LAWS
from copyscope.analyses.claims.contrast import contrast, step_effect
from copyscope.analyses.claims.evidence import Evidence
from copyscope.analyses.claims.verdict import MIN_RUNS, Verdict, blank, few, line_of, undecided
from copyscope.analyses.statistics.intervals import over_runs

CONTEXT = "model.n_ctx"
SQUARE_ROOT = -0.5
PUBLISHED = 10**5.7
"""T of N = T·√(batch × context), N the tokens by which induction heads form (arXiv 2511.16893)."""
LIKE = "context 256, batch 8"
APART = ("every window", "vocabulary 1,024")
"""Conditions that are as `LIKE` but for one thing: text read as it comes, with no windows chosen for what they repeat;
and a vocabulary of another size."""
ALIKE = 2.0
"""Factor within which T counts as the published one."""


def context_laws(runs: list[Evidence]) -> list[Verdict]:
    """What runs at several batch sizes and context lengths, alike in all else, say about N = T·√(batch × context)."""
    known = [run for run in runs if run.config]
    return [_root(known), _same_exponent(known), context_constant(known)]


def _product(run: Evidence) -> int:
    return run.config[BATCH] * run.config[CONTEXT]


def _root(runs: list[Evidence]) -> Verdict:
    claim = blank(
        "Tokens to form copying grow as the square root of batch × context",
        "exponent of batch × context in the formation step (-0.5: the square-root law)",
        f"{line_of('batch × context')}; -0.5 is the only one of {', '.join(f'{law:g}' for law in LAWS)} in the 95 % "
        "interval. Three products, the largest four times the smallest.",
        "The interval does not hold -0.5.",
    )
    formed, _ = parted(runs)
    if len(formed) < MIN_RUNS:
        return undecided(claim, len(formed), few(len(formed)))
    verdict, fit = on_size(claim, runs, "batch × context", [_product(run) for run in runs])
    if fit.law == LAWS[SQUARE_ROOT]:
        return replace(verdict, verdict="supported")
    if fit.enough and not fit.low <= SQUARE_ROOT <= fit.high:
        return replace(verdict, verdict="contradicted")
    return verdict


def _same_exponent(runs: list[Evidence]) -> Verdict:
    """Two exponents by least squares, and Student's interval of their difference."""
    claim = blank(
        "A longer context counts as a larger batch does",
        "exponent of the context minus exponent of the batch size, in the formation step",
        "Least squares of ln step on ln batch size and ln context together, where every run has formed; the 95 % "
        "interval of the difference holds 0 and is no wider than from -0.25 to 0.25.",
        "The interval does not hold 0.",
    )
    formed, _ = parted(runs)
    if len(formed) < len(runs):
        return undecided(claim, len(runs), f"not every run has a formation step{on_steps(runs)}")
    steps = np.log([max(run.step or 0.5, 0.5) for run in formed])
    batch, context = (np.log([float(run.config[name]) for run in formed]) for name in (BATCH, CONTEXT))
    free = len(formed) - 3
    design = np.stack([np.ones_like(batch), batch, context], axis=1)
    if free < 1 or np.linalg.matrix_rank(design) < 3:
        return undecided(claim, len(runs), "it takes four runs, at two batch sizes and two contexts that vary apart")
    weights, *_ = np.linalg.lstsq(design, steps, rcond=None)
    scatter = float(((steps - design @ weights) ** 2).sum()) / free
    across = np.array([0.0, -1.0, 1.0])
    error = math.sqrt(scatter * float(across @ np.linalg.inv(design.T @ design) @ across))
    half = float(stats.t.ppf(0.975, free)) * error
    value = float(across @ weights)
    low, high = value - half, value + half
    verdict = "contradicted" if low > 0 or high < 0 else "supported" if max(-low, high) <= 0.25 else "undecided"
    words = f"batch {weights[1]:.2f}, context {weights[2]:.2f}{on_steps(runs)}"
    return replace(claim, verdict=verdict, value=value, low=low, high=high, runs=len(runs), reason=words)


def context_constant(runs: Sequence[Evidence], where: str = "") -> Verdict:
    """T against the published one; `where`: words at the end of the claim."""
    claim = blank(
        f"Copying forms by the tokens that the published constant foretells{where}",
        "tokens by the formation step ÷ 10^5.7·√(batch × context)",
        f"The 95 % interval of the geometric mean over runs lies within a factor of {ALIKE:g} of 1.",
        "It lies wholly beyond that factor.",
    )
    formed, _ = parted(runs)
    if len(formed) < MIN_RUNS:
        return undecided(claim, len(formed), few(len(formed)) + on_steps(runs))
    steps, low, high = np.array([(run.step, *run.copying.interval) for run in formed], dtype=float).T
    scale = np.sqrt([float(_product(run)) for run in formed]) / PUBLISHED
    value, least, most = over_runs(*(np.maximum(ends, 0.5) * scale for ends in (steps, low, high)))
    inside, outside = least >= 1 / ALIKE and most <= ALIKE, most < 1 / ALIKE or least > ALIKE
    verdict = "supported" if inside else "contradicted" if outside else "undecided"
    words = f"T = 10^{math.log10(value * PUBLISHED):.2f}{on_steps(runs)}"
    return replace(claim, verdict=verdict, value=value, low=least, high=most, runs=len(formed), reason=words)


def later_than_like(name: str, like: Sequence[Evidence], runs: Sequence[Evidence]) -> Verdict:
    """Whether copying forms later in `runs` of the condition `name`, one of `APART`, than in those of `LIKE`."""
    claim = blank(
        f"Copying forms later with {name} than with {LIKE}, else alike",
        "relative change of the formation step",
        "Welch's interval of ln step (where a run has not formed: by likelihood, as later than its last step), 95 % "
        f"for {len(APART)} such comparisons together, lies above 0. The vocabulary decides which tokens are tested.",
        "The interval lies below 0.",
    )
    both = [*like, *runs]
    if not like or not runs:
        return undecided(claim, len(both), "no runs to compare")
    outcomes = [{key: value for key, value in compared(run).items() if key.startswith("log_")} for run in both]
    effect = contrast([0] * len(like) + [1] * len(runs), outcomes)  # which shares out 5 % among two intervals
    value, low, high = step_effect(effect.table)
    verdict = {"harms": "supported", "helps": "contradicted"}.get(effect.verdict, "undecided")
    why = {"harms": "later", "helps": "earlier"}.get(effect.verdict, effect.reason)
    return replace(
        claim, verdict=verdict, value=value, low=low, high=high, runs=len(both), reason=f"{why}{on_steps(both)}"
    )
