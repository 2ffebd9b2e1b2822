"""One self-contained HTML page about a run: summary, figures, tables, words, config. It opens offline and asks nobody.

Everything that comes from outside (titles, run names, config, tokens, tables) is shown as text: escaped in HTML, and
`<`, `>`, `&` written as \\u escapes inside scripts. A Content-Security-Policy forbids the page every request.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
import polars as pl
from plotly.offline import get_plotlyjs

from analyses import figures
from analyses.formation import copying_formation, depth_trend, formation_steps, loss_settled, order_of_appearance
from analyses.glossary import describe
from analyses.report_tables import (
    carrier_table,
    checkpoint_table,
    copying_table,
    definition_table,
    head_table,
    html_table,
    order_table,
    shown_measures,
)  # fmt: skip
from analyses.visible import visible
from training.checkpoints import write_text
from training.errors import InputError


def write_report(
    out_path: Path,
    *,
    title: str,
    summary_lines: Sequence[str],
    heads: pl.DataFrame,
    model: pl.DataFrame,
    metrics: pl.DataFrame,
    ablations: pl.DataFrame | None = None,
    config_toml: str = "",
    provenance: Mapping[str, Any] | None = None,
    chance: float = 0.0,
) -> Path:
    """Write the report of one run to `out_path` and return the path.

    Tables as on disk (long format): `heads`, `model`, `ablations`; `metrics` as in metrics.jsonl (step, tokens, loss,
    validation_loss). `chance`: copying accuracy of guessing, 1 / tokens drawn from. Formation steps are found here.
    Where there is too little to say something (few checkpoints, nothing ablated), a line says so. About 5 MB, nearly
    all of it plotly.js. The file is written whole or not at all (temporary file, fsync, rename). Raises InputError:
    tables with duplicate steps, NaN, several runs; `out_path` that cannot be written.
    """
    notes: list[str] = []
    found = {measure: _try(notes, formation_steps, heads, measure) for measure in shown_measures(heads)}
    copying = _try(notes, copying_formation, model, chance)
    settled = _try(notes, loss_settled, metrics)
    main = next((measure for measure in ("prefix_matching_sum", "induction_score") if measure in found), None)
    order = _try(notes, order_of_appearance, heads, model, main, chance) if main and "previous_token" in found else None

    story = figures.story_figure(heads, model, metrics, settled=settled, copying=copying, maps=found)
    parts = [f"<h1>{text(title)}</h1>", _summary(summary_lines)]
    parts += [f'<p class="note">{text(note)}</p>' for note in dict.fromkeys(notes)]
    parts += ["<h2>The run</h2>", _figure(story, "story", _STORY)]
    if main is not None:
        parts += ["<h2>Heads</h2>"]
        if (heads["measure"] == f"{main}_null").any():
            parts.append(_figure(figures.null_figure(heads, main), "null", _NULL))
        table = head_table(heads, main, found[main], ablations)
        parts.append(html_table(table, f"The heads with the highest final score: {describe(main).title}"))
    parts.append("<h2>What removing a head does</h2>")
    if ablations is not None and not ablations.is_empty():
        parts.append(_figure(figures.ablation_figure(ablations), "ablation", _ABLATION))
    else:
        parts.append('<p class="note">No head was ablated in this run.</p>')
    parts.append("<h2>When things formed</h2>")
    if order is not None:
        parts.append(html_table(order_table(order), "Order of appearance"))
    if copying is not None:
        parts.append(html_table(copying_table(copying), "Copying"))
    leaders = [carrier_table(heads, measure) for measure, table in found.items() if table is not None]
    if any(not table.is_empty() for table in leaders):
        parts.append(html_table(pl.concat(leaders), "Which head scores highest, and from when to when"))
    if main is not None and found[main] is not None:
        trend = depth_trend(found[main], found.get("previous_token"))
        parts.append(f"<p>Shallow to deep? <strong>{text(trend.verdict)}</strong>: {text(trend.reason)}.</p>")
    parts.append(f'<p class="note">{text(_RULE)}</p>')
    parts += ["<h2>What the measures mean</h2>", html_table(definition_table(heads, model), "", words=True)]
    parts += ["<h2>What was measured</h2>", html_table(checkpoint_table(heads, model, ablations), "Checkpoints")]
    parts += ["<h2>Provenance</h2>", _provenance(provenance or {})]
    parts += ["<h2>Config</h2>", f"<pre>{text(config_toml)}</pre>" if config_toml else "<p>Not given.</p>"]
    page = Template(page_part("report.html")).substitute(
        title=text(title), style=page_part("report.css"), body="\n".join(parts), plotly=get_plotlyjs()
    )
    write_text(Path(out_path), page)
    return Path(out_path)


_STORY = """From top to bottom on one step axis: the loss, copying accuracy, the loss on random tokens the first
time and when repeated, and one formation map a measure. In a map each row is a head (layer 0 on
top), each cell a checkpoint; grey cells were not measured; diamonds and the numbers at the right
are formation steps; ↓ fell back later."""
_NULL = """The null is the attention to a random earlier target at the same checkpoint. A head whose dot lies
at its bar does no more than chance."""
_ABLATION = """Change when one head is removed. Below 0 in accuracy and above 0 in loss: copying needs the head.
The open diamond is the mean effect of the other heads of its layer: a head matters in so far as it
differs from it."""
_RULE = """A head has formed if its score, over its start and its random-target null, holds three tenths of the
measure's range for three consecutive checkpoints (and stands clear of the noise: four robust standard
deviations of all heads at the first checkpoint and of its own changes). It is weak if it rose, but not
that far. Its formation step is the change point of a smooth rise fitted on the log-step axis, up to four
times the step at which it reached that level, so that longer training does not move it. The interval is
a bootstrap over prompts where the scores have standard errors, else over the noise of neighbouring
checkpoints, and never narrower than the gap between the two checkpoints around it. For copying the level
is a tenth of the range."""


def _try(notes: list[str], function: Any, *arguments: Any) -> Any:
    """The result, or None with the reason in `notes`: a short or diverged run still gets its report."""
    try:
        return function(*arguments)
    except InputError as error:
        notes.append(str(error))
        return None


def text(value: Any) -> str:
    """Any value as harmless HTML text; control characters and lone surrogates are made visible."""
    return escape(visible(str(value)))


def script_json(data: Any) -> str:
    """JSON that is safe inside <script>: no `<`, `>`, `&` or line separator can end or confuse it."""
    out = data if isinstance(data, str) else json.dumps(data, allow_nan=False)
    for character in "<>&\u2028\u2029":
        out = out.replace(character, f"\\u{ord(character):04x}")
    return visible(out)


def _figure(figure: go.Figure, name: str, caption: str) -> str:
    """A place for the figure, its data as JSON, and a caption; drawn by the page's script."""
    body = figure.to_json() or "{}"
    config = json.dumps(figures.CONFIG)
    data = script_json(f'{body[:-1]},"config":{config}}}')
    height = int(figure.layout.height)  # type: ignore[union-attr]
    return (
        f'<figure><div class="scroll"><div class="plot" id="plot-{name}" role="img" aria-label="{text(caption)}" '
        f'style="height:{height}px"></div></div><figcaption>{text(caption)}</figcaption>'
        f'<script type="application/json" id="plot-{name}-data">{data}</script></figure>'
    )


def _summary(lines: Sequence[str]) -> str:
    return '<ul class="summary">' + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _provenance(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return "<p>Not given.</p>"
    rows = "".join(f'<tr><th scope="row">{text(k)}</th><td>{text(v)}</td></tr>' for k, v in provenance.items())
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def page_part(name: str) -> str:
    """A file of the page's template."""
    return files("analyses").joinpath("templates", name).read_text(encoding="utf-8")
