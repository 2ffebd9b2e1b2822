"""Progress where there is no terminal, a poor one, or a good one."""

import os
import pty
import re
import subprocess
import sys

import pytest

PROGRAM = """
from copyscope.analyses.commands.console import Console
import copyscope.analyses.commands.console
copyscope.analyses.commands.console.SECONDS_BETWEEN_LINES = 0.0
import logging
with Console(silent=SILENT) as console:
    for done in (1, 2, 3):
        console.advance("scoring checkpoints", done, 3)
    console.advance("training", 4, 4, "loss 2.500, 20,000 tokens/s")
    logging.getLogger("copyscope.test").info("a name with \\x1b[31mcolour\\x1b[0m and \\r a return in it")
"""
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def written(terminal: bool, environment: dict[str, str], silent: bool = False) -> str:
    """What a process reports to a file, or to a terminal made here."""
    command = [sys.executable, "-c", PROGRAM.replace("=SILENT", f"={silent}")]
    env = {"PATH": os.environ["PATH"], **environment}
    if not terminal:
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, env=env, stderr=theirs)
    os.close(theirs)
    data = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        data += piece
    os.close(ours)
    assert process.wait(30) == 0
    return data.decode()


@pytest.mark.parametrize("environment", [{}, {"TERM": "xterm"}, {"FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}])
def test_a_log_file_holds_plain_lines(environment: dict[str, str]) -> None:
    text = written(False, environment)
    assert not CONTROL.search(text)
    assert text.splitlines() == [
        *(f"scoring checkpoints: {done} of 3" for done in (1, 2, 3)),
        "training: 4 of 4, loss 2.500, 20,000 tokens/s",
        "a name with ␛[31mcolour␛[0m and ␍ a return in it",
    ]


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}])
def test_a_terminal_that_cannot_redraw_gets_plain_lines_too(environment: dict[str, str]) -> None:
    text = written(True, environment).replace("\r\n", "\n")
    assert not CONTROL.search(text)
    assert "scoring checkpoints: 2 of 3" in text


def test_a_terminal_gets_bars() -> None:
    assert "\x1b[" in written(True, {"TERM": "xterm-256color"})


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing(terminal: bool) -> None:
    assert written(terminal, {"TERM": "xterm"}, silent=True) == ""
