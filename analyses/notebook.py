"""For notebooks: the page as an object that shows itself, and each figure in one line.

`explore("runs/demo")` is the whole page, saved in the notebook; the figures are Plotly's, to be changed and saved as
any other. All take the run's folder, or any series that was scored.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from copyscope.analyses.figures import figures
from copyscope.analyses.figures.map_data import phase_change
from copyscope.analyses.figures.maps import effects_as_measures
from copyscope.analyses.formation.heads import copying_formation, formation_steps, loss_settled
from copyscope.analyses.page.report import MEGABYTES, report_page
from copyscope.analyses.tables.averages import with_averages
from copyscope.analyses.tables.opening import open_run, open_runs
from copyscope.analyses.tables.run import chance, read_metrics, read_tables, score_tables
from copyscope.analyses.tables.story import STORY_MAPS, story_of
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError
from copyscope.training.files import write_text


class Explorer:
    """The page about some runs, with its data in it; shows itself at the end of a cell."""

    def __init__(self, html: str, height: int) -> None:
        self.html, self.height = html, height

    def _repr_html_(self) -> str:
        """A frame that may run the page's scripts and do nothing else: not reach the notebook, nor the network."""
        return (
            f'<iframe srcdoc="{escape(self.html, quote=True)}" sandbox="allow-scripts" title="copyscope" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )

    def save(self, path: Source) -> Path:
        """Writes the page as a file that opens offline. Raises InputError if it cannot be written."""
        write_text(Path(path), self.html)
        return Path(path)


def explore(
    sources: Source | Sequence[Source],
    view: str = "",
    max_megabytes: float = MEGABYTES,
    height: int = 900,
    device: str = "auto",
    dtype: str = "float32",
) -> Explorer:
    """The page about one or several scored runs.

    `view`: where it opens, as in the page's address (`#view=attention&head=3.1`); `max_megabytes`: up to which
    attention is embedded; `height` of the frame in pixels; `device` and `dtype` as for `score`. Raises InputError if a
    run was not scored. For prompts of your own, which need the models at hand, there is `copyscope explore`.
    """
    return Explorer(report_page(open_runs(sources), max_megabytes, start=view, device=device, dtype=dtype), height)


def formation_map(source: Source, measure: str = "prefix_matching_sum") -> go.Figure:
    """A map with one row per head and one column per checkpoint, with formation steps and the phase change.

    `measure`: of heads, or the effect of an ablation as `zero:copying_loss`. Raises InputError: not scored, no such
    measure, not ablated.
    """
    run = open_run(source)
    heads, model = score_tables(run)
    copying = _known(copying_formation, model, chance(run))
    band = None if copying is None else phase_change(copying)
    if ":" in measure:  # at the checkpoints that were ablated; an effect has no formation step
        effects = effects_as_measures(run)
        if effects is None:
            raise InputError(f"{run.folder}: nothing ablated yet; run `copyscope ablate {run.folder} --over-training`")
        return figures.formation_map_figure(effects, measure, band=band)
    return figures.formation_map_figure(heads, measure, _known(formation_steps, heads, measure), band=band)


def curves(source: Source) -> go.Figure:
    """Loss, copying accuracy and copying losses over steps. Raises InputError if the run was not scored."""
    run = open_run(source)
    model, metrics = with_averages(run, score_tables(run).model), read_metrics(run)
    return figures.curves(model, metrics, _known(loss_settled, metrics), _known(copying_formation, model, chance(run)))


def story(source: Source, measures: Sequence[str] = STORY_MAPS, whole: bool = False) -> go.Figure:
    """Curves and formation maps on one step axis, as the page opens: the story in a line over it, and the steps around
    what formed; `whole`: all steps. Raises InputError: not scored, no such measure."""
    run = open_run(source)
    heads, model = score_tables(run)
    metrics = read_metrics(run)
    told = _known(story_of, run)
    return figures.story_figure(
        heads,
        with_averages(run, model),
        metrics,
        settled=_known(loss_settled, metrics),
        copying=_known(copying_formation, model, chance(run)),
        maps={measure: _known(formation_steps, heads, measure) for measure in measures},
        span=None if told is None or whole else told.span,
        title=run.name if told is None else f"{run.name}: {told.line}",
    )


def ablations(source: Source, measures: Sequence[str] | None = None) -> go.Figure:
    """What removing each head does, at the last step that was ablated. Raises InputError if none was."""
    return figures.ablation_figure(read_tables(open_run(source), "ablations").drop_nulls(["layer", "head"]), measures)


def above_chance(source: Source, measure: str = "prefix_matching_sum") -> go.Figure:
    """Each head's score against its random-target null. Raises InputError: not scored, no such measure or no null."""
    return figures.null_figure(score_tables(open_run(source)).heads, measure)


def _known(function: Any, *arguments: Any) -> Any:
    """The result, or None where the run is too short for one: the figure is then drawn without marks."""
    try:
        return function(*arguments)
    except InputError:
        return None
