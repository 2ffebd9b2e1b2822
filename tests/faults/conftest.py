"""Processes that tests start and are sure to end."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(autouse=True)
def helpers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By processes that are started too."""
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script of the helpers with these arguments; whatever runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(HELPERS / script), *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()
