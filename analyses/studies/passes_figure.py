"""The figure of text that is passed over many times: what heads, loss, ICL score and tasks become."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copyscope.analyses.statistics.intervals import t_interval
from copyscope.analyses.studies.drawing import COLOURS, FIRST_STEP, LINES, MARKERS, plain_axes, step_axis
from copyscope.analyses.studies.evidence import StudyRun, conditions, tasks_table
from copyscope.analyses.studies.passes import task_name

PANELS = (
    ("prefix_matching_sum", "highest prefix matching of a head"),
    ("validation_loss", "loss on held-out text (nats)"),
    ("icl_score", "ICL score (nats; below 0: context helps)"),
)


def draw_passes(figure: Figure, runs: Sequence[StudyRun]) -> None:
    """Three curves over steps, a condition's mean over its runs with Student's 95 % interval, and beside them
    choice accuracy in the in-context tasks at the end."""
    panels = figure.subplots(2, 2).ravel()
    for axes, (column, label) in zip(panels, PANELS, strict=False):
        for number, name in enumerate(conditions(runs)):
            _band(axes, [run for run in runs if run.condition == name], column, number, name)
        step_axis(axes)
        axes.set_xlabel("step (log scale)")
        axes.set_ylabel(label)
        plain_axes(axes)
    panels[0].legend(fontsize=6, frameon=False, loc="upper left")
    _tasks(panels[3], runs)


def _band(axes: Axes, runs: Sequence[StudyRun], column: str, number: int, name: str) -> None:
    rows = pl.concat([run.curves.select("step", column) for run in runs]).drop_nulls()
    steps, means, ends = [], [], []
    for (step,), own in rows.filter(pl.col("step") >= FIRST_STEP).sort("step").group_by("step", maintain_order=True):
        values = own[column].to_numpy().astype(float)
        steps.append(step)
        means.append(values.mean())
        ends.append(t_interval(values))
    low, high = np.array(ends).reshape(-1, 2).T
    colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
    axes.plot(steps, means, color=colour, linestyle=line, linewidth=1, label=name)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _tasks(axes: Axes, runs: Sequence[StudyRun]) -> None:
    names, table = conditions(runs), tasks_table(runs)
    variants = [] if table.is_empty() else table.partition_by("task", "variant", maintain_order=True)
    for place, rows in enumerate(variants):
        axes.plot([rows["chance"][-1]] * 2, [place - 0.4, place + 0.4], color="0.4", linewidth=0.8)
        for number, name in enumerate(names):
            values = rows.filter(pl.col("condition") == name)["choice_accuracy"].to_numpy()
            if not len(values):
                continue
            low, high = t_interval(values)
            mean, y = values.mean(), place + ((number + 0.5) / len(names) - 0.5) * 0.7
            error = None if np.isnan(low) else [[mean - low], [high - mean]]
            marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
            axes.errorbar(mean, y, xerr=error, fmt=marker, color=colour, markersize=2.5, linewidth=0.7)
    axes.set_yticks(range(len(variants)), [task_name(rows.row(0, named=True)) for rows in variants], fontsize=5.5)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel("choice accuracy at the end (grey: chance)")
    plain_axes(axes)
