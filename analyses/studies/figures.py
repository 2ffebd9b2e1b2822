"""One figure a study, by matplotlib: when copying formed, how it ended, and how it came about."""

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from copyscope.analyses.claims.across_runs import BATCH, RATE, parted
from copyscope.analyses.claims.batch_size import LAWS
from copyscope.analyses.claims.evidence import COPYING_LOSS
from copyscope.analyses.figures.axis import step_label
from copyscope.analyses.figures.paper import STYLE, VERMILLION, WIDTH
from copyscope.analyses.formation.step_rule import middle as step_of
from copyscope.analyses.studies.context_figure import draw_context
from copyscope.analyses.studies.drawing import (
    COLOURS,
    FIRST_STEP,
    LINES,
    MARKERS,
    NAMES,
    against_size,
    law_line,
    plain_axes,
    step_axis,
    value_of,
)
from copyscope.analyses.studies.evidence import StudyRun, by_loss, conditions, evidence_of
from copyscope.analyses.studies.passes_figure import draw_passes
from copyscope.analyses.studies.rate_and_batch import LAWS as LAWS_OF_BOTH
from copyscope.analyses.studies.rate_and_batch import fitted, laws_on_cells
from copyscope.training.schedule import learning_rate


def study_figure(name: str, runs: list[StudyRun], title: str) -> Figure:
    """The figure of a study; `title` is what it asks. Runs without evidence are left out."""
    measure = COPYING_LOSS if by_loss(runs) else "copying_accuracy_token"
    known = [run for run in runs if run.evidence]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
        if not known:
            figure.text(0.5, 0.45, "no run has anything to show yet", ha="center")
            return figure
        if name == "batch-size":
            left, right = figure.subplots(1, 2)
            _laws(left, known, measure)
            _curves(right, known, measure)
        elif name == "rate-and-batch":
            left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
            _cells(figure, left, known, measure)
            _law_errors(right, known, measure)
        elif name == "settling":
            left, right = figure.subplots(1, 2)
            _by_eye(left, known, measure)
            _settled(right, known, measure)
        elif name == "context":
            draw_context(figure, known, measure == COPYING_LOSS)
        elif name == "passes":
            figure.set_figheight(5.6)
            draw_passes(figure, known)
        elif name == "depth":
            left, right = figure.subplots(1, 2, sharey=True)
            _by_layer(left, known, "induction heads", [run.evidence.induction for run in known if run.evidence])
            _by_layer(right, known, "previous-token heads", [run.evidence.previous for run in known if run.evidence])
        elif name == "intensity":
            left, right = figure.subplots(1, 2, width_ratios=[1.3, 1])
            _heatmap(figure, left, known, measure)
            _against_sum(right, known, measure)
        else:
            left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
            _formed(left, known, measure)
            _ended(middle, known, measure)
            _curves(right, known, measure)
    return figure


def _curves(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    for number, name in enumerate(conditions(runs)):
        for again, run in enumerate(run for run in runs if run.condition == name):
            shown = run.curves.filter(pl.col("step") >= FIRST_STEP)
            axes.plot(
                shown["step"].to_numpy(),
                value_of(shown, measure),
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number % len(LINES)],
                linewidth=1,
                alpha=0.85,
                label=None if again else name,
            )
    step_axis(axes)
    axes.set_xlabel("step (log scale)")
    axes.set_ylabel(NAMES[measure])
    plain_axes(axes)
    axes.legend(fontsize=6, frameon=False, loc="upper left")


def _formed(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    names, evidence = conditions(runs), evidence_of(runs, measure == COPYING_LOSS)
    for run, one in zip(runs, evidence, strict=True):
        row = names.index(run.condition)
        seeds = [other.label for other in runs if other.condition == run.condition]
        y = row + (seeds.index(run.label) - (len(seeds) - 1) / 2) * 0.5 / len(seeds)
        if one.late:
            axes.plot(one.last_step, y, ">", color=COLOURS[row % len(COLOURS)], markerfacecolor="none", markersize=5)
        if one.step is None:
            continue
        low, high = one.copying.interval
        axes.errorbar(
            one.step,
            y,
            xerr=[[one.step - low], [high - one.step]],
            fmt=MARKERS[row % len(MARKERS)],
            color=COLOURS[row % len(COLOURS)],
            markersize=3.5,
            linewidth=0.8,
        )
    step_axis(axes)
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("formation step" + " (▷ not yet)" * any(one.late for one in evidence))
    plain_axes(axes)


def _ended(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    names = conditions(runs)
    for run in runs:
        row = names.index(run.condition)
        final = (run.evidence.final if run.evidence else {}).get(measure, np.nan)
        axes.plot(
            -final if measure == COPYING_LOSS else final,
            row,
            MARKERS[row % len(MARKERS)],
            alpha=0.8,
            color=COLOURS[row % len(COLOURS)],
            markersize=4,
        )
    axes.set_yticks(range(len(names)), [""] * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("nats saved at the end" if measure == COPYING_LOSS else "accuracy at the end")
    plain_axes(axes)


def _laws(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """Formation step against batch size, with the three laws through the middle of the points."""
    x, y, never = [], [], []
    for run, one in zip(runs, evidence_of(runs, measure == COPYING_LOSS), strict=True):
        config = run.outcome.run.config
        size = config.train.batch_size
        if one.late:
            never.append((size, config.train.steps))
        elif one.step is not None:
            low, high = one.copying.interval
            axes.errorbar(
                size,
                one.step,
                yerr=[[one.step - low], [high - one.step]],
                fmt="o",
                color=COLOURS[0],
                markersize=3.5,
                linewidth=0.8,
            )
            x, y = [*x, size], [*y, one.step]
    if never:
        axes.plot(
            *zip(*never, strict=True),
            "^",
            color=COLOURS[0],
            markerfacecolor="none",
            markersize=5,
            linestyle="",
            label="not formed by the end",
        )
    if x:
        for (law, name), line in zip(LAWS.items(), LINES, strict=False):
            law_line(axes, x, y, law, f"{name} (exponent {law:g})", line)
    axes.legend(fontsize=6, frameon=False)
    sizes = [run.outcome.run.config.train.batch_size for run in runs]
    against_size(axes, sizes, "batch size (sequences per update)")


def _cells(figure: Figure, axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """Learning rate × batch size, the mean step as colour, and for each law of fixed exponents a line of equal step."""
    evidence = evidence_of(runs, measure == COPYING_LOSS)
    settings = [(run.outcome.run.config.optimizer.lr, run.outcome.run.config.train.batch_size) for run in runs]
    rates, batches = (sorted(set(values)) for values in zip(*settings, strict=True))
    seen = np.full((len(rates), len(batches)), np.nan)
    for i, rate in enumerate(rates):
        for j, size in enumerate(batches):
            own = [one.step for one, at in zip(evidence, settings, strict=True) if at == (rate, size)]
            steps = [step for step in own if step is not None]
            if steps:
                seen[i, j] = np.exp(np.mean(np.log(steps)))
            missing = f", {len(own) - len(steps)} not" if len(own) > len(steps) > 0 else ""
            words = f"{step_label(round(seen[i, j]))}{missing}" if steps else "not" if own else ""
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
            axes.text(j, i, words, ha="center", va="center", fontsize=6, bbox=box, zorder=4)
    edges = np.arange(-0.5, len(batches)), np.arange(-0.5, len(rates))
    ends = (np.nanmin(seen) / 1.05, np.nanmax(seen) * 1.05) if np.isfinite(seen).any() else (1, 10)
    bar = figure.colorbar(axes.pcolormesh(*edges, seen, cmap="viridis_r", norm=LogNorm(*ends)), ax=axes, pad=0.02)
    step_axis(bar.ax, "y")
    bar.set_label("step at which copying forms", fontsize=7)
    known = [(*at, one.step) for one, at in zip(evidence, settings, strict=True) if one.step is not None]
    if known and len(rates) > 1 and len(batches) > 1:
        points = np.array(known, dtype=float).T
        places = [np.linspace(0, len(values) - 1, 50) for values in (rates, batches)]
        fine = [
            np.exp(np.interp(at, range(len(values)), np.log(values)))
            for at, values in zip(places, (rates, batches), strict=True)
        ]
        grid = [values.ravel() for values in np.meshgrid(*fine, indexing="ij")]
        middle = float(np.log(points[2]).mean())
        for number, (name, law) in enumerate(LAWS_OF_BOTH.items()):
            if law is None or law == (0.0, 0.0):
                continue  # of updates alone every cell is alike
            colour, line = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
            foretold = fitted(law, *points).at(*grid).reshape(50, 50)
            axes.contour(*places[::-1], foretold, levels=[middle], colors=colour, linestyles=line, linewidths=1)
            axes.plot([], [], color=colour, linestyle=line, linewidth=1, label=name)
        axes.legend(fontsize=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.set_xticks(range(len(batches)), [str(size) for size in batches])
    axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_xlabel("batch size (sequences per update)")
    axes.set_ylabel("learning rate")


def _law_errors(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """By what factor each law misses the cells that it was not fitted on: their mean, and each cell as a dot."""
    formed, _ = parted(evidence_of(runs, measure == COPYING_LOSS))
    points = [(run.config[RATE], run.config[BATCH], run.step) for run in formed]
    if points:
        laws = laws_on_cells(*np.array(points, dtype=float).T)
        for row, name in enumerate(LAWS_OF_BOTH):
            errors = laws.by_cell(name)
            errors = np.exp(errors[np.isfinite(errors)])
            colour = COLOURS[row % len(COLOURS)]
            axes.plot(errors, np.full(len(errors), row), "o", color=colour, alpha=0.4, markersize=3)
            axes.plot(np.exp(np.log(errors).mean()) if len(errors) else np.nan, row, "|", color=colour, markersize=14)
    axes.set_yticks(range(len(LAWS_OF_BOTH)), LAWS_OF_BOTH, fontsize=6.5)
    axes.set_ylim(len(LAWS_OF_BOTH) - 0.5, -0.5)
    axes.set_xlabel("error on cells left out (factor)")
    plain_axes(axes)


def _by_eye(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """Loss and copying as the paper shows them: on linear axes, with nothing to say when the loss has settled."""
    beside = axes.twinx()
    for run in runs:
        losses = run.curves.drop_nulls("validation_loss")
        axes.plot(losses["step"], losses["validation_loss"], color=COLOURS[0], linewidth=1, alpha=0.8)
        beside.plot(
            run.curves["step"], value_of(run.curves, measure), color=VERMILLION, linewidth=1, linestyle="--", alpha=0.8
        )
    axes.set_title("as read by eye: linear steps", fontsize=7.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss on held-out text (—)", color=COLOURS[0])
    beside.set_ylabel(f"{NAMES[measure]} (- -)", color=VERMILLION)
    plain_axes(axes)
    beside.spines["top"].set_visible(False)


def _settled(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """The loss on a log axis of steps, with where both rules say it settled and where copying formed."""
    for number, (run, one) in enumerate(zip(runs, evidence_of(runs, measure == COPYING_LOSS), strict=True)):
        shown = run.curves.filter(pl.col("step") >= FIRST_STEP).drop_nulls("validation_loss")
        steps, losses = shown["step"].to_numpy(), shown["validation_loss"].to_numpy()
        axes.plot(steps, losses, color=COLOURS[0], linewidth=1, alpha=0.8)
        found = [(one.step, "D", VERMILLION, "copying formed")]
        if one.emergence:
            found += [
                (one.emergence.settled.step, "o", "black", "loss settled"),
                (one.emergence.settled_leniently.step, "s", "0.55", "loss settled, lenient rule"),
            ]
        for step, marker, colour, label in found:
            if step is not None and len(steps):
                height, first = np.interp(np.log(step), np.log(steps), losses), None if number else label
                axes.plot(step, height, marker, color=colour, markeredgecolor="white", markersize=5.5, label=first)
    step_axis(axes)
    axes.set_title("as dated by the rules: steps on a log scale", fontsize=7.5)
    axes.set_xlabel("step (log scale)")
    axes.set_ylabel("loss on held-out text")
    plain_axes(axes)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=6, frameon=False)


def _by_layer(axes: Axes, runs: list[StudyRun], title: str, tables: list[pl.DataFrame | None]) -> None:
    """Layer against formation step of every head that formed, a marker a run."""
    for number, (run, table) in enumerate(zip(runs, tables, strict=True)):
        seed, colour = run.outcome.run.config.seeds.init, COLOURS[number % len(COLOURS)]
        axes.plot([], [], MARKERS[number % len(MARKERS)], color=colour, markersize=4, label=f"seed {seed}")
        aside = ((number + 0.5) / len(runs) - 0.5) * 0.6  # heads of several runs would lie on one another
        for row in () if table is None else table.iter_rows(named=True):
            step = step_of(row)
            if step is None:
                continue
            axes.errorbar(
                step,
                row["layer"] + aside,
                xerr=[[step - min(row["low"], step)], [max(row["high"], step) - step]],
                fmt=MARKERS[number % len(MARKERS)],
                color=colour,
                markersize=3.5,
                linewidth=0.6,
                alpha=0.85,
            )
    step_axis(axes)
    layers = max((run.evidence.n_layers for run in runs if run.evidence), default=1)
    axes.set_ylim(-0.5, layers - 0.5)
    axes.set_yticks(range(layers))
    axes.set_ylabel("layer")
    axes.set_xlabel("formation step")
    axes.set_title(title, fontsize=7.5)
    plain_axes(axes)
    axes.legend(fontsize=6, frameon=False)


def _heatmap(figure: Figure, axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """Learning rate × step, the mean over seeds as colour, each run's formation as a diamond."""
    names = conditions(runs)
    top = max(float(np.nanmax(value_of(run.curves, measure))) for run in runs)
    mesh = None
    for row, name in enumerate(names):
        own = [run.curves.filter(pl.col("step") >= FIRST_STEP) for run in runs if run.condition == name]
        mean = pl.concat(own).group_by("step").agg(pl.col(measure).mean()).sort("step")
        steps = mean["step"].to_numpy().astype(float)
        middle = np.sqrt(steps[1:] * steps[:-1])
        edges = np.concatenate([[steps[0] ** 1.5 / middle[0] ** 0.5], middle, [steps[-1]]]) if len(middle) else steps
        if len(edges) == len(steps) + 1:
            mesh = axes.pcolormesh(
                edges,
                [row - 0.45, row + 0.45],
                value_of(mean, measure)[None],
                cmap="viridis",
                vmin=0,
                vmax=max(top, 1e-9),
                linewidth=0,
                rasterized=True,
            )
    for run, one in zip(runs, evidence_of(runs, measure == COPYING_LOSS), strict=True):
        if one.step is not None:
            axes.plot(
                one.step, names.index(run.condition), "D", color=VERMILLION, markeredgecolor="white", markersize=4
            )
    if mesh is not None:
        figure.colorbar(mesh, ax=axes, pad=0.02).set_label(f"{NAMES[measure]} (◆ formed)", fontsize=7)
    step_axis(axes)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    axes.set_xlabel("step (log scale)")
    axes.spines[["top", "right"]].set_visible(False)


def _against_sum(axes: Axes, runs: list[StudyRun], measure: str) -> None:
    """The same curves over the summed learning rate: they fall together if that is what counts."""
    for number, name in enumerate(conditions(runs)):
        for again, run in enumerate(run for run in runs if run.condition == name):
            config = run.outcome.run.config
            total = np.cumsum([learning_rate(config, step) for step in range(config.train.steps)])
            shown = run.curves.filter((pl.col("step") >= FIRST_STEP) & (pl.col("step") <= len(total)))
            axes.plot(
                total[shown["step"].to_numpy() - 1],
                value_of(shown, measure),
                linewidth=1,
                alpha=0.85,
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number % len(LINES)],
                label=None if again else name,
            )
    axes.set_xscale("log")
    axes.set_xlabel("learning rate, summed over updates")
    axes.set_ylabel(NAMES[measure])
    plain_axes(axes)
    axes.legend(fontsize=6, frameon=False, loc="upper left")
