"""The report: the page about scored runs as a self-contained HTML file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs

from copyscope.analyses.page.budget import embed_attention
from copyscope.analyses.page.build import page
from copyscope.analyses.page.payload import payload
from copyscope.analyses.page.places import without_places
from copyscope.analyses.page.prompts import typed_prompt
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.opening import open_runs
from copyscope.analyses.tables.run import Run
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError
from copyscope.training.files import write_text
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)

MEGABYTES = 8.0
"""The default size limit of a report: small enough for an e-mail."""


def report(
    sources: Source | Sequence[Source],
    out: str | Path | None = None,
    max_megabytes: float = MEGABYTES,
    progress: Progress | None = None,
    device: str = "auto",
    dtype: str = "float32",
    prompts: Sequence[str] = (),
) -> Path:
    """Writes the report of one or several scored runs and returns its path.

    `out`: None for report.html in the first run's folder; the rest is as for `report_page`. The file is written whole
    or not at all. Raises InputError if a run was not scored, or `out` cannot be written.
    """
    runs = open_runs(sources)
    if out is not None and not Path(out).parent.is_dir():  # said before anything is computed
        raise InputError(f"{out}: there is no folder {Path(out).parent}; create it, or choose another place")
    html = report_page(runs, max_megabytes, progress, device=device, dtype=dtype, prompts=prompts)
    target = runs[0].folder / "report.html" if out is None else Path(out)
    write_text(target, html)
    return target


def report_page(
    runs: Sequence[Run],
    max_megabytes: float = MEGABYTES,
    progress: Progress | None = None,
    start: str = "",
    *,
    device: str = "auto",
    dtype: str = "float32",
    prompts: Sequence[str] = (),
) -> str:
    """The page about these runs as HTML that needs nothing else.

    Attention is embedded as far as `max_megabytes` reaches; what is left out is named in the page and logged. Where on
    this disk run, text and tokenizer lie is not in the page (`places.without_places`).
    `start`: the view it opens with, as in the page's address (`#view=attention&step=500`), where `text=` is a prompt
    that was typed. `device`, `dtype`: where and how precisely attention is computed, as for `score`. `prompts`: text
    whose attention is shown beside that of the page's own prompts. Raises InputError if a run was not scored, or for a
    prompt that does not fit its model.
    """
    if not 0 <= max_megabytes < 1e6:
        raise InputError(f"--max-megabytes {max_megabytes:g}: give a size such as 8")
    typed = list(dict.fromkeys([*prompts, *parse_qs(start.removeprefix("#")).get("text", [])]))
    for run in runs if typed else ():
        texts = texts_of(run)
        for text in typed:
            typed_prompt(texts, text)  # said before anything is computed
    content = payload(runs)
    blocks = embed_attention(runs, content, round(max_megabytes * 1e6), progress, device, dtype, typed)
    for line in content.index["left_out"]:
        logger.info(f"left out: {line}")
    return page(without_places(content.index, runs) | {"start": start}, blocks)
