"""The figure of batch and context: the law in their product, and its constant in each condition."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from copyscope.analyses.figures.paper import VERMILLION
from copyscope.analyses.studies.context import APART, PUBLISHED, SQUARE_ROOT
from copyscope.analyses.studies.drawing import COLOURS, MARKERS, against_size, law_line, plain_axes, step_axis
from copyscope.analyses.studies.evidence import StudyRun, conditions, evidence_of


def draw_context(figure: Figure, runs: Sequence[StudyRun], loss: bool) -> None:
    """Formation step against batch × context, with the square-root law through the middle of the points; and T, the
    tokens by that step ÷ √(batch × context), in each condition, with the published one."""
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    _product(left, runs, loss)
    _constant(right, runs, loss)


def _product(axes: Axes, runs: Sequence[StudyRun], loss: bool) -> None:
    chosen = [run for run in runs if run.condition not in APART]
    configs = [run.outcome.run.config for run in chosen]
    products = [config.model.n_ctx * config.train.batch_size for config in configs]
    contexts = sorted({config.model.n_ctx for config in configs})
    x, y = [], []
    for config, product, one in zip(configs, products, evidence_of(chosen, loss), strict=True):
        number = contexts.index(config.model.n_ctx)
        look = {"color": COLOURS[number % len(COLOURS)], "markersize": 4, "linewidth": 0.8}
        if one.step is not None:
            low, high = one.copying.interval
            beside = product * 2 ** ((config.seeds.init - 1) * 0.05)  # seeds would lie on one another
            ends = [[one.step - low], [high - one.step]]
            axes.errorbar(beside, one.step, yerr=ends, fmt=MARKERS[number % len(MARKERS)], **look)
            x, y = [*x, product], [*y, one.step]
        elif one.late:
            axes.plot(product, one.last_step, "^", markerfacecolor="none", **look)
    for number, context in enumerate(contexts):
        marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        axes.plot([], [], marker, color=colour, markersize=4, label=f"context {context}")
    if x:
        law_line(axes, x, y, SQUARE_ROOT, "square-root law", "-")
    axes.legend(fontsize=6, frameon=False)
    against_size(axes, products, "batch × context (tokens per update)")


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
