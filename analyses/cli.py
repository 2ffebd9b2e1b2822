"""The `copyscope` command: parses arguments and prints; everything else is in functions of the same names.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="copyscope",
    help="Watch a language model learn to copy: train, score every head at every checkpoint, ablate, map.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Source = Annotated[
    Path,
    typer.Argument(
        help="A run, a folder of Hugging Face models, one model's folder or GGUF file, or org/model@revision,revision."
    ),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="A config field, as in --set optimizer.lr=1e-3; may be repeated.")
]
Steps = Annotated[str | None, typer.Option(help="Comma-separated steps, as in 0,100,200.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    preset: Annotated[str, typer.Option(help="A preset's name or a TOML file.")] = "quickstart",
    corpus: Annotated[str | None, typer.Option(help="`python`, a file or folder of text, or hf:<data set>.")] = None,
    assignments: Assignments = None,
) -> None:
    """Train a small model, score and ablate its heads, map how copying formed, and write a report.

    Interrupted, the same command goes on where it was. Example: copyscope demo --out runs/demo
    """
    config = _config(preset, assignments, corpus)
    _quiet()
    from analyses.console import Console
    from analyses.demo import demo as run_demo

    with Console(config.train.steps) as console:
        result = run_demo(out, config, console.line, console.say, console.advance)
    for line in result.summary:
        typer.echo(f"- {line}")
    typer.echo(f"The report: {result.report}")


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A preset's name or a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="The run folder.  [default: runs/CONFIG]")] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Score each checkpoint while training, before checkpoints.keep applies.")
    ] = False,
    assignments: Assignments = None,
) -> None:
    """Train a model and save its checkpoints, or go on with the run in the folder.

    Several processes share each batch under `accelerate launch` or `torchrun`.
    Example: copyscope train quickstart --out runs/seed1 --set seeds.init=1
    """
    loaded = _config(config, assignments, None)
    folder = out or Path("runs") / Path(config).stem
    _quiet()
    from analyses.console import Console
    from analyses.scores import score as run_score
    from training.trainer import train as run_train

    with Console(loaded.train.steps) as console:
        run_train(
            loaded, folder, progress=console.line, say=console.say,
            on_checkpoint=(lambda checkpoint: run_score(folder, steps=[checkpoint.step])) if score else None,
        )  # fmt: skip
    typer.echo(f"The run: {folder}")


@app.command()
def verify(series: Source) -> None:
    """Check every checkpoint: files, labels, repeated weights, and weights that do not belong where they are.

    Prints one line a problem. Exit code 1 if there is any. Example: copyscope verify runs/demo
    """
    from analyses.console import Console
    from training.checkpoints import MANIFEST, CheckpointSeries

    opened = CheckpointSeries.open(series)
    with Console() as console:
        problems = opened.verify(console.advance)
    for problem in problems:
        typer.echo(f"{problem.where}: {problem.what}")
    count, listed = len(opened.checkpoints), sum((Path(c.path) / MANIFEST).is_file() for c in opened.checkpoints)
    typer.echo(f"{count} checkpoints, {listed} with a manifest; {len(problems) or 'no'} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def push(
    series: Source,
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face hub; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public, not private.")] = False,
) -> None:
    """Upload each checkpoint to the Hugging Face hub, as revision stepN, and the last as main.

    What is there already is skipped. A series that `verify` finds unsound is refused.
    Example: copyscope push runs/demo my-lab/copying-demo
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from analyses.console import Console
    from training.checkpoints import CheckpointSeries
    from training.hub import push_series

    with Console() as console:
        opened = CheckpointSeries.open(series)
        result = push_series(opened, repo, not public, console.say, progress=console.advance)
    typer.echo(f"{repo}: {len(result.uploaded)} revisions uploaded, {len(result.skipped)} there already")


@app.command()
def zoom(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    start: Annotated[int | None, typer.Option("--from", help="First step to save.")] = None,
    end: Annotated[int | None, typer.Option("--to", help="Last step to save.")] = None,
    every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 1,
    around: Annotated[
        str | None,
        typer.Option(help="In place of both: formation, previous-token, induction, copying, or a head such as L2H1."),
    ] = None,
) -> None:
    """Train a part of a run again, exactly, and save a denser series of checkpoints there.

    Exit code 1 if the replay does not give the run's own weights (another machine or number of threads): it is then
    kept apart. Example: copyscope zoom runs/demo --around induction --every 10
    """
    from training.errors import InputError

    if around is None and (start is None or end is None):
        raise InputError("zoom: give --from and --to, or --around formation")
    if around is not None and (start is not None or end is not None):
        raise InputError("zoom: give --from and --to, or --around, not both")
    _quiet()
    from analyses.console import Console
    from analyses.zooms import steps_around
    from training.zoom import zoom as run_zoom

    first, last = steps_around(run, around) if around else (start or 0, end or 0)
    with Console(last) as console:
        result = run_zoom(run, first, last, every, progress=console.line, say=console.say)
    if result.differs or (not result.compared and result.folder != run):
        why = f"its weights differ at step {result.differs[0]}" if result.differs else "no step could be compared"
        typer.echo(f"The replay is not the run ({why}); it is kept apart, a series of its own: {result.folder}")
        raise typer.Exit(1)
    typer.echo(
        f"{len(result.added)} checkpoints added to {run}; at {len(result.compared)} shared steps the replay gave the "
        "same weights"
    )


@app.command()
def score(
    series: Source,
    measures: Annotated[str | None, typer.Option(help="Comma-separated measures of heads.  [default: all]")] = None,
    steps: Steps = None,
    seeds: Annotated[
        str | None, typer.Option(help="Comma-separated seeds of the random tokens.  [default: the run's own]")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the copying test; fewer are faster.")] = 500,
) -> None:
    """Score every head and the whole model at every checkpoint, into results/heads and results/model.

    Prints which heads exceed their random-target null at the last step (p <= 0.05, corrected for the number of heads).
    Example: copyscope score runs/demo --measures previous_token,prefix_matching_sum
    """
    _quiet()
    from analyses.console import Console
    from analyses.run import open_run
    from analyses.scores import above_null
    from analyses.scores import score as run_score

    with Console() as console:
        chosen = _numbers(seeds, "--seeds")
        result = run_score(
            series, _names(measures), _numbers(steps), console.advance, seeds=chosen, samples=samples,
            say=console.say,
        )  # fmt: skip
    for (measure,), found in above_null(result.heads).group_by("measure", maintain_order=True):
        best = [f"L{r['layer']}H{r['head']} {r['value']:.2f} ({r['null']:.2f})" for r in found.head(5).to_dicts()]
        more = ", …" if found.height > 5 else ""
        typer.echo(f"{measure}: {found.height} heads above their null (in brackets): {', '.join(best)}{more}")
    folder = open_run(series).folder / "results"
    typer.echo(f"{result.heads.height} scores of heads and {result.model.height} of models in {folder}")


@app.command()
def ablate(
    series: Source,
    steps: Annotated[str | None, typer.Option(help="Comma-separated steps.  [default: the last]")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: zero, mean, mean_over_positions, resample, frozen_patterns.  "
            "[default: zero; mean for pairs, sets and paths]"
        ),
    ] = None,
    what: Annotated[
        str, typer.Option(help="Comma-separated: heads, layers, pairs, sets, paths, attribution; or all.")
    ] = "heads",
    over_training: Annotated[
        bool,
        typer.Option("--over-training", help="At --map-steps steps, half of them where copying formed."),
    ] = False,
    map_steps: Annotated[int, typer.Option(min=2, help="Steps of --over-training.")] = 12,
    samples: Annotated[int, typer.Option(min=1, help="Samples of the copying test; fewer are faster.")] = 500,
    memory: Annotated[int, typer.Option(min=1, help="Megabytes for activations, beside the model.")] = 64,
) -> None:
    """Remove heads and layers, find the smallest set that copying needs, patch paths; into results/ablations.

    heads: each in turn. layers: each attention layer and MLP. pairs: which heads back each other up. sets: the fewest
    heads and layers that are enough for copying, and the fewest that break it. paths: from previous-token heads into
    induction heads' keys. attribution: a quick estimate beside the exact effect.
    Example: copyscope ablate runs/demo --what heads,sets,paths
    """
    _quiet()
    from analyses.ablation_words import in_words
    from analyses.ablations import ablate as run_ablate
    from analyses.ablations import kinds
    from analyses.causal_map import causal_steps
    from analyses.console import Console
    from analyses.run import open_run

    chosen = _numbers(steps)
    run = open_run(series)
    if over_training and chosen is None:
        chosen = causal_steps(run, map_steps)
    with Console() as console:
        tables = {
            kind: run_ablate(
                series, chosen, _names(method), console.advance, what=kind, samples=samples, max_bytes=memory * 2**20
            )
            for kind in kinds(_names(what) or [])
        }
    for kind, table in tables.items():
        for line in in_words(kind, table):
            typer.echo(line)
    typer.echo(f"{sum(t.height for t in tables.values())} rows in {run.folder / 'results' / 'ablations'}")


@app.command(name="map")
def map_(
    series: Source,
    measures: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated measures to draw, or the effect of an ablation such as zero:copying_loss.  "
            "[default: previous_token, prefix_matching_sum, induction_score; an effect where several steps have one]"
        ),
    ] = None,
    figures: Annotated[str, typer.Option(help="Comma-separated formats: html, pdf, svg, png.")] = "html",
) -> None:
    """Find when heads formed and draw the formation maps, into results/formation.json and figures/.

    Example: copyscope map runs/demo --figures html,pdf
    """
    _quiet()
    from analyses.maps import map_formation

    result = map_formation(series, _names(measures), _names(figures) or [])
    for path in [series / "results" / "formation.json", *result.figures]:
        typer.echo(str(path))


@app.command()
def claims(
    runs: Annotated[
        list[Path], typer.Argument(help="Scored runs: seeds of a recipe, or runs that differ in a setting.")
    ],
    factor: Annotated[
        str | None, typer.Option(help="A setting such as train.batch_size: refuse runs that differ in anything else.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file.  [default: claims.html beside the first run]")
    ] = None,
) -> None:
    """Judge each claim of "Language Models 'Grok' to Copy" by scored runs: supported, contradicted or undecided.

    Writes a page with effect sizes, intervals, rules and break conditions, and the same as JSON beside it.
    Example: copyscope claims runs/seed0 runs/seed1 runs/seed2
    """
    _quiet()
    from analyses.claims import claims as judge
    from analyses.claims_page import verdict_line, write_claims

    found = judge(runs, factor)
    for verdict in found.verdicts:
        typer.echo(verdict_line(verdict))
    typer.echo(str(write_claims(found, [str(run) for run in runs], out or runs[0].resolve().parent / "claims.html")))


@app.command()
def report(
    series: Source,
    out: Annotated[Path | None, typer.Option(help="The HTML file.  [default: report.html in the folder]")] = None,
) -> None:
    """Write one HTML file with figures, tables, config and provenance that opens offline.

    Example: copyscope report runs/demo --out demo.html
    """
    _quiet()
    from analyses.story import report as run_report

    typer.echo(str(run_report(series, out)))


def _config(source: str, assignments: list[str] | None, corpus: str | None) -> Any:
    from training.config import RunConfig, parse_assignments

    values = parse_assignments(assignments or [])
    if corpus is not None:
        values["data.corpus"] = corpus
    return RunConfig.load(source).with_values(values)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str | None, option: str = "--steps") -> list[int] | None:
    from training.errors import InputError

    names = _names(text)
    try:
        return None if names is None else [int(name) for name in names]
    except ValueError:
        raise InputError(f"{option} {text}: give whole numbers with commas between, as in 0,100,200") from None


def _quiet() -> None:
    """Libraries that print bars and warnings of their own while loading stay silent; ours are the ones shown."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers.utils import logging

    logging.disable_progress_bar()


def main() -> None:
    """Runs the command. Exit codes: 0 success, 1 `verify` found problems, 2 bad input, 130 interrupted."""
    from training.errors import InputError, Stopped

    # How long idle OpenMP threads spin. On 2 idle cores the demo's updates ran at 30 k tokens/s so, and at 19 k with
    # OMP_WAIT_POLICY=PASSIVE; spinning without end starves whatever else runs. Read when torch is first imported,
    # which no command has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except InputError as error:
        _fail(str(error), 2)
    except Stopped as error:
        _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on where it was", 130)
    except Exception as error:
        show = getattr(error, "show", None)  # wrong usage; typer does not export the base class of these
        if show is None:
            raise
        show()
        sys.exit(2)


def _fail(message: str, code: int) -> None:
    typer.echo(f"copyscope: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
