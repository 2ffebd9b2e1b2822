"""Formation maps for paper, drawn by matplotlib: PDF, SVG and PNG with the same content as the Plotly figure."""

import io
import textwrap
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
NARROW = 5.0
"""Inches below which words are shortened."""
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
    *,
    width: float = WIDTH,
    name: str = "",
) -> Figure:
    """The formation map as a matplotlib figure: cells, fixed scale, marks and words as in `formation_map_figure`.

    `width` in inches, from 2 to 40: 3.25 fits one column of most papers; `name`: of the run, for the title. Other
    arguments and errors as there. Steps lie on the same axis (log, step 0 in a slot of its own), layer 0 is on top,
    what was not measured is grey, and the phase change is an outline whose rule is written above it.
    """
    grid = formation_map(heads, measure, steps)
    axis = step_axis(grid.steps.tolist())
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, map_inches(grid) + 1.0)
        axes = figure.add_subplot()
        draw_map(figure, axes, grid, axis, formation, band, title=name)
        label_steps(axes, axis)
        finish(figure)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches. Raises InputError for a width under 2."""
    if not 2 <= width <= 40:
        raise InputError(f"width={width:g}: give inches from 2 to 40; a column of a paper has 3.25, a page 7")
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(figure: Figure) -> None:
    """Lays the figure out once, so that every file shows the same."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def map_inches(grid: FormationMap) -> float:
    """Height of a map's cells."""
    return max((0.16 if len(grid.rows) <= NAMED else 0.06) * len(grid.rows), 0.8)


def wrapped(figure: Figure, text: str, size: int) -> str:
    """Text in lines that fit the figure's width; `size` in points."""
    letters = (figure.get_figwidth() - 0.7) * 72 / (0.62 * size)  # what a bold letter takes, beside the axis' labels
    return "\n".join(textwrap.wrap(text, max(16, int(letters))))


def draw_map(
    figure: Figure,
    axes: Axes,
    grid: FormationMap,
    axis: StepAxis,
    formation: pl.DataFrame | None = None,
    band: Band | None = None,
    *,
    title: str = "",
    bar: bool = True,
) -> None:
    """A map's cells, its colour bar, the lines between layers, the outline of the phase change and the marks.

    `title` stands before the measure's name.
    """
    scale = scale_of(grid.measure, grid.values)
    _cells(figure, axes, grid, axis, scale, bar)
    _frame(axes, grid, axis)
    words = f"{describe(grid.measure).title}, {scale_words(grid.measure, scale)}"
    words = wrapped(figure, f"{title}: {words}" if title else words, 9)
    axes.set_title(words, loc="left", fontweight="bold", fontsize=9, pad=14 if band or formation is not None else 6)
    if band is not None:
        _band(axes, axis, band, short=bool(figure.get_figwidth() < NARROW))
    if formation is not None:
        _marks(axes, grid, axis, formation)


def label_steps(axes: Axes, axis: StepAxis) -> None:
    """Ticks and title of the shared axis of steps; on a narrow figure, every other label where they would collide."""
    at, words = axis.ticks()
    figure = axes.figure
    most = max(3, int(figure.get_figwidth() / 0.45))  # type: ignore[union-attr]
    every = -(-len(at) // most)
    axes.set_xticks(at, [word if i % every == 0 else "" for i, word in enumerate(words)])
    axes.set_xticks(axis.minor_ticks(), minor=True)
    zero = ", step 0 in its own slot" if axis.zero else ""
    axes.set_xlabel(f"step (log scale{zero})")


def _cells(figure: Figure, axes: Axes, grid: FormationMap, axis: StepAxis, scale: Scale, shown: bool) -> None:
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
            linewidth=0.2,  # in the cell's own colour, or viewers show a seam between neighbours
            edgecolors="face",
        )
    if mesh is not None and shown:
        pad = 0.63 / figure.get_figwidth()  # room for the steps beside the rows
        bar = figure.colorbar(mesh, ax=axes, pad=pad, fraction=0.03, aspect=30)
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


def _band(axes: Axes, axis: StepAxis, band: Band, short: bool) -> None:
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
        band.rule.partition(":")[0] if short else band.rule,
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
