"""The figure of batch and context: the law in their product, and its constant in each condition."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from copyscope.analyses.figures.paper import VERMILLION
from copyscope.analyses.studies.context import APART, PUBLISHED, SQUARE_ROOT
from copyscope.analyses.studies.drawing import COLOURS, MARKERS, plain_axes, step_axis
from copyscope.analyses.studies.evidence import StudyRun, conditions, evidence_of


def draw_context(figure: Figure, runs: Sequence[StudyRun], loss: bool) -> None:
    """Formation step against batch × context, with the square-root law through the middle of the points; and T, the
    tokens by that step ÷ √(batch × context), in each condition, with the published one."""
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    _product(left, runs, loss)
    _constant(right, runs, loss)


def _product(axes: Axes, runs: Sequence[StudyRun], loss: bool) -> None:
    chosen = [run for run in runs if run.condition not in APART]
    contexts = sorted({run.outcome.run.config.model.n_ctx for run in chosen})
    x, y, shown = [], [], set()
    for run, one in zip(chosen, evidence_of(chosen, loss), strict=True):
        config = run.outcome.run.config
        number, product = contexts.index(config.model.n_ctx), config.model.n_ctx * config.train.batch_size
        look = {"color": COLOURS[number % len(COLOURS)], "markersize": 4, "linewidth": 0.8}
        label = None if number in shown else f"context {config.model.n_ctx}"
        if one.step is None:
            if one.late:
                axes.plot(product, one.last_step, "^", markerfacecolor="none", **look)
            continue
        low, high = one.copying.interval
        marker = MARKERS[number % len(MARKERS)]
        beside = product * 2 ** ((run.outcome.run.config.seeds.init - 1) * 0.05)  # seeds would lie on one another
        ends = [[one.step - low], [high - one.step]]
        axes.errorbar(beside, one.step, yerr=ends, fmt=marker, label=label, **look)
        shown.add(number)
        x, y = [*x, product], [*y, one.step]
    if x:
        ends_of_line = np.array([min(x), max(x)], dtype=float)
        middle = np.exp(np.mean(np.log(x))), np.exp(np.mean(np.log(y)))
        through = middle[1] * (ends_of_line / middle[0]) ** SQUARE_ROOT
        axes.plot(ends_of_line, through, color=VERMILLION, linewidth=1, label="square-root law")
        axes.legend(fontsize=6, frameon=False)
    products = sorted({run.outcome.run.config.model.n_ctx * run.outcome.run.config.train.batch_size for run in chosen})
    axes.set_xscale("log", base=2)
    axes.set_xticks(products, [f"{product:,}" for product in products])
    axes.xaxis.set_minor_formatter(NullFormatter())
    step_axis(axes, "y")
    axes.set_xlabel("batch × context (tokens per update)")
    axes.set_ylabel("step at which copying forms")
    plain_axes(axes)


def _constant(axes: Axes, runs: Sequence[StudyRun], loss: bool) -> None:
    names = conditions(runs)
    for run, one in zip(runs, evidence_of(runs, loss), strict=True):
        config, row = run.outcome.run.config, names.index(run.condition)
        scale = (config.train.batch_size * config.model.n_ctx) ** 0.5
        colour = COLOURS[row % len(COLOURS)]
        if one.step is not None:
            axes.plot(one.step * scale, row, MARKERS[row % len(MARKERS)], color=colour, markersize=4, alpha=0.8)
        elif one.late:
            axes.plot(one.last_step * scale, row, ">", color=colour, markerfacecolor="none", markersize=5)
    axes.axvline(PUBLISHED, color=VERMILLION, linewidth=1, linestyle="--")
    step_axis(axes)
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("T = tokens ÷ √(batch × context)\n(dashed: published; ▷: not by the end)")
    plain_axes(axes)
