"""The `copyscope` command: which commands there are, and how it ends. The commands are in `analyses/commands`.

They parse arguments and print; everything else is in functions of the same names. Nothing heavy is imported until a
command runs, so that `--help` answers at once.
"""

import os
import sys

import typer

from analyses.commands import measuring, showing, training

app = typer.Typer(
    name="copyscope",
    help="Watch a language model learn to copy: train, score every head at every checkpoint, ablate, map.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (training.demo, training.train, training.zoom, training.verify, training.push):
    app.command()(command)
for command in (measuring.score, measuring.ablate, measuring.map_, measuring.claims):
    app.command(name=command.__name__.rstrip("_"))(command)
app.command()(showing.report)


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
