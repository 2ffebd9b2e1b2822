"""Commands that show what was measured."""

import os
from pathlib import Path
from typing import Annotated

import typer

from copyscope.analyses.commands.options import AsJson, Device, Dtype, Silent, Source, echo_json, quiet
from copyscope.analyses.words.text import visible

Scored = Annotated[
    list[Path],
    typer.Argument(
        help="Scored runs: run folders, folders of Hugging Face checkpoints, GGUF files, org/model@revision,revision.",
    ),
]


def info(series: Source, as_json: AsJson = False) -> None:
    """Show what is in a run in ten lines: model, text, progress, what was measured, and the next command.

    \b
    Example: copyscope info runs/demo
    """
    from dataclasses import asdict

    from copyscope.analyses.tables.info import info as run_info
    from copyscope.analyses.tables.info import info_lines

    if as_json:
        echo_json(asdict(run_info(series)))
        return
    for line in info_lines(series):
        typer.echo(visible(line))


def report(
    runs: Scored,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file.  [default: report.html in the first run's folder]")
    ] = None,
    max_megabytes: Annotated[
        float, typer.Option(min=0.0, help="Largest size of the file, in MB; attention patterns are left out beyond it.")
    ] = 8.0,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text whose attention is shown too; may be given several times.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    silent: Silent = False,
) -> None:
    """Write a self-contained HTML report: curves, formation maps, attention, claims, tables, config, versions.

    It opens offline. What did not fit is listed on the terminal and in the file.

    \b
    Example: copyscope report runs/demo --out demo.html
    """
    quiet()
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.page.report import report as run_report

    with Console(silent) as console:
        path = run_report(runs, out, max_megabytes, console.advance, device, dtype, prompt or ())
    typer.echo(str(path))


def explore(
    runs: Scored,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 takes a free one.  [default: 7117, or a free one if it is taken]"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; this machine only (127.0.0.0/8).")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Serve the interactive page: everything in the report, and attention on any prompt at every checkpoint.

    Serves this machine only; stop it with Ctrl-C. The page follows a run that is still being trained and scored.

    \b
    Example: copyscope explore runs/demo --port 8000
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the reader of GGUF files
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.explorer.serve import explore as run_explore

    with Console():
        run_explore(runs, port, host, browser, device, dtype)
