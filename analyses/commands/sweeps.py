"""Commands that train many runs."""

from pathlib import Path
from typing import Annotated

import typer

from copyscope.analyses.commands.options import (
    AsJson,
    Assignments,
    Device,
    Dtype,
    EngineOptions,
    Silent,
    echo_json,
    parse_options,
)
from copyscope.analyses.studies import QUESTIONS
from copyscope.analyses.words.text import visible

Engine = Annotated[str, typer.Option(help="Where runs are computed: local, ray or slurm.")]
Jobs = Annotated[
    int | None, typer.Option(help="Number of runs at a time.  [default: half the cores; on a cluster as many as fit]")
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="Samples of the copying test; fewer is faster.  [default: what the file says, or 500]"),
]

Tasks = Annotated[
    bool, typer.Option("--tasks", help="Ask the in-context tasks (docs/tasks.md) at each checkpoint that is scored.")
]


def study_names(typed: str) -> list[str]:
    """Studies that begin with what was typed, for the shell's completion."""
    return [name for name in QUESTIONS if name.startswith(typed)]


def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (TOML): base, [values], [grid], [[runs]].")],
    out: Annotated[Path | None, typer.Option(help="Folder for all runs.  [default: runs/FILE]")] = None,
    engine: Engine = "local",
    jobs: Jobs = None,
    options: EngineOptions = None,
    assignments: Assignments = None,
    samples: Samples = None,
    tasks: Tasks = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    update: Annotated[
        bool,
        typer.Option("--update", help="Accept a sweep file that was changed since; runs no longer in it are kept."),
    ] = False,
    silent: Silent = False,
    as_json: AsJson = False,
) -> None:
    """Train and score every run of a sweep file, each in a folder named by its config's hash.

    Safe to interrupt, and to start twice at once; rerun the same command to resume. Finished runs are not repeated. A
    run that diverges or fails is marked, and the others continue. Exit code 1 if a run failed.

    \b
    Example: copyscope sweep batch.toml --jobs 2 --set data.corpus=path/to/text
    """
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.studies.sweep import outcome_table
    from copyscope.analyses.studies.sweep import sweep as run_sweep
    from copyscope.training.config import parse_assignments
    from copyscope.training.sweeps.worker import DIVERGED, FAILED

    folder = out or Path("runs") / file.stem
    with Console(silent) as console:
        outcomes = run_sweep(
            file,
            folder,
            engine,
            jobs,
            options=parse_options(options),
            values=parse_assignments(assignments or []),
            samples=samples,
            tasks=tasks,
            device=device,
            dtype=dtype,
            update=update,
            progress=console.advance,
        )
    if as_json:
        echo_json({"out": folder, "runs": outcome_table(outcomes)})
    else:
        for outcome in outcomes:
            status = outcome.status
            why = f": {status.reason}" if status.state in (DIVERGED, FAILED) else ""
            typer.echo(visible(f"{status.state} {outcome.run.label} {outcome.folder} {status.seconds:.0f} s{why}"))
    if any(outcome.status.state == FAILED for outcome in outcomes):
        raise typer.Exit(1)


def study(
    name: Annotated[
        str,
        typer.Argument(
            help=", ".join(QUESTIONS) + ".",
            autocompletion=study_names,
        ),
    ],
    size: Annotated[
        str, typer.Option(help="laptop (one or two hours on 2 cores) or paper (12 layers, needs GPUs).")
    ] = "laptop",
    out: Annotated[Path | None, typer.Option(help="Folder for its runs.  [default: runs/study-NAME]")] = None,
    engine: Engine = "local",
    jobs: Jobs = None,
    options: EngineOptions = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="`python`, a file or folder of text, or hf:<data set>; give two or more for the study `corpus`."
        ),
    ] = None,
    assignments: Assignments = None,
    samples: Samples = None,
    tasks: Tasks = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
    analyse_only: Annotated[
        bool, typer.Option("--analyse-only", help="Do not train; analyse the runs that are finished.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Accept settings other than those of the runs in the folder.")
    ] = False,
    silent: Silent = False,
    as_json: AsJson = False,
) -> None:
    """Answer one question with many runs: train them, analyse them, draw a figure, print verdicts.

    Prints the expected cost first. Safe to interrupt; rerun the same command to resume. Once all runs are done it only
    repeats the analysis. Tables, figure, verdicts and configs go to OUT/results.

    \b
    Example: copyscope study corpus --corpus python --corpus path/to/prose --jobs 2
    """
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.studies.study import study as run_study
    from copyscope.training.config import parse_assignments

    with Console(silent) as console:
        result = run_study(
            name,
            size,
            out,
            engine,
            jobs,
            options=parse_options(options),
            corpora=corpus or (),
            values=parse_assignments(assignments or []),
            samples=samples,
            tasks=tasks,
            device=device,
            dtype=dtype,
            train=not analyse_only,
            update=update,
            progress=console.advance,
        )
    if as_json:
        echo_json({"folder": result.folder, "verdicts": result.verdicts, "runs": result.runs})
        return
    for line in result.lines():
        typer.echo(visible(line))
    typer.echo(str(result.folder))
