"""Commands that make, check and publish checkpoints."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from copyscope.analyses.commands.options import (
    AsJson,
    Assignments,
    EngineOptions,
    Silent,
    Source,
    TrainDevice,
    echo_json,
    grid_of,
    parse_options,
    preset_names,
    quiet,
    read_config,
)
from copyscope.analyses.words.text import visible

Explore = Annotated[
    bool, typer.Option("--explore", help="Serve a live page about the run, on this machine, while it trains.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port of the live page; 0 takes a free one.")]


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    preset: Annotated[str, typer.Option(help="Preset name or TOML file.", autocompletion=preset_names)] = "quickstart",
    corpus: Annotated[
        str | None,
        typer.Option(
            help="`python` (the sources of the Python installation), a file or folder of text, or hf:<data set>.  "
            "[default: the preset's]"
        ),
    ] = None,
    explore: Explore = False,
    port: Port = 0,
    assignments: Assignments = None,
    silent: Silent = False,
) -> None:
    """Train a small model, score and ablate its heads, map how copying formed, and write a report.

    While it trains, a line a checkpoint says which heads have formed. Safe to interrupt; rerun the same command to
    resume.

    \b
    Example: copyscope demo --out runs/demo --explore
    """
    config = read_config(preset, assignments, corpus)
    quiet()
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.studies.demo import demo as run_demo

    with Console(silent) as console, _live_page(out, port, explore) as show:
        result = run_demo(out, config, console.advance, show)
    for line in result.summary:
        typer.echo(f"- {line}")
    typer.echo(f"Report: {result.report}")


def train(
    config: Annotated[str, typer.Argument(help="Preset name or TOML file.", autocompletion=preset_names)],
    out: Annotated[Path | None, typer.Option(help="Run folder.  [default: runs/CONFIG]")] = None,
    score: Annotated[
        bool,
        typer.Option(
            "--score",
            help="Score each checkpoint as it is written (before checkpoints.keep deletes it), and say what changed.",
        ),
    ] = False,
    tasks: Annotated[
        bool, typer.Option("--tasks", help="With --score: ask the in-context tasks at each checkpoint too.")
    ] = False,
    explore: Explore = False,
    port: Port = 0,
    device: TrainDevice = "auto",
    assignments: Assignments = None,
    silent: Silent = False,
) -> None:
    """Train a model and save its checkpoints. Safe to interrupt; rerun the same command to resume.

    Several processes share each batch under `accelerate launch` or `torchrun`.

    \b
    Example: copyscope train quickstart --out runs/seed1 --set seeds.init=1
    """
    from copyscope.training.errors import InputError

    if explore and not score:
        raise InputError("--explore: shows scores, so give --score too")
    if tasks and not score:
        raise InputError("--tasks: are asked while scoring, so give --score too")
    loaded = read_config(config, assignments, None)
    folder = out or Path("runs") / Path(config).stem
    quiet()
    from copyscope.analyses.commands.console import Console
    from copyscope.training.trainer import train as run_train

    with Console(silent) as console, _live_page(folder, port, explore) as show:
        watch = None
        if score:
            from copyscope.analyses.tables.watch import Watch

            watch = Watch(folder, loaded, show, device=device, tasks=tasks)
        run_train(loaded, folder, progress=console.advance, on_checkpoint=watch, device=device)
    typer.echo(f"Run folder: {folder}")


@contextmanager
def _live_page(folder: Path, port: int, wanted: bool) -> Iterator[Callable[..., object] | None]:
    """What to call once a checkpoint is scored, so that the live page starts; None where none is wanted."""
    if not wanted:
        yield None
        return
    from copyscope.analyses.explorer.live import LivePage

    with LivePage(folder, port) as page:
        yield page.show


def zoom(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    start: Annotated[
        int | None, typer.Option("--from", help="First step to save.  [required without --around]")
    ] = None,
    end: Annotated[int | None, typer.Option("--to", help="Last step to save.  [required without --around]")] = None,
    every: Annotated[int, typer.Option(help="Distance between checkpoints, in steps.")] = 1,
    around: Annotated[
        str | None,
        typer.Option(
            help="Instead of --from and --to: formation, previous-token, induction, copying, or a head such as L2H1."
        ),
    ] = None,
    device: TrainDevice = "auto",
    silent: Silent = False,
) -> None:
    """Retrain part of a run exactly and save more checkpoints there.

    Exit code 1 if the replay does not reproduce the run's weights (on another machine, say); its checkpoints are then
    kept in a folder of their own.

    \b
    Example: copyscope zoom runs/demo --around induction --every 10
    """
    from copyscope.training.errors import InputError

    if around is None and (start is None or end is None):
        raise InputError("zoom: give both --from and --to, or --around formation")
    if around is not None and (start is not None or end is not None):
        raise InputError("zoom: give either --from and --to, or --around, not both")
    quiet()
    from copyscope.analyses.commands.console import Console
    from copyscope.analyses.tables.zoom_window import steps_around
    from copyscope.training.environment import at_step, differences
    from copyscope.training.zoom import zoom as run_zoom

    first, last = steps_around(run, around) if around else (start or 0, end or 0)
    with Console(silent) as console:
        result = run_zoom(run, first, last, every, console.advance, device)
    if result.differs or (not result.compared and result.folder != run):
        why = f"its weights differ at step {result.differs[0]}" if result.differs else "no step could be compared"
        changed = differences(at_step(run, first), at_step(result.folder, first))
        why += f"; run and replay had {changed}" if changed else ""
        typer.echo(f"The replay differs from the run ({why}); its checkpoints are kept in {result.folder}")
        raise typer.Exit(1)
    typer.echo(
        f"{len(result.added)} checkpoints added to {run}; the replay reproduced the weights at all "
        f"{len(result.compared)} steps that could be compared"
    )


def fork(
    run: Annotated[Path, typer.Argument(help="Folder of the run to fork; it is never written to.")],
    at: Annotated[str, typer.Option(help="Step, or comma-separated steps, from which on something differs.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="What differs, as in --set optimizer.lr=6e-3; may be repeated. Several values of one field make a "
            "fork each, and several fields every combination. Fields: optimizer.* but name, train.*, intervention.*, "
            "data.corpus and how it is read, dropout, seeds.data.  [default: nothing, the null fork]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the fork; of several the one above them, which may get more later.  [default: RUN-fork]"
        ),
    ] = None,
    lasting: Annotated[
        int | None,
        typer.Option(
            "--for",
            min=1,
            help="Number of updates that the change lasts; then the run's settings hold again.  [default: to the end]",
        ),
    ] = None,
    placebo: Annotated[
        int,
        typer.Option(
            min=0,
            help="Number of further forks at each step that differ in the order of the text alone: what chance does.",
        ),
    ] = 0,
    score: Annotated[bool, typer.Option("--score", help="Score each checkpoint as it is written.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Where several forks are trained: local, ray or slurm.  [default: one by one, here]"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of forks at a time.  [default: 1; with --engine its own]")
    ] = None,
    options: EngineOptions = None,
    silent: Silent = False,
    as_json: AsJson = False,
) -> None:
    """Train a run again from some step on with one thing changed: what would have happened?

    The first steps are the run's own checkpoints, referred to and not copied. Without --set it is the null fork, which
    must end with the run's weights, bit for bit. Exit code 1 if it does not, or if a fork failed. Safe to interrupt;
    rerun the same command to resume.

    \b
    Example: copyscope fork runs/demo --at 500 --set optimizer.lr=6e-3
    """
    from copyscope.training.errors import InputError

    steps = [part.strip() for part in at.split(",")]
    if not all(step.isdecimal() and step == str(int(step)) for step in steps):
        raise InputError(f"--at {at or '(empty)'}: give a step, or several as in 500,1000; thousands have no comma")
    settings = grid_of(assignments)
    quiet()
    from copyscope.analyses.commands.console import Console
    from copyscope.training.fork import fork as run_fork

    scored: dict[str, Any] = {}
    if score:
        from copyscope.analyses.studies.scored_run import arguments, program
        from copyscope.analyses.tables.watch import Watch

        scored = {"watch": Watch, "child": program(arguments(None, "auto", "float32"))}
    with Console(silent) as console:
        forks = run_fork(
            run,
            [int(step) for step in steps],
            settings,
            out,
            lasting=lasting,
            placebo=placebo,
            engine=engine,
            jobs=jobs,
            options=parse_options(options),
            **scored,
            progress=console.advance,
        )
    if as_json:
        echo_json({"run": run, "forks": [one._asdict() for one in forks]})
    else:
        for one in forks:
            typer.echo(visible(_fork_line(one, run)))
    if any(one.differs or one.state == "failed" for one in forks):
        raise typer.Exit(1)


def _fork_line(one: Any, run: Path) -> str:
    """How a fork ended and, of a null fork, whether it is its parent."""
    if one.state != "finished":
        return f"{one.label}: {one.state}: {one.reason}"
    if one.kind != "null":
        return f"{one.label}: {one.folder}, {one.kind} from step {one.step:,} on"
    if not one.compared:
        return f"{one.label}: {one.folder}; {run} has no later step to compare it with"
    if not one.differs:
        return f"{one.label}: {one.folder}, equal to {run} bit for bit at all {len(one.compared)} steps that both have"
    from copyscope.training.environment import at_step, differences

    changed = differences(at_step(run, one.step), at_step(one.folder, one.step))
    why = f"; they were trained with {changed}" if changed else ""
    return (
        f"{one.label}: {one.folder} differs from {run} from step {one.differs[0]:,} on; at step {one.compared[-1]:,} "
        f"their weights are {one.drift:.1e} of their norm apart{why}"
    )


def average(
    series: Source,
    share: Annotated[
        float | None,
        typer.Option(help="Average over the last part of the steps so far: this share.  [default: a quarter]"),
    ] = None,
    silent: Silent = False,
) -> None:
    """Average the weights of neighbouring checkpoints into a new series, SERIES/average.

    The mean of late weights is often the better model. It lags behind the run, so do not read formation steps from it.
    Score it like any series: copyscope score runs/demo/average

    \b
    Example: copyscope average runs/demo
    """
    from copyscope.analyses.commands.console import Console
    from copyscope.training.checkpoints.average import SHARE
    from copyscope.training.checkpoints.average import average as run_average

    with Console(silent) as console:
        result = run_average(series, SHARE if share is None else share, console.advance)
    typer.echo(
        f"{len(result.written)} means written to {result.folder}, which now has {len(result.parts)}; "
        f"{len(result.of_several)} of them are of weights after several updates"
    )


def verify(series: Source, as_json: AsJson = False, silent: Silent = False) -> None:
    """Check every checkpoint: files, labels, duplicated weights, and weights that do not fit the series.

    Prints one line a problem. Exit code 1 if there is any.

    \b
    Example: copyscope verify runs/demo
    """
    from copyscope.analyses.commands.console import Console
    from copyscope.training.checkpoints.series import CheckpointSeries
    from copyscope.training.checkpoints.verify import verify as verify_series
    from copyscope.training.files import MANIFEST

    opened = CheckpointSeries.open(series)
    with Console(silent) as console:
        problems = verify_series(opened, console.advance)
    count, listed = len(opened.checkpoints), sum((Path(c.path) / MANIFEST).is_file() for c in opened.checkpoints)
    if as_json:
        echo_json({"checkpoints": count, "with_manifest": listed, "problems": [p._asdict() for p in problems]})
    else:
        for problem in problems:
            typer.echo(visible(f"{problem.where}: {problem.what}"))
        number = f"{len(problems) or 'no'} problem{'s' * (len(problems) != 1)}"
        typer.echo(f"{count} checkpoints checked, {listed} with a manifest; {number}")
    if problems:
        raise typer.Exit(1)


def push(
    series: Source,
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face hub; created if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public instead of private.")] = False,
    silent: Silent = False,
) -> None:
    """Upload checkpoints to the Hugging Face hub: each as revision stepN, the last also as main.

    Revisions that exist are skipped. A series in which `verify` finds a problem is refused.

    \b
    Example: copyscope push runs/demo my-lab/copying-demo
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from copyscope.analyses.commands.console import Console
    from copyscope.training.checkpoints.hub import push as run_push

    with Console(silent) as console:
        result = run_push(series, repo, not public, progress=console.advance)
    typer.echo(f"{repo}: {len(result.uploaded)} revisions uploaded, {len(result.skipped)} already there")
