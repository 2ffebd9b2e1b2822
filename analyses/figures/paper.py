"""Formation maps for paper, drawn by matplotlib: PDF, SVG and PNG with the same content as the Plotly figure."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from copyscope.analyses.figures.axis import StepAxis, step_axis
from copyscope.analyses.figures.map_data import (
    NO_SCORE,
    Band,
    Scale,
    band_positions,
    bar_title,
    blocks,
    layer_starts,
    marks,
    scale_of,
    scale_words,
)
from copyscope.analyses.formation.heads import FormationMap, formation_map
from copyscope.analyses.words.glossary import describe
from copyscope.interp.head_names import head_name
from copyscope.training.errors import InputError

FORMATS = ("pdf", "svg", "png")
VERMILLION = "#d55e00"
WIDTH = 7.0
"""Inches; the text width of most papers."""
NAMED = 64
"""Heads that still get a label each."""
MAX_VECTOR_CELLS = 20_000
"""Beyond this the cells are stored as an image inside the PDF or SVG, lines and words stay vectors."""
STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,  # TrueType, embedded: text stays text, and opens where the font is not installed
    "svg.fonttype": "path",
    "svg.hashsalt": "copyscope",  # equal input, equal file
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "font.family": "DejaVu Sans",
}


def paper_map(
    heads: pl.DataFrame,
    measure: str = "induction_score",
    formation: pl.DataFrame | None = None,
    steps: Sequence[int] | None = None,
    band: Band | None = None,
) -> Figure:
    """The formation map as a matplotlib figure: cells, fixed scale, marks and words as in `formation_map_figure`.

    Arguments and errors as there. Steps lie on the same axis (log, step 0 in a slot of its own), layer 0 is on top,
    what was not measured is grey, and the phase change is an outline whose rule is written above it.
    """
    grid = formation_map(heads, measure, steps)
    axis, scale = step_axis(grid.steps.tolist()), scale_of(measure, grid.values)
    row = 0.16 if len(grid.rows) <= NAMED else 0.06
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, max(row * len(grid.rows), 0.8) + 1.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _cells(figure, axes, grid, axis, scale)
        _frame(axes, grid, axis)
        axes.set_title(
            f"{describe(measure).title}, {scale_words(measure, scale)}",
            loc="left",
            fontweight="bold",
            fontsize=9,
            pad=14 if band else 6,
        )
        if band is not None:
            _band(axes, axis, band)
        if formation is not None:
            _marks(axes, grid, axis, formation)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: every file shows the same
    return figure


def _cells(figure: Figure, axes: Axes, grid: FormationMap, axis: StepAxis, scale: Scale) -> None:
    places = [(place, _rgb(color)) for place, color in scale.colors]
    colors = LinearSegmentedColormap.from_list("scores", places, 256).with_extremes(bad=NO_SCORE)
    rows = np.arange(len(grid.rows) + 1) - 0.5
    mesh = None
    for block in blocks(grid, axis):
        mesh = axes.pcolormesh(
            block.edges,
            rows,
            np.ma.masked_invalid(block.values),
            cmap=colors,
            vmin=scale.low,
            vmax=scale.high,
            rasterized=grid.values.size > MAX_VECTOR_CELLS,
            linewidth=0,
        )
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=axes, pad=0.09, fraction=0.03, aspect=30)
        bar.ax.set_title(bar_title(grid.measure), fontsize=8)
        bar.outline.set_visible(False)  # type: ignore[operator]


def _rgb(color: str) -> str | tuple[float, ...]:
    """A colour as matplotlib takes it; Plotly writes some as rgb(r, g, b)."""
    if color.startswith("rgb("):
        return tuple(float(part) / 255 for part in color[4:-1].split(","))
    return color


def _frame(axes: Axes, grid: FormationMap, axis: StepAxis) -> None:
    """Axes, ticks and the lines between layers."""
    axes.set_xlim(axis.low, axis.high)
    axes.set_ylim(len(grid.rows) - 0.5, -0.5)
    at, words = axis.ticks()
    axes.set_xticks(at, words)
    axes.set_xticks(axis.minor_ticks(), minor=True)
    axes.set_xlabel("step (log scale, step 0 in its own slot)")
    starts = layer_starts(grid.rows)
    if len(grid.rows) <= NAMED:
        axes.set_yticks(range(len(grid.rows)), [head_name(*row) for row in grid.rows], fontsize=6.5)
    else:
        ends = [*starts[1:], len(grid.rows)]
        middle = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
        axes.set_yticks(middle, [head_name(grid.rows[i][0], None) for i in starts], fontsize=7)
    axes.tick_params(axis="y", length=0)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="#9a9a9a", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _band(axes: Axes, axis: StepAxis, band: Band) -> None:
    low, high = band_positions(band, axis)
    low_row, high_row = axes.get_ylim()
    axes.plot(
        [low, low, high, high, low], [low_row, high_row, high_row, low_row, low_row], color="white", linewidth=2.2
    )
    axes.plot(
        [low, low, high, high, low],
        [low_row, high_row, high_row, low_row, low_row],
        color=VERMILLION,
        linewidth=1.1,
        linestyle=(0, (4, 2)),
        label=band.rule,
    )
    right = (low + high) / 2 > (axis.low + axis.high) / 2
    axes.annotate(
        band.rule,
        (high if right else low, high_row),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        color=VERMILLION,
        fontsize=7,
    )


def _marks(axes: Axes, grid: FormationMap, axis: StepAxis, formation: pl.DataFrame) -> None:
    shown = marks(grid, axis, formation)
    axes.scatter(
        [mark.x for mark in shown],
        [mark.row for mark in shown],
        marker="D",
        s=22,
        color=VERMILLION,
        edgecolor="white",
        linewidth=0.8,
        zorder=3,
        clip_on=False,
        label="formed",
    )
    words = {mark.row: mark.word for mark in shown}
    early = {(r["layer"], r["head"]) for r in formation.iter_rows(named=True) if r["status"] == "from the start"}
    words |= {i: "start" for i, name in enumerate(grid.rows) if name in early}
    side = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "color": VERMILLION}
    spacing = 1 if len(grid.rows) <= NAMED else 3  # rows that a word takes
    last = -spacing
    for i, word in sorted(words.items()):
        if i - last >= spacing:
            last = i
            axes.annotate(word, (1, i), xytext=(4, 0), fontsize=6.5, **side)
    axes.annotate(
        "formed at",
        (1, 1),
        xycoords="axes fraction",
        xytext=(4, 3),
        textcoords="offset points",
        va="bottom",
        color=VERMILLION,
        fontsize=6.5,
    )


def rendered(figure: Figure, kind: str) -> bytes:
    """The figure as a file's content; `kind`: pdf, svg or png (300 dots an inch). Equal figures give equal bytes.

    Raises InputError for another kind.
    """
    if kind not in FORMATS:
        raise InputError(f"figures: no format {kind!r}; use html, {', '.join(FORMATS)}")
    out = io.BytesIO()
    date = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format=kind, dpi=300, metadata=date)
    return out.getvalue()
