"""Figures for a paper that tell a whole run or several: curves and maps on one axis of steps, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copyscope.analyses.figures.axis import StepAxis, step_axis
from copyscope.analyses.figures.map_data import Band, band_positions
from copyscope.analyses.figures.paper import (
    STYLE,
    VERMILLION,
    WIDTH,
    draw_map,
    finish,
    label_steps,
    map_inches,
    new_figure,
    wrapped,
)
from copyscope.analyses.formation.heads import formation_map
from copyscope.analyses.statistics.intervals import t_interval
from copyscope.analyses.tables.story import STORY_ACCURACIES, STORY_LOSSES
from copyscope.analyses.words.glossary import describe
from copyscope.interp.head_names import head_name
from copyscope.training.errors import InputError

LOOKS = (("#0072b2", "o", "-"), ("#cc79a7", "D", "--"), ("#009e73", "s", ":"))
"""Colours of Okabe and Ito, told apart by mark and dash too."""
CURVE = 1.0
"""Inches a panel of curves."""
MAX_LINES = 5
"""Heads drawn in colour; the others are grey."""


def paper_story(
    heads: pl.DataFrame,
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    *,
    maps: Mapping[str, pl.DataFrame | None],
    band: Band | None = None,
    span: tuple[int, int] | None = None,
    title: str = "",
    width: float = WIDTH,
) -> Figure:
    """The run on one axis of steps, as `story_figure` draws it: loss, copying accuracy, loss on random tokens, then a
    formation map a measure.

    `maps`: measure → table of `formation_steps` (None for no marks); `band`: from `phase_change`; `span`: first and
    last step shown (None: all); `title`: a line over everything; `width` in inches, from 2 to 40. Raises InputError for
    unknown measures.
    """
    steps = sorted({*model["step"].to_list(), *heads["step"].to_list()})
    axis = step_axis({*steps, *metrics["step"].to_list()})
    grids = [formation_map(heads, measure, steps) for measure in maps]
    panels = [_loss, _accuracy, _random_loss]
    inches = [CURVE] * len(panels) + [map_inches(grid) for grid in grids]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, sum(inches) + 0.45 * len(inches) + 0.6)
        rows = figure.subplots(len(inches), 1, sharex=True, gridspec_kw={"height_ratios": inches}, squeeze=False)[
            :, 0
        ].tolist()
        for axes, panel in zip(rows, panels, strict=False):
            panel(axes, axis, model, metrics)
            _shade(axes, axis, band)
        for axes, grid in zip(rows[len(panels) :], grids, strict=True):
            draw_map(figure, axes, grid, axis, maps[grid.measure], None)
            _shade(axes, axis, band, outline=True)
        _finish(figure, rows, axis, title, span)
    return figure


def paper_phase_change(
    heads: pl.DataFrame,
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    *,
    band: Band | None = None,
    measure: str = "prefix_matching_sum",
    span: tuple[int, int] | None = None,
    title: str = "",
    width: float = WIDTH,
) -> Figure:
    """Loss, ICL score and `measure` of every head over steps, with the phase change as a band, as Olsson et al. (2022)
    show it. The ICL score is late minus early loss, in nats: lower is more. Panels without data are left out.

    The heads with the highest final score are in colour. Arguments and errors as for `paper_story`.
    """
    axis = step_axis({*heads["step"].to_list(), *metrics["step"].to_list()})

    def scores(axes: Axes, axis: StepAxis, model: pl.DataFrame, metrics: pl.DataFrame) -> None:
        _heads(axes, axis, heads, measure)

    icl = [_icl] if (model["measure"] == "icl_score").any() else []
    panels = [*([] if metrics.is_empty() else [_loss]), *icl, scores]
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, 1.45 * len(panels) + 0.8)
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0].tolist()
        for axes, panel in zip(rows, panels, strict=True):
            panel(axes, axis, model, metrics)
            _shade(axes, axis, band)
        _finish(figure, rows, axis, title, span)
    return figure


def paper_seeds(
    runs: Mapping[str, tuple[pl.DataFrame, pl.DataFrame]],
    measure: str = "prefix_matching_sum",
    *,
    curve: str = "copying_accuracy_token",
    width: float = WIDTH,
) -> Figure:
    """Several runs of one recipe: `curve` of each with the mean and its 95 % interval, then a small map a run.

    `runs`: name → its tables of heads and of the model. The mean and the interval (Student's t over runs) are of the
    steps that all runs have. Raises InputError for fewer than two runs, a measure that one of them has not got, or
    runs without a common step.
    """
    if len(runs) < 2:
        raise InputError(f"paper_seeds: {len(runs)} run; give two or more")
    grids = {name: formation_map(heads, measure) for name, (heads, _) in runs.items()}
    axis = step_axis(step for grid in grids.values() for step in grid.steps.tolist())
    columns = 2 if width < 5 else min(3, len(runs))
    lines = -(-len(runs) // columns)
    tall = max(map_inches(grid) for grid in grids.values()) * 0.6
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, 1.6 + lines * (tall + 0.5))
        places = figure.add_gridspec(lines + 1, columns, height_ratios=[1.3] + [tall] * lines)
        top = figure.add_subplot(places[0, :])
        _mean(top, axis, {name: model for name, (_, model) in runs.items()}, curve)
        top.set_xlim(axis.low, axis.high)
        label_steps(top, axis)
        for place, (name, grid) in enumerate(grids.items()):
            axes = figure.add_subplot(places[1 + place // columns, place % columns])
            draw_map(figure, axes, grid, axis, bar=False)
            axes.set_title(f"{name}", loc="left", fontsize=8)
            axes.set_yticks([])
            at, words = axis.ticks()
            axes.set_xticks(at[:: max(1, len(at) // 3)], words[:: max(1, len(at) // 3)])
            axes.set_xlabel("")
        figure.suptitle(wrapped(figure, f"{describe(measure).title} of {len(runs)} runs, one map each", 9), fontsize=9)
        finish(figure)
    return figure


def _line(axes: Axes, axis: StepAxis, rows: pl.DataFrame, column: str, name: str, look: int) -> None:
    color, marker, dash = LOOKS[look]
    few = rows.height <= 80
    at = axis.positions(rows["step"].to_numpy())
    style: dict[str, Any] = {"color": color, "linestyle": dash if few else "-", "linewidth": 1.2 if few else 0.8}
    axes.plot(at, rows[column].to_numpy(), marker=marker if few else "", markersize=2.4, label=name, **style)


def _loss(axes: Axes, axis: StepAxis, model: pl.DataFrame, metrics: pl.DataFrame) -> None:
    for look, (column, name) in enumerate((("loss", "training"), ("validation_loss", "validation"))):
        if column in metrics.columns and metrics[column].count():
            _line(axes, axis, metrics.drop_nulls(column).sort("step"), column, name, look)
    _panel(axes, "Loss", "nats per token")


def _accuracy(axes: Axes, axis: StepAxis, model: pl.DataFrame, metrics: pl.DataFrame) -> None:
    _lines(axes, axis, model, STORY_ACCURACIES)
    axes.set_ylim(-0.03, 1.03)
    _panel(axes, "Copying accuracy", "share correct")


def _random_loss(axes: Axes, axis: StepAxis, model: pl.DataFrame, metrics: pl.DataFrame) -> None:
    _lines(axes, axis, model, STORY_LOSSES)
    _panel(axes, "Loss on random tokens", "nats per token")


def _lines(axes: Axes, axis: StepAxis, model: pl.DataFrame, measures: Mapping[str, str]) -> None:
    for look, (measure, name) in enumerate(measures.items()):
        rows = model.filter(pl.col("measure") == measure).sort("step")
        if rows.height:
            _line(axes, axis, rows, "value", name, look)


def _icl(axes: Axes, axis: StepAxis, model: pl.DataFrame, metrics: pl.DataFrame) -> None:
    rows = model.filter(pl.col("measure") == "icl_score").sort("step")
    error = model.filter(pl.col("measure") == "icl_score_se").select("step", se="value")
    rows = rows.join(error, on="step", how="left").sort("step")
    at, value, spread = axis.positions(rows["step"].to_numpy()), rows["value"].to_numpy(), rows["se"].to_numpy()
    if np.isfinite(spread.astype(float)).any():
        axes.fill_between(at, value - 1.96 * spread, value + 1.96 * spread, color=LOOKS[0][0], alpha=0.2, linewidth=0)
    _line(axes, axis, rows, "value", "late minus early loss", 0)
    _panel(axes, "In-context-learning score", "nats")


def _heads(axes: Axes, axis: StepAxis, heads: pl.DataFrame, measure: str) -> None:
    grid = formation_map(heads, measure)
    at = axis.positions(grid.steps)
    order = np.argsort(-np.nan_to_num(grid.values[:, -1], nan=-np.inf))
    for place in order[MAX_LINES:]:
        axes.plot(at, grid.values[place], color="#b0b0b0", linewidth=0.6)
    colors = matplotlib.colormaps["plasma"](np.linspace(0.05, 0.8, MAX_LINES))
    for color, place in zip(colors, order[:MAX_LINES], strict=False):
        axes.plot(at, grid.values[place], color=color, linewidth=1.2, label=head_name(*grid.rows[place]))
    _panel(axes, f"{describe(measure).title}, every head", describe(measure).unit or "score")


def _mean(axes: Axes, axis: StepAxis, models: Mapping[str, pl.DataFrame], curve: str) -> None:
    lines = {
        name: dict(model.filter(pl.col("measure") == curve).select("step", "value").iter_rows())
        for name, model in models.items()
    }
    common = sorted(set.intersection(*(set(line) for line in lines.values())))
    if not common:
        raise InputError(f"{curve}: no step at which all of {', '.join(models)} were scored")
    values: Float[np.ndarray, "run step"] = np.array([[line[step] for step in common] for line in lines.values()])
    at = axis.positions(np.array(common))
    for row in values:
        axes.plot(at, row, color="#9a9a9a", linewidth=0.6)
    ends = np.array([t_interval(column) for column in values.T])
    axes.fill_between(at, ends[:, 0], ends[:, 1], color=LOOKS[0][0], alpha=0.2, linewidth=0, label="95 % of the mean")
    axes.plot(at, values.mean(0), color=LOOKS[0][0], linewidth=1.4, label=f"mean of {len(values)} runs")
    _panel(axes, describe(curve).title, describe(curve).unit or "share")


def _panel(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(wrapped(axes.figure, title, 8), loc="left", fontweight="bold", fontsize=8)  # type: ignore[arg-type]
    axes.set_ylabel(unit, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6.5, frameon=False, loc="best", ncols=2)


def _shade(axes: Axes, axis: StepAxis, band: Band | None, outline: bool = False) -> None:
    """The phase change: shaded in a panel of curves, outlined over a map."""
    if band is None:
        return
    low, high = band_positions(band, axis)
    if outline:
        for at in (low, high):
            axes.axvline(at, color="white", linewidth=2)
            axes.axvline(at, color=VERMILLION, linewidth=1, linestyle=(0, (4, 2)))
    else:
        axes.axvspan(low, high, color=VERMILLION, alpha=0.1, linewidth=0)


def _finish(figure: Figure, rows: Sequence[Axes], axis: StepAxis, title: str, span: tuple[int, int] | None) -> None:
    shown = axis if span is None else axis.part(*span)
    for axes in rows:
        label_steps(axes, shown)
        axes.set_xlabel("" if axes is not rows[-1] else axes.get_xlabel())
        axes.set_xlim(shown.low, shown.high)  # after the ticks, which widen it
    for axes in rows[:-1]:
        axes.tick_params(labelbottom=False)
    if title:
        figure.suptitle(wrapped(figure, title, 8), fontsize=8, x=0.01, ha="left")
    finish(figure)
