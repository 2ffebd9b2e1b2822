"""For notebooks: the page as an object that shows itself, and each figure in one line.

`explore("runs/demo")` is the whole page, saved in the notebook; the figures are Plotly's, to be changed and saved as
any other. All take the run's folder, or any series that was scored.
"""

from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import plotly.graph_objects as go

from copyscope.analyses.explorer.state import Explored
from copyscope.analyses.figures import figures
from copyscope.analyses.figures.map_data import phase_change
from copyscope.analyses.figures.maps import effects_as_measures, known, story_content, story_of_run
from copyscope.analyses.formation.heads import copying_formation, formation_steps, loss_settled
from copyscope.analyses.page.prompts import default_prompts, induction_targets, typed_prompt
from copyscope.analyses.page.report import MEGABYTES, report_page
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.averages import with_averages
from copyscope.analyses.tables.opening import open_run, open_runs
from copyscope.analyses.tables.run import Run, chance, read_metrics, read_tables, score_tables, selected
from copyscope.analyses.tables.story import STORY_MAPS
from copyscope.interp.head_names import head_name, parse_heads
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes, write_text

PAPER = ("pdf", "svg", "png")


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
    run was not scored. For prompts of your own, which need the models at hand, there are `prompt_widget` and
    `copyscope explore`.
    """
    return Explorer(report_page(open_runs(sources), max_megabytes, start=view, device=device, dtype=dtype), height)


def prompt_widget(
    sources: Source | Sequence[Source],
    text: str = "",
    head: str = "",
    step: int = -1,
    max_megabytes: float = 1.0,
    height: int = 900,
    device: str = "auto",
    dtype: str = "float32",
) -> Any:
    """The page as a widget that computes prompts typed in it, by this notebook's kernel: attention of every head at
    every checkpoint, and what the model predicts, also without a head.

    `text`: the prompt it opens with, else one of the page's own; `head` as `L3H0`, else the one that scores highest;
    `step`: of a checkpoint, -1 for the last; `height` in pixels; `device` and `dtype` as for `score`. Where there is no
    kernel, as in a notebook exported to HTML, the page of `explore` stands in, of `max_megabytes`. Raises InputError: a
    run that was not scored, no such step, text that does not fit the model, no anywidget.
    """
    try:
        widget = import_module("copyscope.analyses.explorer.widget")
    except ImportError:
        raise InputError("prompt_widget: needs anywidget; install copyscope[notebook]") from None
    runs = open_runs(sources)
    start = {"view": "attention"}
    if step != -1:
        start["step"] = str(selected(runs[0], [step])[0].step)
    if head:
        layer, number = parse_heads(head)[0]
        if not isinstance(number, int):
            raise InputError(f"head={head!r}: name one head, such as {head_name(layer, 0)}")
        start["head"] = head_name(layer, number)
    if text:
        start |= {"prompt": typed_prompt(texts_of(runs[0]), text).id, "text": text}
    view = "#" + urlencode(start)
    saved = Explorer(report_page(runs, max_megabytes, start=view, device=device, dtype=dtype), height)
    explored = Explored([run.folder for run in runs], device, dtype)
    return widget.PromptWidget(explored, view, saved._repr_html_(), height)


def formation_map(source: Source, measure: str = "prefix_matching_sum") -> go.Figure:
    """A map with one row per head and one column per checkpoint, with formation steps and the phase change.

    `measure`: of heads, or the effect of an ablation as `zero:copying_loss`. Raises InputError: not scored, no such
    measure, not ablated.
    """
    run = open_run(source)
    heads, model = score_tables(run)
    copying = known(copying_formation, model, chance(run))
    band = None if copying is None else phase_change(copying)
    if ":" in measure:  # at the checkpoints that were ablated; an effect has no formation step
        effects = effects_as_measures(run)
        if effects is None:
            raise InputError(f"{run.folder}: nothing ablated yet; run `copyscope ablate {run.folder} --over-training`")
        return figures.formation_map_figure(effects, measure, band=band, name=run.name)
    formed = known(formation_steps, heads, measure)
    return figures.formation_map_figure(heads, measure, formed, band=band, name=run.name)


def curves(source: Source) -> go.Figure:
    """Loss, copying accuracy and copying losses over steps. Raises InputError if the run was not scored."""
    run = open_run(source)
    model, metrics = with_averages(run, score_tables(run).model), read_metrics(run)
    return figures.curves(model, metrics, known(loss_settled, metrics), known(copying_formation, model, chance(run)))


class PaperFigure(go.Figure):
    """A Plotly figure whose pdf, svg and png come from matplotlib, which needs neither kaleido nor a browser."""

    def __init__(self, figure: go.Figure, content: Callable[[str], bytes]) -> None:
        super().__init__(figure)
        self._content = content

    def write_image(self, file: Any, format: str | None = None, **_: Any) -> None:
        """Writes the figure for a paper. Raises InputError: another format, or no matplotlib."""
        kind = format or Path(str(file)).suffix.removeprefix(".")
        if kind not in PAPER:
            raise InputError(f"{file}: no format {kind!r}; use {', '.join(PAPER)}, or write_html")
        data = self._content(kind)
        file.write(data) if hasattr(file, "write") else write_bytes(Path(file), data)


def story(source: Source, measures: Sequence[str] = STORY_MAPS, whole: bool = False) -> PaperFigure:
    """Curves and formation maps on one step axis, as the page opens: the story in a line over it, and the steps around
    what formed; `whole`: all steps. `write_image("story.pdf")` is the figure for a paper. Raises InputError: not
    scored, no such measure."""
    run = open_run(source)
    figure = story_of_run(run, measures, whole)
    return PaperFigure(figure, lambda kind: story_content(run, kind, measures, whole))  # type: ignore[arg-type]


def attention(
    source: Source, head: str, step: int = -1, text: str = "", prompt: str = "repeated", width: float = 3.25
) -> Any:
    """One head's attention as a matplotlib figure with tokens, expected induction targets and scale.

    `head` as `L3H0`; `step`: of a checkpoint, -1 for the last; `text`: a prompt of your own, else `prompt`, one of the
    page's: `repeated` (random tokens twice over), `natural` (held-out text) or `sentence`; `width` in inches. Raises
    InputError: no such head, step or prompt, text that does not fit the model, no matplotlib.
    """
    return _attention_frames(open_run(source), head, None if step == -1 else [step], text, prompt, width)[-1]


def film(
    source: Source, head: str, out: Source, text: str = "", prompt: str = "repeated", seconds: float = 0.35
) -> Path:
    """Writes one head's attention at every checkpoint as a film, .gif or (where ffmpeg is installed) .mp4.

    Arguments and errors as for `attention`; `seconds` a checkpoint, 0.02 to 60; the last one stays four times as long.
    Raises InputError too for another ending, and for .mp4 without an ffmpeg that writes H.264.
    """
    run, paper = open_run(source), _on_paper()
    paper.check_film(Path(out), seconds)  # before the frames, which take a while
    steps = [checkpoint.step for checkpoint in run.series.checkpoints]
    return paper.write_film(_attention_frames(run, head, steps, text, prompt, 4.0), Path(out), seconds)


def _on_paper() -> Any:
    """The room that draws attention by matplotlib. Raises InputError where that is not installed."""
    try:
        return import_module("copyscope.analyses.figures.paper_matrix")
    except ImportError:
        raise InputError("attention: needs matplotlib; install copyscope[figures]") from None


def _attention_frames(
    run: Run, head: str, steps: Sequence[int] | None, text: str, name: str, width: float
) -> list[Any]:
    """A figure a step; `name` of the prompt where there is no `text`."""
    paper = _on_paper()
    from copyscope.analyses.page.attention import Models

    texts = texts_of(run)
    known = {one.id: one for one in default_prompts(run, texts)}
    if not text and name not in known:
        raise InputError(f"prompt={name!r}: this run has {', '.join(known)}; or give text=")
    prompt = typed_prompt(texts, text) if text else known[name]
    steps = [run.series.checkpoints[-1].step] if steps is None else steps
    models, size, frames = Models(run, 0), len(prompt.ids), []
    n_layers, n_heads = models.shape(steps[-1])
    layer, number = parse_heads(head)[0]
    if not isinstance(number, int) or layer >= n_layers or number >= n_heads:
        raise InputError(f"head={head!r}: this model has L0H0 to {head_name(n_layers - 1, n_heads - 1)}")
    for step in steps:
        triangles = np.frombuffer(models.attention(step, prompt.ids), np.uint8).reshape(-1, size * (size + 1) // 2)
        pattern = np.zeros((size, size))
        pattern[np.tril_indices(size)] = triangles[layer * n_heads + number] / 255
        title = f"{run.name}: {head_name(layer, number)} at step {step:,}"
        frames.append(
            paper.paper_attention(
                pattern, texts.words(prompt.ids), induction_targets(prompt.ids), title=title, width=width
            )
        )
    return frames


def ablations(source: Source, measures: Sequence[str] | None = None) -> go.Figure:
    """What removing each head does, at the last step that was ablated. Raises InputError if none was."""
    return figures.ablation_figure(read_tables(open_run(source), "ablations").drop_nulls(["layer", "head"]), measures)


def above_chance(source: Source, measure: str = "prefix_matching_sum") -> go.Figure:
    """Each head's score against its random-target null. Raises InputError: not scored, no such measure or no null."""
    return figures.null_figure(score_tables(open_run(source)).heads, measure)
