"""The formation map of a series: formation.json and its figures."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import polars as pl

from copyscope.analyses.figures.figures import CONFIG, formation_map_figure, story_figure
from copyscope.analyses.figures.map_data import Band, phase_change
from copyscope.analyses.formation.heads import copying_formation, formation_json, formation_steps, loss_settled
from copyscope.analyses.tables.averages import with_averages
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, chance, read_metrics, read_tables, score_tables
from copyscope.analyses.tables.story import STORY_MAPS, story_of
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes, write_json, write_text
from copyscope.training.schedule import checkpoint_steps

MAPPED = ("previous_token", "prefix_matching_sum", "induction_score")
"""Measures drawn unless others are asked for."""
FORMATS = ("html", "pdf", "svg", "png")


class FormationResult(NamedTuple):
    """What `map_formation` computed and wrote."""

    formation: dict[str, Any]
    """What results/formation.json holds."""
    figures: list[Path]


def map_formation(
    source: Source, measures: Sequence[str] | None = None, formats: Sequence[str] = ("html",), story: bool = False
) -> FormationResult:
    """Finds the formation steps of a scored series; writes results/formation.json and a map per measure in figures/.

    `measures`: of heads, by name, or an ablation's effect as `zero:copying_loss` (the causal map, of the checkpoints
    that were ablated). None: `MAPPED`, and the effect of the first method on the copying loss where several checkpoints
    were ablated. `formats`: html (Plotly, in the browser), pdf, svg, png (matplotlib, for paper). `story`: also the
    whole run in one figure, `story.html` and so on: loss, copying accuracy and the maps of `STORY_MAPS` at the steps
    around what formed. Raises InputError if the series was not scored, has too few checkpoints to say when anything
    formed, or lacks a measure; for a format that is not there, or without matplotlib.
    """
    wrong = [name for name in formats if name not in FORMATS]
    if wrong:
        raise InputError(f"--figures {wrong[0]}: no such format; use {', '.join(FORMATS)}")
    run = open_run(source)
    heads, model = score_tables(run)
    effects = effects_as_measures(run)
    drawn = _drawn(heads, effects) if measures is None else list(measures)
    formation = formation_json(heads, model, read_metrics(run), chance=chance(run))
    pictured = pl.concat([heads.select(effects.columns), effects]) if effects is not None else heads
    band = phase_change(copying_formation(model, chance(run)))
    contents = []
    for measure in drawn:
        # The effect of an ablation is there for chosen checkpoints only, and has no formation step of its own.
        causal = ":" in measure
        formed, steps = (None, None) if causal else (formation_steps(heads, measure), _expected(run))
        for kind in formats:
            name = f"formation_{measure.replace(':', '_')}.{kind}"
            contents.append((name, _content(pictured, measure, formed, steps, band, kind, run.name)))
    contents += [(f"story.{kind}", story_content(run, kind)) for kind in formats] if story else []
    write_json(run.folder / "results" / "formation.json", formation)
    written = []
    for name, content in contents:
        path = run.folder / "figures" / name
        write_text(path, content) if isinstance(content, str) else write_bytes(path, content)
        written.append(path)
    return FormationResult(formation, written)


map = map_formation
"""The command's name, as `copyscope.map`."""


def effects_as_measures(run: Run) -> pl.DataFrame | None:
    """Effects of removing single heads as measures named `method:measure`: step, tokens, layer, head, measure, value.

    None if nothing was ablated."""
    if not any((run.folder / "results" / "ablations").glob("step*.parquet")):
        return None
    table = read_tables(run, "ablations").drop_nulls(["layer", "head"])
    return table.select(
        "step", "tokens", "layer", "head", pl.format("{}:{}", "method", "measure").alias("measure"), "value"
    )


def _drawn(heads: pl.DataFrame, effects: pl.DataFrame | None) -> list[str]:
    names = [measure for measure in MAPPED if (heads["measure"] == measure).any()]
    causal = [] if effects is None else sorted(m for m in set(effects["measure"]) if m.endswith(":copying_loss"))
    if effects is not None and causal and effects.filter(pl.col("measure") == causal[0])["step"].n_unique() > 1:
        names.append(causal[0])
    return names


def _expected(run: Run) -> list[int]:
    """The checkpoints that should have scores; those without become gaps."""
    if run.config and run.config.checkpoints.keep != "all":
        return checkpoint_steps(run.config)
    return [checkpoint.step for checkpoint in run.series.checkpoints]


def _content(
    heads: pl.DataFrame,
    measure: str,
    formed: pl.DataFrame | None,
    steps: list[int] | None,
    band: Band | None,
    kind: str,
    name: str,
) -> str | bytes:
    """One file: text for html, bytes for the formats of paper."""
    if kind == "html":
        figure = formation_map_figure(heads, measure, formed, steps, band, name)
        return figure.to_html(include_plotlyjs=True, config=CONFIG)
    paper = _matplotlib(kind)
    return paper.rendered(paper.paper_map(heads, measure, formed, steps, band, name=name), kind)


def story_content(run: Run, kind: str, measures: Sequence[str] = STORY_MAPS, whole: bool = False) -> str | bytes:
    """A file of `story_figure` (html) or `paper_story` (pdf, svg, png). Raises InputError: not scored, no such measure,
    no matplotlib."""
    if kind == "html":
        return story_of_run(run, measures, whole).to_html(include_plotlyjs=True, config=CONFIG)
    paper = _matplotlib(kind)
    from copyscope.analyses.figures.paper_panels import paper_story

    heads, model = score_tables(run)
    told = known(story_of, run)
    copying = known(copying_formation, model, chance(run))
    figure = paper_story(
        heads,
        with_averages(run, model),
        read_metrics(run),
        maps={measure: known(formation_steps, heads, measure) for measure in measures},
        band=None if copying is None else phase_change(copying),
        span=None if told is None or whole else told.span,
        title=run.name if told is None else f"{run.name}: {told.line}",
    )
    return paper.rendered(figure, kind)


def story_of_run(run: Run, measures: Sequence[str] = STORY_MAPS, whole: bool = False) -> go.Figure:
    """`story_figure` of a run: the story in a line over it, at the steps around what formed; `whole`: at all steps.
    Raises InputError: not scored, no such measure."""
    heads, model = score_tables(run)
    metrics = read_metrics(run)
    told = known(story_of, run)
    return story_figure(
        heads,
        with_averages(run, model),
        metrics,
        settled=known(loss_settled, metrics),
        copying=known(copying_formation, model, chance(run)),
        maps={measure: known(formation_steps, heads, measure) for measure in measures},
        span=None if told is None or whole else told.span,
        title=run.name if told is None else f"{run.name}: {told.line}",
    )


def known(function: Any, *arguments: Any) -> Any:
    """The result, or None where the run is too short for one: the figure is then drawn without marks."""
    try:
        return function(*arguments)
    except InputError:
        return None


def _matplotlib(kind: str) -> Any:
    """The room of paper figures. Raises InputError where matplotlib is not installed."""
    try:
        return import_module("copyscope.analyses.figures.paper")
    except ImportError:
        raise InputError(f"--figures {kind}: needs matplotlib; install copyscope[figures]") from None
