"""What the command line says about itself: help without heavy imports, examples that parse, completion, near misses."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from copyscope.analyses import cli

GROUP: Any = typer.main.get_command(cli.app)
COMMANDS = sorted(GROUP.commands)
PROGRAM = str(Path(sys.executable).with_name("copyscope"))
# Not pydantic: typer itself imports it for options that are numbers, in a tenth of a second.
HEAVY = ("torch", "transformers", "polars", "plotly", "numpy", "matplotlib", "starlette", "ray", "rich.progress")


def copyscope(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with nothing of this one's environment but where programs are."""
    return subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], **environment},
    )


def test_help_imports_nothing_heavy() -> None:
    program = f"""
import sys
from copyscope.analyses import cli
for arguments in [[], {", ".join(f"[{name!r}]" for name in COMMANDS)}]:
    sys.argv = ["copyscope", *arguments, "--help"]
    try: cli.main()
    except SystemExit as stopped: assert not stopped.code, arguments
    for name in {HEAVY}: assert name not in sys.modules, (arguments, name)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


def examples(name: str) -> list[str]:
    return re.findall(r"Example: (copyscope .+)", GROUP.commands[name].help or "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_parses(name: str) -> None:
    found = examples(name)
    assert found, f"{name}: no line `Example: copyscope {name} …` in its help"
    for example in found:
        assert len(example) < 72, "would be wrapped on a terminal of 80 columns"
        _, command, *arguments = shlex.split(example)
        assert command == name
        GROUP.commands[command].make_context(name, arguments)  # raises for an option that is not there


def test_the_example_test_can_fail() -> None:
    with pytest.raises(Exception, match="No such option"):
        GROUP.commands["score"].make_context("score", ["runs/demo", "--measuers", "x"])


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert copyscope("--version").stdout == f"copyscope {version('copyscope')}\n"


def test_exit_codes_are_in_the_help() -> None:
    text = " ".join(copyscope("--help").stdout.split()).partition("Exit codes:")[2]
    assert re.findall(r"\b(\d+)\b", text) == ["0", "1", "2", "130"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("copyscope sc", "score"), ("copyscope train qu", "quickstart"), ("copyscope score --sam", "--samples")],
)
def test_the_shell_completes(typed: str, offered: str) -> None:
    # As the function that --show-completion prints calls it.
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_COPYSCOPE_COMPLETE": "complete_bash"}
    result = copyscope(**asked)
    assert offered in result.stdout.split(), result.stderr


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["scor"], "Did you mean 'score'?"),
        (["score", "runs/x", "--measure", "x"], "--measures"),
        (["train", "quickstrat"], "did you mean 'quickstart'?"),
        (["train", "quickstart", "--set", "model.n_layer=2"], "did you mean 'model.n_layers'?"),
        (["train", "quickstart", "--set", "modle.n_layers=2"], "did you mean 'model.n_layers'?"),
        (["score", "{series}", "--measures", "prefix_matching"], "did you mean 'prefix_matching_sum'?"),
        (["ablate", "{series}", "--method", "zeros"], "did you mean 'zero'?"),
        (["ablate", "{series}", "--what", "head"], "did you mean 'heads'?"),
    ],
)
def test_near_misses_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], near: str
) -> None:
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["copyscope", *(text.format(series=tmp_path) for text in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert near in capsys.readouterr().err
