"""What the figures of studies share: colours, markers and dashes of conditions, and axes."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from copyscope.analyses.claims.evidence import COPYING_LOSS
from copyscope.analyses.figures.axis import step_label
from copyscope.analyses.figures.paper import VERMILLION

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000", "#8c6d31", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
"""Conditions differ in marker and dash as well as in colour."""
FIRST_STEP = 10
"""Where the step axis begins: before it nothing copies."""
NAMES = {"copying_accuracy_token": "copying accuracy per token", COPYING_LOSS: "nats saved on repeated tokens"}


def value_of(table: pl.DataFrame, measure: str) -> np.ndarray:
    """A curve as drawn: of the loss difference, what is saved."""
    return table[measure].to_numpy().astype(float) * (-1 if measure == COPYING_LOSS else 1)


def plain_axes(axes: Axes) -> None:
    """A grid behind, and no frame above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.set_axisbelow(True)


def step_axis(axes: Axes, along: str = "x") -> None:
    """A log axis of steps, labelled as steps are said."""
    (axes.set_xscale if along == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if along == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high < 5 * low:  # there a LogLocator names so many steps that they run into each other
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, place: step_label(round(value))))
    axis.set_minor_formatter(NullFormatter())


def law_line(axes: Axes, sizes: Sequence[int], steps: Sequence[float], exponent: float, label: str, line: str) -> None:
    """steps ∝ size^exponent, through the middle of the points on both log axes."""
    ends = np.array([min(sizes), max(sizes)], dtype=float)
    size, step = (np.exp(np.mean(np.log(values))) for values in (sizes, steps))
    axes.plot(ends, step * (ends / size) ** exponent, color=VERMILLION, linestyle=line, linewidth=1, label=label)


def against_size(axes: Axes, sizes: Iterable[int], what: str) -> None:
    """Formation step against a size that was doubled: both axes in logarithms, with a tick at each size."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks := sorted(set(sizes)), [f"{size:,}" for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    step_axis(axes, "y")
    axes.set_xlabel(what)
    axes.set_ylabel("step at which copying forms")
    plain_axes(axes)
