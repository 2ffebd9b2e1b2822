"""Commands that train many runs."""

from pathlib import Path
from typing import Annotated

import typer

from analyses.commands.options import AsJson, Assignments, Silent, echo_json
from analyses.visible import visible


def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (TOML): base, [values], [grid], [[runs]].")],
    out: Annotated[Path | None, typer.Option(help="The folder of all runs.  [default: runs/FILE]")] = None,
    engine: Annotated[str, typer.Option(help="local.")] = "local",
    jobs: Annotated[int | None, typer.Option(help="Runs at a time.  [default: half the cores; no limit]")] = None,
    assignments: Assignments = None,
    update: Annotated[
        bool, typer.Option("--update", help="Take a file that was changed; runs no longer in it stay where they are.")
    ] = False,
    silent: Silent = False,
    as_json: AsJson = False,
) -> None:
    """Train every run of a sweep file, each in a folder named by its config's hash, or go on where it was.

    Finished runs are left alone, interrupted ones go on; one that diverges or fails is marked and the others go on.
    Exit code 1 if a run failed. It can be killed, and started twice at once, without harm.

    \b
    Example: copyscope sweep batch.toml --jobs 2 --set data.corpus=path/to/text
    """
    from analyses.console import Console
    from analyses.sweeps import outcome_table
    from analyses.sweeps import sweep as run_sweep
    from training.config import parse_assignments
    from training.execute import DIVERGED, FAILED

    folder = out or Path("runs") / file.stem
    with Console(silent=silent) as console:
        found = run_sweep(
            file, folder, engine, jobs, values=parse_assignments(assignments or []), update=update,
            progress=console.advance, say=console.say,
        )  # fmt: skip
    if as_json:
        echo_json({"out": folder, "runs": outcome_table(found)})
    else:
        for one in found:
            why = f": {one.status.reason}" if one.status.state in (DIVERGED, FAILED) else ""
            typer.echo(visible(f"{one.status.state} {one.run.label} {one.folder} {one.status.seconds:.0f} s{why}"))
    if any(one.status.state == FAILED for one in found):
        raise typer.Exit(1)
