"""Commands that show what was measured."""

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options import Source, quiet


def report(
    series: Source,
    out: Annotated[Path | None, typer.Option(help="The HTML file.  [default: report.html in the folder]")] = None,
) -> None:
    """Write one HTML file with figures, tables, config and provenance that opens offline.

    Example: copyscope report runs/demo --out demo.html
    """
    quiet()
    from analyses.report import report as run_report

    typer.echo(str(run_report(series, out)))
