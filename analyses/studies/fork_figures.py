"""The figures of the studies of forks, by matplotlib."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from copyscope.analyses.figures.paper import STYLE, VERMILLION, WIDTH
from copyscope.analyses.studies.drawing import COLOURS, LINES, MARKERS, plain_axes
from copyscope.analyses.studies.fork_verdicts import commitment_table, scatter_table, window_table
from copyscope.analyses.studies.forked import ORDER_ALONE, PARENT

SHARE = "s / formation step of the parent"


def fork_figure(name: str, forks: pl.DataFrame, title: str) -> Figure:
    """The figure of a study of forks (`commitment` or `window`), from `forked.gather_forks`; `title`: what it asks."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
        table = (commitment_table if name == "commitment" else window_table)(forks)
        if table.is_empty():
            figure.text(0.5, 0.45, "no fork has anything to show yet", ha="center")
            return figure
        if name == "commitment":
            left, middle, right = figure.subplots(1, 3)
            _steps(left, forks)
            _scatter(middle, forks, table)
            _heads(right, forks, table)
        else:
            left, right = figure.subplots(1, 2)
            _moved(left, table)
            _switched(right, table)
            for axes in (left, right):
                axes.set_xticks(table["s / formation step"].unique().sort().to_list())
            figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _steps(axes: Axes, forks: pl.DataFrame) -> None:
    """Every fork's formation step, as a share of its parent's, against where it began."""
    formed = dict(forks.filter(pl.col("change") == PARENT).select("parent", "step").iter_rows())
    plain = forks.filter(pl.col("change") == ORDER_ALONE)
    never = plain.filter(pl.col("step").is_null() & (pl.col("state") == "finished"))
    for number, (parent, step) in enumerate(formed.items()):
        if step is None:
            continue
        known, late = (some.filter(pl.col("parent") == parent) for some in (plain.drop_nulls("step"), never))
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": "", "markersize": 3, "alpha": 0.7}
        beside = (number - (len(formed) - 1) / 2) * 0.015
        axes.plot(
            known["share"].to_numpy() + beside,
            known["step"].to_numpy() / step,
            marker=MARKERS[number % len(MARKERS)],
            label=parent,
            **look,
        )
        axes.plot(late["share"].to_numpy() + beside, late["last_step"].to_numpy() / step, "^", mfc="none", **look)
    ends, (low, high) = np.array(axes.get_xlim()), axes.get_ylim()
    axes.plot(ends, ends, color="#999999", linewidth=0.8, linestyle=":")
    axes.set_xlim(*ends)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = min(low, 0.9), max(high, 1.1)
    near = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.5, 1.7, 2)
    axes.set_yticks([tick for tick in (near if high < 4 * low else (0.25, 0.5, 1, 2, 4)) if low <= tick <= high])
    axes.set_ylim(low, high)
    axes.set_xlabel(SHARE)
    axes.set_ylabel("formation step / parent's" + " (△ not by the end)" * (not never.is_empty()))
    axes.legend(fontsize=6, frameon=False)
    plain_axes(axes)


def _scatter(axes: Axes, forks: pl.DataFrame, table: pl.DataFrame) -> None:
    _each_parent(axes, forks, "scatter")
    _with_ends(axes, table, "scatter of ln step", "mean, 95 %")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(SHARE)
    axes.set_ylabel("scatter of ln step over forks")
    axes.legend(fontsize=6, frameon=False)
    plain_axes(axes)


def _heads(axes: Axes, forks: pl.DataFrame, table: pl.DataFrame) -> None:
    _each_parent(axes, forks, "own_head")
    axes.plot(
        table["s / formation step"].to_numpy(),
        table["parent's head first"].to_numpy(),
        color=VERMILLION,
        linewidth=1.6,
        label="mean",
    )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(SHARE)
    axes.set_ylabel("forks whose first head is the parent's")
    plain_axes(axes)


def _each_parent(axes: Axes, forks: pl.DataFrame, column: str) -> None:
    table = scatter_table(forks)
    for number, (parent,) in enumerate(table.select("parent").unique(maintain_order=True).iter_rows()):
        own = table.filter(pl.col("parent") == parent).sort("share")
        axes.plot(
            own["share"].to_numpy(),
            own[column].to_numpy(),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=3,
            linewidth=0.8,
        )


def _with_ends(axes: Axes, table: pl.DataFrame, name: str, label: str) -> None:
    x, y, low, high = _ends(table, name)
    axes.plot(x, y, color=VERMILLION, linewidth=1.6, label=label)
    axes.fill_between(x, low, high, color=VERMILLION, alpha=0.15, linewidth=0)


def _ends(table: pl.DataFrame, name: str) -> list[np.ndarray]:
    """Where forks begin, and a column with its interval there."""
    columns = ("s / formation step", name, f"{name}, low", f"{name}, high")
    return [table[column].cast(pl.Float64).to_numpy() for column in columns]


def _moved(axes: Axes, table: pl.DataFrame) -> None:
    name = "relative change of the step"
    for number, change in enumerate(table["change"].unique(maintain_order=True)):
        own = table.filter(pl.col("change") == change)
        x, y, low, high = _ends(own, name)
        axes.errorbar(
            x + (number - 1) * 0.012,
            100 * y,
            yerr=100 * np.array([y - low, high - y]),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            markersize=3.5,
            linewidth=0.9,
            label=change,
        )
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set_xlabel(f"begin of the change: {SHARE}")
    axes.set_ylabel("formation step moves by (%)")
    plain_axes(axes)


def _switched(axes: Axes, table: pl.DataFrame) -> None:
    for number, change in enumerate(table["change"].unique(maintain_order=True)):
        own = table.filter(pl.col("change") == change)
        axes.plot(
            own["s / formation step"].to_numpy(),
            own["other head"].cast(pl.Float64).to_numpy(),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=LINES[number % len(LINES)],
            markersize=3.5,
            linewidth=0.9,
        )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"begin of the change: {SHARE}")
    axes.set_ylabel("pairs in which another head is first\n(of those in which both formed one)")
    plain_axes(axes)
