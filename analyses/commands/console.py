"""Progress on the terminal: bars where there is one, plain lines where there is not."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich import console as rich_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from copyscope.analyses.words.text import visible

SECONDS_BETWEEN_LINES = 15.0


class Console:
    """What long work reports to. Writes to standard error, so that standard output holds results only.

    Bars need a terminal that can redraw a line; else there are plain lines, now and then, without control characters,
    so that a log file can be read. `silent`: nothing at all.
    """

    def __init__(self, steps: int = 0, silent: bool = False):
        self.steps = steps
        self.silent = silent
        self._bars_shown = not silent and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # rich believes FORCE_COLOR and the like more than the stream; a log file must stay plain all the same.
        self._console = rich_console.Console(stderr=True, force_terminal=self._bars_shown)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=self._console,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}
        self._last = 0.0

    def __enter__(self) -> "Console":
        if self._bars_shown:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars_shown:
            self._bars.stop()

    def say(self, text: str) -> None:
        if not self.silent:
            self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        notes = []
        if "loss" in line:
            notes = [f"loss {line['loss']:.3f}", f"{line['tokens_per_second']:,.0f} tokens/s"]
        elif "validation_loss" in line:
            notes = [f"validation loss {line['validation_loss']:.3f}"]
        self.advance("training", line["step"], self.steps, ", ".join(notes))

    def advance(self, what: str, done: int, total: int, note: str = "") -> None:
        if self._bars_shown:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, note="")
            self._bars.update(self._tasks[what], completed=done, note=note)
        elif done == total or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.say(f"{what}: {done} of {total}{', ' + note if note else ''}")
