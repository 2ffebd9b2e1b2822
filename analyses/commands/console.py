"""Progress on the terminal: bars where there is one, plain lines where there is not."""

import logging
import os
import sys
import time
from typing import Any

from rich import console as rich_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from copyscope.analyses.words.text import visible

SECONDS_BETWEEN_LINES = 15.0
_LOGGER = logging.getLogger("copyscope")


class Console(logging.Handler):
    """Shows progress and what copyscope logs. Writes to standard error, so that standard output holds results only.

    Bars need a terminal that can redraw a line; else there are plain lines, now and then, without control characters,
    so that a log file can be read. `silent`: warnings only.
    """

    def __init__(self, silent: bool = False):
        super().__init__(logging.INFO)
        self.silent = silent
        self._bars_shown = not silent and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # rich believes FORCE_COLOR and the like more than the stream; a log file must stay plain all the same.
        self._console = rich_console.Console(stderr=True, force_terminal=self._bars_shown)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )
        self._tasks: dict[str, Any] = {}
        self._last = 0.0

    def __enter__(self) -> "Console":
        self._level_before = _LOGGER.level
        _LOGGER.addHandler(self)
        _LOGGER.setLevel(logging.INFO)
        if self._bars_shown:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars_shown:
            self._bars.stop()
        _LOGGER.removeHandler(self)
        _LOGGER.setLevel(self._level_before)

    def emit(self, record: logging.LogRecord) -> None:
        self._print(record.getMessage(), always=record.levelno >= logging.WARNING)

    def _print(self, text: str, always: bool = False) -> None:
        if always or not self.silent:
            self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int, note: str = "") -> None:
        if self._bars_shown:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, note="")
            self._bars.update(self._tasks[what], completed=done, note=note)
        elif done == total or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._print(f"{what}: {done} of {total}{', ' + note if note else ''}")
