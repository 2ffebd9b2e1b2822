"""Learning rate × batch size: which law foretells the step at which copying forms on cells it was not fitted on?"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from copyscope.analyses.claims.across_runs import BATCH, RATE, on_steps, parted
from copyscope.analyses.claims.evidence import Evidence
from copyscope.analyses.claims.verdict import MIN_RUNS, Verdict, blank, few, undecided
from copyscope.analyses.statistics.intervals import t_interval

CLAIMED = "rate × √batch, summed"
LAWS: dict[str, tuple[float, float] | None] = {
    "updates": (0.0, 0.0),
    "tokens": (0.0, -1.0),
    "square root of the batch": (0.0, -0.5),
    "rate, summed": (-1.0, 0.0),
    CLAIMED: (-1.0, -0.5),
    "rate × batch, summed": (-1.0, -1.0),
    "both exponents fitted": None,
}
"""steps ∝ rate^a · batch^b, as (a, b)."""


class Laws(NamedTuple):
    """How each law foretells the steps of the half of the cells that it was not fitted on."""

    errors: dict[str, Float[np.ndarray, " run"]]
    """|ln foretold − ln seen|, by law; NaN where the other half has no run that formed, or too few to fit."""
    cells: Float[np.ndarray, " run"]
    """Number of each run's cell."""

    def by_cell(self, law: str) -> Float[np.ndarray, " cell"]:
        """Mean error of each cell."""
        return np.array([self.errors[law][self.cells == cell].mean() for cell in np.unique(self.cells)])


class Line(NamedTuple):
    """ln step = height + rate · ln rate + batch · ln batch."""

    height: float
    rate: float
    batch: float

    def at(
        self, rates: Float[np.ndarray, " point"], batches: Float[np.ndarray, " point"]
    ) -> Float[np.ndarray, " point"]:
        """The natural logarithm of the step."""
        return self.height + self.rate * np.log(rates) + self.batch * np.log(batches)


def fitted(
    law: tuple[float, float] | None,
    rates: Float[np.ndarray, " run"],
    batches: Float[np.ndarray, " run"],
    steps: Float[np.ndarray, " run"],
) -> Line:
    """The law through these runs (all > 0), by least squares of ln step; None: with both exponents fitted too."""
    if law is not None:
        free = np.log(steps) - law[0] * np.log(rates) - law[1] * np.log(batches)
        return Line(float(free.mean()) if len(free) else math.nan, *law)
    if len(steps) < 4:
        return Line(math.nan, math.nan, math.nan)
    design = np.stack([np.ones_like(steps), np.log(rates), np.log(batches)], axis=1)
    if np.linalg.matrix_rank(design) < 3:
        return Line(math.nan, math.nan, math.nan)
    weights, *_ = np.linalg.lstsq(design, np.log(steps), rcond=None)
    return Line(*map(float, weights))


def laws_on_cells(
    rates: Float[np.ndarray, " run"], batches: Float[np.ndarray, " run"], steps: Float[np.ndarray, " run"]
) -> Laws:
    """Each law is fitted on every other cell of the grid, as on the black squares of a chessboard, and foretells the
    white ones; then the other way round. Rates, batch sizes and steps are > 0. Cannot tell: laws it was not given."""
    row, column = (np.unique(values, return_inverse=True)[1] for values in (rates, batches))
    black: Bool[np.ndarray, " run"] = (row + column) % 2 == 0
    errors = {}
    for name, law in LAWS.items():
        foretold = np.full(len(steps), np.nan)
        for known in (black, ~black):
            line = fitted(law, rates[known], batches[known], steps[known])
            foretold[~known] = line.at(rates[~known], batches[~known])
        errors[name] = np.abs(foretold - np.log(steps))
    return Laws(errors, (row * (column.max(initial=0) + 1) + column).astype(float))


def rate_and_batch(runs: list[Evidence]) -> Verdict:
    """The verdict on `CLAIMED`, with a row a law in its details."""
    claim = blank(
        "Copying forms when rate × √batch size, summed over updates, passes a threshold",
        "typical error on cells that it was not fitted on, as a factor in steps",
        "Each law of rate and batch size is fitted on every other cell of the grid and judged on the rest, and the "
        "other way round. Its error is smaller than that of each fixed rival, by Student's 95 % interval over cells; "
        "six cells.",
        "A fixed rival's error is smaller, by the same test.",
    )
    used = [run for run in runs if run.config]
    formed, _ = parted(used)
    if len(formed) < MIN_RUNS:
        return undecided(claim, len(formed), few(len(formed)) + on_steps(used))
    rates, batches, steps = (
        np.array(values, dtype=float)
        for values in (
            [run.config[RATE] for run in formed],
            [run.config[BATCH] for run in formed],
            [max(run.step or 0.5, 0.5) for run in formed],
        )
    )
    laws = laws_on_cells(rates, batches, steps)
    own = laws.by_cell(CLAIMED)
    rows = []
    for name in LAWS:
        error = laws.by_cell(name)
        rows.append((name, float(np.nanmean(error)), float(np.nanmean(error - own)), *_interval(error - own)))
    table = pl.DataFrame(rows, schema=["law", "error", "worse", "worse_low", "worse_high"], orient="row")
    claim = replace(claim, value=math.exp(float(np.nanmean(own))), runs=len(formed), details=table.sort("error"))
    if len(own) < 6:
        return replace(claim, reason=f"{len(own)} cells; it takes six{on_steps(used)}")
    rivals = table.filter(pl.col("law").is_in([name for name, law in LAWS.items() if law and name != CLAIMED]))
    best = table.sort("error")["law"][0]
    words = f"smallest error: {best}{on_steps(used)}"
    if (rivals["worse_high"] < 0).any():
        return replace(claim, verdict="contradicted", reason=words)
    return replace(claim, verdict="supported" if (rivals["worse_low"] > 0).all() else "undecided", reason=words)


def _interval(extra: Sequence[float] | Float[np.ndarray, " cell"]) -> tuple[float, float]:
    known = np.asarray(extra, dtype=float)
    return t_interval(known[np.isfinite(known)])
