"""Every Plotly figure, one function each, from tidy tables. All steps share one log axis with a slot for step 0.

Colours: [0, 1] scores viridis from 0 to 1, signed ones red-blue around 0, both fixed over all steps, since scaling
each step to itself would fake formation. Curves in the Okabe-Ito colours, told apart by marker and dash as well;
vermillion is kept for what the analysis found (formation steps, the plateau of the loss). Missing checkpoints are gaps.
"""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from copyscope.analyses.figures.axis import step_axis
from copyscope.analyses.figures.map_data import Band, scale_of, scale_words
from copyscope.analyses.figures.panels import (
    BLUE,
    BOTTOM,
    CURVE,
    GREY,
    GRID,
    ROW,
    TOP,
    VERMILLION,
    draw_copying,
    draw_loss,
    draw_map,
    draw_model,
    look,
    map_height,
    measure_title,
    stack,
)
from copyscope.analyses.formation.heads import formation_map
from copyscope.analyses.formation.loss import LossSettled
from copyscope.analyses.tables.story import STORY_ACCURACIES, STORY_LOSSES
from copyscope.analyses.words.glossary import describe
from copyscope.interp.head_names import head_name
from copyscope.training.errors import InputError

CONFIG = {"showSendToCloud": False, "displaylogo": False, "responsive": True}
"""Plotly's options for every figure: nothing is ever uploaded."""
CONTROLS = {
    "matched": ("mean of heads of like attention entropy", "circle-open", GREY),
    "control": ("mean of the layer's other heads", "diamond-open", VERMILLION),
}
"""Beside the effect of removing a head: ending of the measure, whose effect it is, mark and colour."""
MAX_HEADS = 24
"""Heads listed in a bar figure."""


def formation_map_figure(
    heads: pl.DataFrame,
    measure: str = "induction_score",
    formation: pl.DataFrame | None = None,
    steps: Sequence[int] | None = None,
    band: Band | None = None,
    name: str = "",
) -> go.Figure:
    """The formation map: one row a head, one column a checkpoint, colour the measure (fixed scale).

    `formation`: from `formation_steps`, to mark; `steps`: checkpoints that should be there (gaps where they are not);
    `band`: from `phase_change`, drawn as an outline; `name`: of the run, for the title.
    `analyses.figures.paper.paper_map` is the same on paper. Raises InputError as `formation_map` does. Cannot tell:
    anything between two checkpoints; cells meet half-way by convention.
    """
    grid = formation_map(heads, measure, steps)
    axis = step_axis(grid.steps.tolist())
    title = f"{describe(measure).title}, {scale_words(measure, scale_of(measure, grid.values))}"
    figure, panels = stack([map_height(len(grid.rows))], [escape(f"{name}: {title}" if name else title)], axis)
    draw_map(panels[0], axis, grid, formation, band=band)
    return figure


def curves(
    model: pl.DataFrame, metrics: pl.DataFrame, settled: LossSettled | None = None, copying: pl.DataFrame | None = None
) -> go.Figure:
    """Loss, copying accuracy and copying losses over steps, on one axis: `story_figure` without maps."""
    return story_figure(None, model, metrics, settled=settled, copying=copying, maps={})


def story_figure(
    heads: pl.DataFrame | None,
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    *,
    settled: LossSettled | None = None,
    copying: pl.DataFrame | None = None,
    maps: Mapping[str, pl.DataFrame | None] | None = None,
    span: tuple[int, int] | None = None,
    title: str = "",
) -> go.Figure:
    """The whole run on one step axis: loss, copying accuracy, copying losses, then one formation map a measure.

    `settled`: from `loss_settled`; `copying`: from `copying_formation`; `maps`: measure → table of `formation_steps`
    (or None for no markers); `span`: first and last step shown (None: all); `title`: a line over everything. Training
    loss beyond 400 points is drawn as medians of short stretches. Steps that one table has and another lacks show as
    gaps. Raises InputError: an empty model table and empty metrics, unknown measures.
    """
    maps = {} if maps is None or heads is None else maps
    tables = [table for table in (model, heads) if table is not None]
    measured: list[int] = sorted({step for table in tables for step in table["step"].to_list()})
    axis = step_axis({*measured, *metrics["step"].to_list()})
    if not measured and metrics.is_empty():
        raise InputError("nothing to draw: the model and metrics tables are empty; train and score the run first")
    grids = {measure: formation_map(heads, measure, measured) for measure in maps} if heads is not None else {}
    titles = ["Loss on natural text", "Copying accuracy (0 to 1)", "Loss on random tokens"]
    heights = [CURVE, CURVE, CURVE, *(map_height(len(grid.rows)) for grid in grids.values())]
    figure, panels = stack(heights, [*titles, *(measure_title(measure) for measure in grids)], axis)
    draw_loss(panels[0], axis, metrics, settled)
    draw_model(panels[1], axis, model, STORY_ACCURACIES, measured)
    figure.update_yaxes(title_text="share correct", range=[-0.03, 1.03], row=2, col=1)
    draw_model(panels[2], axis, model, STORY_LOSSES, measured)
    figure.update_yaxes(title_text="nats per token", row=3, col=1)
    for row in copying.iter_rows(named=True) if copying is not None else ():
        if row["measure"] == "copying_accuracy_token":
            draw_copying(panels[1], axis, row)
        elif row["measure"] == "copying_loss_difference":
            draw_copying(panels[2], axis, row, low=True)
    for panel, (measure, grid) in zip(panels[3:], grids.items(), strict=True):
        draw_map(panel, axis, grid, maps[measure])
    if span is not None:
        shown = axis.part(*span)
        at, words = shown.ticks()
        minor = {"tickvals": shown.minor_ticks(), "ticks": "outside", "tickcolor": GRID}
        figure.update_xaxes(range=[shown.low, shown.high], tickvals=at, ticktext=words, minor=minor)
    if title:
        place = {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 8}}
        figure.update_layout(title={"text": escape(title), "font": {"size": 13}, **place}, margin={"t": TOP + 26})
    return figure


def ablation_figure(ablations: pl.DataFrame, measures: Sequence[str] | None = None) -> go.Figure:
    """What removing each head does at the last ablated step: a bar a head, beside heads of like attention entropy and
    the other heads of its layer.

    `measures`: by default copying accuracy per token and copying loss, where there. First method of the table; the
    heads with the largest effect on the first measure, 24 at most, strongest first. Effects are ablated − clean.
    Raises InputError: no such measure. Cannot tell: what two heads do together; backup heads hide effects.
    """
    if ablations.is_empty():
        raise InputError("ablations table: empty; ablate the series first")
    last = ablations.filter(pl.col("step") == pl.col("step").max())
    method = last["method"][0]
    last = last.filter(pl.col("method") == method)
    known = last["measure"].unique().to_list()
    wanted = list(measures or [m for m in ("copying_accuracy_token", "copying_loss") if m in known])
    if not wanted or any(measure not in known for measure in wanted):
        raise InputError(f"ablations table: no measure {(wanted or ['copying_loss'])[0]!r}; it has {', '.join(known)}")
    first = last.filter(pl.col("measure") == wanted[0]).sort(pl.col("value").abs(), descending=True)
    names = first.head(MAX_HEADS).select("layer", "head").rows()
    figure = make_subplots(rows=1, cols=len(wanted), shared_yaxes=True, horizontal_spacing=0.06)
    for column, measure in enumerate(wanted, 1):
        for name, control in ((measure, None), *((f"{measure}_{kind}", shown) for kind, shown in CONTROLS.items())):
            rows = last.filter(pl.col("measure") == name)
            value = {(row["layer"], row["head"]): row["value"] for row in rows.iter_rows(named=True)}
            here = [(i, row) for i, row in enumerate(names) if row in value]
            texts = [f"{head_name(*row)}: {value[row]:+.3f}" for _, row in here]
            shared = {
                "x": [value[row] for _, row in here],
                "y": [i for i, _ in here],
                "text": texts,
                "hovertemplate": "%{text}<extra></extra>",
                "showlegend": column == 1,
            }
            if control is None:
                bar = go.Bar(
                    orientation="h", name="this head removed", marker_color=BLUE, textposition="none", **shared
                )
                figure.add_trace(bar, row=1, col=column)
            elif here:
                of_whom, symbol, colour = control
                look_of = {"symbol": symbol, "size": 9, "color": colour, "line": {"width": 2}}
                figure.add_trace(go.Scatter(mode="markers", name=of_whom, marker=look_of, **shared), row=1, col=column)
        words = describe(measure)
        unit = words.unit or "share"
        title = f"change in {words.title[:1].lower() + words.title[1:]} ({unit})"
        figure.update_xaxes(title_text=escape(title), zeroline=True, zerolinecolor=GREY, row=1, col=column)
    figure.update_xaxes(gridcolor=GRID)
    figure.update_yaxes(
        range=[len(names) - 0.5, -0.5],
        tickvals=list(range(len(names))),
        showgrid=False,
        ticktext=[head_name(*name) for name in names],
    )
    look(figure, ROW * len(names) + TOP + BOTTOM + 40)
    step = int(last["step"][0])
    more = f", the {len(names)} strongest of {first.height} heads" if first.height > len(names) else ""
    _heading(figure, f"Each head ablated ({escape(str(method))}) at step {step:,}: ablated − clean{more}")
    return figure


def _heading(figure: go.Figure, title: str) -> None:
    """Title at the top left with the legend on its own line under it."""
    figure.update_layout(
        title={
            "text": f"<b>{title}</b>",
            "font": {"size": 13},
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 8},
        },
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "xanchor": "left"},
        margin={"t": TOP + 16, "r": 24},
    )


def null_figure(heads: pl.DataFrame, measure: str = "prefix_matching_sum") -> go.Figure:
    """Each head's score at its last step against its random-target null at the same step, highest first, 24 at most.

    Raises InputError: the measure or its null is not there. Cannot tell: how far the null itself would scatter; it is
    one number a head.
    """
    grid, null = formation_map(heads, measure), formation_map(heads, f"{measure}_null")
    step = int(grid.steps[-1])
    score = {row: float(value) for row, value in zip(grid.rows, grid.values[:, -1], strict=True) if np.isfinite(value)}
    chance = {row: float(value) for row, value in zip(null.rows, null.values[:, -1], strict=True)}
    names = sorted(score, key=lambda row: -score[row])[:MAX_HEADS]
    figure = go.Figure()
    lines = [x for row in names for x in (chance.get(row, np.nan), score[row], None)]
    figure.add_scatter(
        x=lines,
        y=[y for i in range(len(names)) for y in (i, i, None)],
        mode="lines",
        hoverinfo="skip",
        line={"color": GREY, "width": 1},
        showlegend=False,
    )
    for values, name, symbol, color in (
        (chance, "random target (null)", "line-ns-open", GREY),
        (score, "score", "circle", BLUE),
    ):
        figure.add_scatter(
            x=[values.get(row, np.nan) for row in names],
            y=list(range(len(names))),
            mode="markers",
            name=name,
            marker={"symbol": symbol, "size": 10, "color": color, "line": {"width": 2, "color": color}},
            text=[f"{head_name(*row)}, {name}: {values.get(row, np.nan):.3f}" for row in names],
            hovertemplate="%{text}<extra></extra>",
        )
    words = describe(measure)
    figure.update_xaxes(
        title_text=measure_title(measure),
        gridcolor=GRID,
        zeroline=False,
        range=[-0.02 if not words.signed else -1.02, 1.02],
    )
    figure.update_yaxes(
        range=[len(names) - 0.5, -0.5],
        tickvals=list(range(len(names))),
        gridcolor=GRID,
        ticktext=[head_name(*name) for name in names],
        zeroline=False,
    )
    look(figure, ROW * len(names) + TOP + BOTTOM + 40)
    more = f", the highest {len(names)} of {len(score)} heads" if len(score) > len(names) else ""
    _heading(figure, f"Score against chance at step {step:,}{more}")
    return figure
