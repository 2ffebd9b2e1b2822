"""The `copyscope` command: its subcommands and exit codes. The commands themselves are in `analyses/commands`.

They parse arguments and print; all else is in functions of the same names. Nothing heavy is imported until a command
runs, so `--help` answers at once.
"""

import contextlib
import os
import sys
from typing import Annotated

import typer

from copyscope.analyses.commands import measuring, showing, sweeps, training
from copyscope.analyses.words.text import visible

app = typer.Typer(
    name="copyscope",
    help="Watch a language model learn to copy: train, score every head at every checkpoint, ablate, map.",
    epilog="Exit codes: 0 success; 1 `verify` found a problem, `zoom` or a null `fork` a difference, or a run of "
    "`sweep` or `fork` failed; 2 bad input, named in one line; 130 interrupted. Every command is safe to interrupt; "
    "rerun the same command to resume. Results go to standard output, progress to standard error. Start here: "
    "copyscope demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    training.demo,
    training.train,
    training.fork,
    training.zoom,
    training.average,
    training.verify,
    training.push,
):
    app.command()(command)
for command in (
    measuring.revisions,
    measuring.score,
    measuring.tasks,
    measuring.ablate,
    measuring.map_,
    measuring.claims,
):
    app.command(name=command.__name__.rstrip("_"))(command)
for command in (showing.info, showing.report, showing.explore):
    app.command()(command)
for command in (sweeps.sweep, sweeps.study):
    app.command()(command)


def _print_version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"copyscope {version('copyscope')}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Runs the command. Exit codes: 0 success; 1 `verify`, `zoom`, `fork` or `sweep` found a problem; 2 bad input; 130
    interrupted; 141 if the reader of the output went away."""
    from copyscope.training.errors import InputError, Stopped

    # How long idle OpenMP threads spin. On 2 idle cores the demo's updates ran at 30 k tokens/s so, and at 19 k with
    # OMP_WAIT_POLICY=PASSIVE; spinning without end starves whatever else runs. Read when torch is first imported,
    # which no command has done yet.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a name that the terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this code, without a word
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except InputError as error:
        _fail(str(error), 2)
    except Stopped as error:
        _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; rerun the same command to resume", 130)
    except BrokenPipeError:  # as in `copyscope verify RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries to write it on its way out
        sys.exit(141)
    except OSError as error:  # what the system refuses, wherever: a name too long, a folder that may not be read
        _fail(f"{error.filename or 'operating system'}: {error.strerror or error}", 2)
    except Exception as error:
        show = getattr(error, "show", None)  # wrong usage; typer does not export the base class of these
        if show is None:
            raise
        show()
        sys.exit(2)


def _fail(message: str, code: int) -> None:
    typer.echo(f"copyscope: {visible(' '.join(message.split()))}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
