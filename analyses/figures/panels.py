"""The panels figures are made of: curves and formation maps stacked on one step axis, all in one look."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from copyscope.analyses.figures.axis import StepAxis, step_word
from copyscope.analyses.figures.map_data import (
    NO_SCORE,
    Band,
    band_positions,
    bar_title,
    blocks,
    layer_starts,
    marks,
    scale_of,
)
from copyscope.analyses.formation.heads import FormationMap
from copyscope.analyses.formation.loss import LossSettled
from copyscope.analyses.formation.step_text import step_number
from copyscope.analyses.words.glossary import describe
from copyscope.interp.head_names import head_name

VERMILLION, BLUE, SKY, GREEN, PURPLE, GREY = "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#b5598f", "#808080"
GRID = "rgba(128,128,128,0.25)"
ROW, LOW_ROW = 17, 6
"""Pixels a head; the lower one with more than `NAMED` heads."""
NAMED = 64
"""Heads that still get a label each."""
CURVE = 190
"""Pixels a curve panel."""
GAP = 66
"""Pixels between panels: room for tick labels and the next title."""
TOP, BOTTOM, LEFT, RIGHT = 50, 56, 66, 118


class Panel:
    """One panel of a stacked figure: its axes' names and a way to draw its title."""

    def __init__(self, figure: go.Figure, row: int, title: str) -> None:
        self.figure, self.row = figure, row
        self.number = "" if row == 1 else str(row)
        top = self.domain[1]
        figure.add_annotation(
            text=f"<b>{title}</b>",
            x=0,
            y=top,
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=6,
            showarrow=False,
            font={"size": 13},
        )

    @property
    def domain(self) -> tuple[float, float]:
        """Where the panel stands on the paper, bottom and top, in [0, 1]."""
        layout: Any = self.figure.layout
        return tuple(layout[f"yaxis{self.number}"].domain)

    def add(self, trace: Any) -> None:
        self.figure.add_trace(trace, row=self.row, col=1)


def stack(heights: Sequence[int], titles: Sequence[str], axis: StepAxis) -> tuple[go.Figure, list[Panel]]:
    """Panels under one another on one step axis, `heights` in pixels."""
    gaps = GAP * (len(heights) - 1)
    inner = sum(heights) + gaps
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        row_heights=list(heights),
        vertical_spacing=GAP / inner if gaps else 0,
    )
    at, words = axis.ticks()
    figure.update_xaxes(
        range=[axis.low, axis.high],
        tickvals=at,
        ticktext=words,
        showticklabels=True,
        gridcolor=GRID,
        zeroline=False,
        ticks="outside",
        tickcolor=GRID,
        minor={"tickvals": axis.minor_ticks(), "ticks": "outside", "tickcolor": GRID},
    )
    figure.update_xaxes(title_text="step (log scale, step 0 in its own slot)", row=len(heights), col=1)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    look(figure, inner + TOP + BOTTOM)
    return figure, [Panel(figure, i + 1, title) for i, title in enumerate(titles)]


def look(figure: go.Figure, height: int) -> None:
    """The shared look: transparent, so that the page decides on light or dark."""
    figure.update_layout(
        height=height,
        margin={"t": TOP, "b": BOTTOM, "l": LEFT, "r": RIGHT},
        template="none",
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "family": "sans-serif"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": VERMILLION},
    )


def map_height(heads: int) -> int:
    """Pixels a formation map of so many heads takes."""
    return max((ROW if heads <= NAMED else LOW_ROW) * heads, 80)


def measure_title(measure: str) -> str:
    """Title with range or unit; text that came from a table is escaped, since Plotly reads text as HTML."""
    words = describe(measure)
    return escape(f"{words.title}, {words.scale}")


def _curve(
    axis: StepAxis,
    rows: pl.DataFrame,
    column: str,
    name: str,
    color: str,
    symbol: str,
    dash: str = "solid",
    **more: Any,
) -> go.Scatter:
    """One line with markers; hover gives the true step."""
    steps = rows["step"].to_numpy().astype(np.int64)
    return go.Scatter(
        x=axis.positions(steps).astype(np.float32),
        y=rows[column].to_numpy().astype(np.float32),
        customdata=steps.astype(np.int32),
        name=escape(name),
        mode="lines+markers",
        connectgaps=False,
        cliponaxis=False,
        line={"color": color, "width": 1.8, "dash": dash},
        marker={"symbol": symbol, "size": 5, "color": color},
        hovertemplate=f"{escape(name)}: %{{y:.4g}}<br>step %{{customdata:,}}<extra></extra>",
    )


def _thin(rows: pl.DataFrame, axis: StepAxis, column: str, most: int = 400) -> pl.DataFrame:
    """At most `most` points, evenly spread along the log axis, each the median of its stretch."""
    if rows.height <= most:
        return rows
    steps = rows["step"].to_numpy().astype(np.int64)
    share = (axis.positions(steps) - axis.low) / (axis.high - axis.low)
    stretch = pl.Series("stretch", np.floor(np.nan_to_num(share) * most).astype(np.int64))
    return (
        rows.with_columns(stretch)
        .group_by("stretch")
        .agg(pl.col("step").median().cast(pl.Int64), pl.col(column).median())
        .sort("step")
        .select("step", column)
    )


def _legend(panel: Panel) -> None:
    """A legend of its own at the right above each panel, where no data are."""
    name = f"legend{panel.number}"
    top = panel.domain[1]
    panel.figure.update_traces(legend=name, row=panel.row, col=1)
    panel.figure.update_layout(
        {
            name: {
                "orientation": "h",
                "x": 1,
                "xanchor": "right",
                "y": top,
                "yanchor": "bottom",
                "yref": "paper",
                "bgcolor": "rgba(0,0,0,0)",
                "font": {"size": 12},
            }
        }
    )


def _mark(panel: Panel, axis: StepAxis, step: int, words: str, low: bool = False) -> None:
    """A vertical vermillion line at `step` with its words beside it, on the side that has room, at the top or `low`."""
    x = float(axis.positions(np.array([step]))[0])
    right = x > (axis.low + axis.high) / 2
    panel.figure.add_vline(x=x, line={"color": VERMILLION, "width": 1.5, "dash": "dash"}, row=panel.row, col=1)  # type: ignore[arg-type]
    panel.figure.add_annotation(
        x=x,
        y=0.03 if low else 0.97,
        yref=f"y{panel.number} domain",
        xref=f"x{panel.number}",
        text=escape(words),
        showarrow=False,
        xanchor="right" if right else "left",
        yanchor="bottom" if low else "top",
        xshift=-5 if right else 5,
        font={"color": VERMILLION, "size": 12},
    )


def draw_loss(panel: Panel, axis: StepAxis, metrics: pl.DataFrame, settled: LossSettled | None) -> None:
    training = _thin(metrics.drop_nulls("loss").sort("step").select("step", "loss"), axis, "loss")
    trace = _curve(axis, training, "loss", "training", SKY, "circle")
    panel.add(trace.update(mode="lines", line={"color": SKY, "width": 1.2}))
    if "validation_loss" in metrics.columns:
        rows = metrics.drop_nulls("validation_loss").sort("step")
        if rows.height:
            panel.add(_curve(axis, rows, "validation_loss", "validation", BLUE, "circle"))
    if settled is not None and settled.step is not None:
        words = f"plateaued at {step_word(settled.step)} (a doubling brings < {settled.share:.0%})"
        _mark(panel, axis, settled.step, words)
    panel.figure.update_yaxes(title_text="nats per token", row=panel.row, col=1)
    _legend(panel)


def draw_model(
    panel: Panel, axis: StepAxis, model: pl.DataFrame, measures: Mapping[str, str], steps: Sequence[int]
) -> None:
    looks = ((BLUE, "circle", "solid"), (PURPLE, "diamond", "dash"), (GREEN, "square", "dot"))
    every = pl.DataFrame({"step": sorted(set(steps))}, schema={"step": pl.Int64})
    for (measure, name), (color, symbol, dash) in zip(measures.items(), looks, strict=False):
        rows = model.filter(pl.col("measure") == measure)
        if rows.height:
            known = every.join(rows.select("step", "value"), on="step", how="left").sort("step")
            panel.add(_curve(axis, known, "value", name, color, symbol, dash))
    _legend(panel)


def draw_map(
    panel: Panel,
    axis: StepAxis,
    grid: FormationMap,
    formation: pl.DataFrame | None,
    colorbar: bool = True,
    band: Band | None = None,
) -> None:
    """One heatmap: a row a head, layer 0 on top, lines between layers, formation steps marked and written out."""
    rows, scale = grid.rows, scale_of(grid.measure, grid.values)
    bottom, top = panel.domain
    title = {"text": bar_title(grid.measure), "side": "top"}
    bar = {
        "title": title,
        "thickness": 12,
        "len": top - bottom,
        "lenmode": "fraction",
        "y": (top + bottom) / 2,
        "x": 1,
        "xpad": 62,
        "outlinewidth": 0,
    }
    for number, block in enumerate(blocks(grid, axis)):
        # Grey under every cell: what shows through was not measured, and cannot be taken for a score near 0.
        panel.figure.add_shape(
            type="rect",
            x0=float(block.edges[0]),
            x1=float(block.edges[-1]),
            y0=-0.5,
            y1=len(rows) - 0.5,
            layer="below",
            line_width=0,
            fillcolor=NO_SCORE,
            row=panel.row,
            col=1,
        )
        label = [[f"{head_name(*name)}, step {step:,}" for step in block.steps] for name in rows]
        panel.add(
            go.Heatmap(
                x=block.edges.astype(np.float32),
                y=np.arange(len(rows) + 1) - 0.5,
                z=block.values.astype(np.float32),
                text=label,
                hovertemplate="%{text}: %{z:.3f}<extra></extra>",
                hoverongaps=False,
                showscale=number == 0 and colorbar,
                colorbar=bar,
                colorscale=scale.colors,
                zmin=scale.low,
                zmax=scale.high,
            )
        )
    _rows_axis(panel, rows)
    if band is not None:
        _draw_band(panel, axis, len(rows), band)
    if formation is not None:
        _draw_formation(panel, axis, grid, formation)


def _draw_band(panel: Panel, axis: StepAxis, rows: int, band: Band) -> None:
    """The outline of the phase change, its rule written inside the foot of it or beside it."""
    low, high = band_positions(band, axis)
    box = {"type": "rect", "x0": low, "x1": high, "y0": -0.5, "y1": rows - 0.5, "row": panel.row, "col": 1}
    panel.figure.add_shape(line={"color": "white", "width": 3}, fillcolor="rgba(0,0,0,0)", **box)
    panel.figure.add_shape(
        line={"color": VERMILLION, "width": 1.5, "dash": "dash"}, fillcolor="rgba(0,0,0,0)", name=band.rule, **box
    )
    panel.figure.add_annotation(
        text=escape(band.rule),
        x=axis.high,
        xref=f"x{panel.number}",
        y=1,
        yref=f"y{panel.number} domain",
        xanchor="right",
        yanchor="bottom",
        yshift=5,
        showarrow=False,
        font={"size": 11, "color": VERMILLION},
    )


def _rows_axis(panel: Panel, rows: list[tuple[int, int]]) -> None:
    """Row labels and thin lines between layers; with more than `NAMED` heads one label a layer."""
    starts = layer_starts(rows)
    if len(rows) <= NAMED:
        at, words = list(range(len(rows))), [head_name(*row) for row in rows]
    else:
        ends = [*starts[1:], len(rows)]
        at, words = (
            [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)],
            [head_name(rows[i][0], None) for i in starts],
        )
    panel.figure.update_yaxes(
        range=[len(rows) - 0.5, -0.5],
        tickvals=at,
        ticktext=words,
        showgrid=False,
        row=panel.row,
        col=1,
        tickfont={"size": 11 if len(rows) <= NAMED else 12},
    )
    for start in starts[1:]:
        panel.figure.add_hline(y=start - 0.5, line={"color": "#9a9a9a", "width": 1}, row=panel.row, col=1)  # type: ignore[arg-type]


def _draw_formation(panel: Panel, axis: StepAxis, grid: FormationMap, formation: pl.DataFrame) -> None:
    """A marker at each formation step, and the step in words at the row's right end."""
    rows, shown = grid.rows, marks(grid, axis, formation)
    panel.add(
        go.Scatter(
            x=[mark.x for mark in shown],
            y=[mark.row for mark in shown],
            mode="markers",
            name="formed",
            showlegend=False,
            marker={"symbol": "diamond", "size": 9, "color": VERMILLION, "line": {"color": "white", "width": 1.2}},
            text=[mark.hover for mark in shown],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    note = {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 6, "showarrow": False}
    panel.figure.add_annotation(
        text="formed at",
        yref=f"y{panel.number} domain",
        y=1,
        yanchor="bottom",
        yshift=5,
        font={"size": 11, "color": VERMILLION},
        **note,
    )
    words = {mark.row: mark.word for mark in shown}
    early = {(r["layer"], r["head"]) for r in formation.iter_rows(named=True) if r["status"] == "from the start"}
    words |= {i: "start" for i, row in enumerate(rows) if row in early}
    last = -math.inf
    for i, word in sorted(words.items()):
        if (i - last) * map_height(len(rows)) / len(rows) < 12:
            continue  # no room under the label above; hovering the marker still tells
        last = i
        panel.figure.add_annotation(
            text=word, yref=f"y{panel.number}", y=i, font={"size": 11, "color": VERMILLION}, **note
        )


def draw_copying(panel: Panel, axis: StepAxis, row: dict[str, Any], low: bool = False) -> None:
    """Mark what `copying_formation` found: half-way up, or else where it began; nothing for "not yet"."""
    if row["step"] is not None:
        _mark(panel, axis, step_number(row), f"half-way at {step_word(step_number(row))}", low)
    elif row["onset"] is not None:
        _mark(panel, axis, row["onset"], f"begun at {step_word(row['onset'])}", low)
