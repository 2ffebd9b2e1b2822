"""What a formation map shows, whichever library draws it: cells, colours, marks, and the band of the phase change."""

import math
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from plotly.colors import get_colorscale

from copyscope.analyses.figures.axis import StepAxis, step_word
from copyscope.analyses.formation.heads import FormationMap
from copyscope.analyses.formation.step_text import step_number, step_text
from copyscope.analyses.words.glossary import describe
from copyscope.interp.head_names import head_name

NO_SCORE = "#c0c0c0"
"""Colour of a cell that was not measured; it is in neither colour scale."""
COPYING_MEASURES = (("copying_loss_difference", "copying loss"), ("copying_accuracy_token", "copying accuracy"))


class Scale(NamedTuple):
    """Colours of the scores: the same over all steps, since scaling each step to itself would fake formation."""

    low: float
    high: float
    colors: list[tuple[float, str]]
    """(place in [0, 1], colour), from low to high: viridis, or blue to red around 0; both can be told apart by readers
    with any common colour blindness."""


class Block(NamedTuple):
    """Cells that stand side by side: those of positive steps, or the slot of step 0."""

    edges: Float[np.ndarray, " edge"]
    steps: Int[np.ndarray, " step"]
    values: Float[np.ndarray, "row step"]


class Mark(NamedTuple):
    """A head that formed."""

    row: int
    x: float
    word: str
    """The step, ↓ if the head fell back later."""
    hover: str


class Band(NamedTuple):
    """The phase change: where copying rose."""

    low: float
    """In steps."""
    high: float
    rule: str


def scale_of(measure: str, values: Float[np.ndarray, "row step"]) -> Scale:
    """0 to 1 viridis; signed measures blue to red, from -1 to 1; without an upper limit, as far as any score goes."""
    words = describe(measure)
    if not words.signed:
        known = values[np.isfinite(values)]
        top = 1.0 if words.high is not None or not len(known) else float(known.max())
        return Scale(0.0, top or 1.0, [(place, color) for place, color in get_colorscale("Viridis")])
    largest = 1.0
    if words.low is None:
        known = np.abs(values[np.isfinite(values)])
        largest = float(known.max()) if len(known) and known.max() > 0 else 1.0
    return Scale(-largest, largest, [(1 - place, color) for place, color in reversed(get_colorscale("RdBu"))])


def bar_title(measure: str) -> str:
    """What stands over the colour scale: an ablation's effect is no score."""
    return "effect" if ":" in measure else "score"


def scale_words(measure: str, scale: Scale) -> str:
    """Range and unit, such as "0 to 1" or "−3.2 to 3.2 nats"."""
    words = describe(measure)
    if words.low is not None:
        return words.scale if words.high is not None else f"0 to {scale.high:.2g} {words.unit}".strip()
    return f"−{scale.high:.2g} to {scale.high:.2g} {words.unit}".strip()


def blocks(grid: FormationMap, axis: StepAxis) -> list[Block]:
    """The map's cells: positive steps, then step 0 in its slot."""
    positive = grid.steps > 0
    out = []
    if positive.any():
        steps = grid.steps[positive]
        out.append(Block(axis.edges(steps), steps, grid.values[:, positive]))
    if not positive.all() and axis.zero is not None:
        out.append(Block(np.array(axis.zero), grid.steps[~positive], grid.values[:, ~positive]))
    return out


def marks(grid: FormationMap, axis: StepAxis, formation: pl.DataFrame) -> list[Mark]:
    """Where and how each formed head is marked."""
    formed = {(r["layer"], r["head"]): r for r in formation.iter_rows(named=True) if r["formed"]}
    out = []
    for i, name in enumerate(grid.rows):
        if name in formed:
            row = formed[name]
            fell = ", fell back later" if row["fell_back"] else ""
            step, hover = step_number(row), f"{head_name(*name)} formed at step {step_text(row)}{fell}"
            x = float(axis.positions(np.array([step]))[0])
            out.append(Mark(i, x, step_word(step) + ("↓" if row["fell_back"] else ""), hover))
    return out


def phase_change(copying: pl.DataFrame) -> Band | None:
    """From 10 to 90 % of the rise of copying (its loss; else its accuracy), and at least the checkpoints around it.

    `copying`: from `copying_formation`. None where copying has not formed.
    """
    rows = {row["measure"]: row for row in copying.iter_rows(named=True) if row["formed"]}
    for measure, word in COPYING_MEASURES:
        if measure in rows:
            row = rows[measure]
            low, high = min(row["rise_low"], row["bracket_low"]), max(row["rise_high"], row["bracket_high"])
            return Band(low, high, f"phase change: 10–90 % of the rise of {word}")
    return None


def band_positions(band: Band, axis: StepAxis) -> tuple[float, float]:
    """Left and right end on the axis."""
    at = [math.log10(step) if step >= 1 else axis.low for step in (band.low, band.high)]
    return max(at[0], axis.low), min(at[1], axis.high)


def layer_starts(rows: list[tuple[int, int]]) -> list[int]:
    """Index of the first row of every layer."""
    return [i for i in range(len(rows)) if i == 0 or rows[i][0] != rows[i - 1][0]]
