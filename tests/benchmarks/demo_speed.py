"""`copyscope demo` once: the seconds of its stages, and the memory it needed at most.

Prints wall-clock and CPU seconds a stage. On a machine that does other work too, only CPU seconds mean something.
`python demo_speed.py [--out FOLDER] [SECTION.FIELD=VALUE …]` keeps the run, and sets fields of the preset
`quickstart`.
"""

import argparse
import functools
import importlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contenders import peak_megabytes

from copyscope.training.config import RunConfig, parse_assignments

STAGES = {
    "read text, tokenizer, tokens": ("copyscope.training.trainer", "store_of"),
    "train (without the others)": ("copyscope.analyses.studies.demo", "train"),
    "score checkpoints": ("copyscope.analyses.tables.scores", "Scorer.measure"),
    "ablate": ("copyscope.analyses.studies.demo", "ablate"),
    "average weights": ("copyscope.analyses.studies.demo", "average"),
    "map": ("copyscope.analyses.studies.demo", "map_formation"),
    "report": ("copyscope.analyses.studies.demo", "report"),
    "summary": ("copyscope.analyses.studies.demo", "summary_lines"),
}
"""Stage → the function that is timed. One that runs inside another counts for itself alone."""


class Stopwatch:
    """Wall-clock and CPU seconds by stage; the innermost stage is the one that counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._stages = ["start and import"]
        self._last = (time.perf_counter(), time.process_time())
        self.seconds[self._stages[0]][1] += time.process_time()

    def _count(self) -> None:
        now = (time.perf_counter(), time.process_time())
        for i in range(2):
            self.seconds[self._stages[-1]][i] += now[i] - self._last[i]
        self._last = now

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            self._count()
            self._stages.append(stage)
            try:
                return function(*arguments, **more)
            finally:
                self._count()
                self._stages.pop()

        return timed

    def stop(self) -> None:
        self._count()


def main() -> None:
    watch = Stopwatch()
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("values", nargs="*")
    given = arguments.parse_args()
    config = RunConfig.load("quickstart").with_values(parse_assignments(given.values))
    demo_module = importlib.import_module("copyscope.analyses.studies.demo")
    for stage, (module, name) in STAGES.items():
        *classes, function = name.split(".")
        holder = functools.reduce(getattr, classes, importlib.import_module(module))
        setattr(holder, function, watch.around(stage, getattr(holder, function)))
    with tempfile.TemporaryDirectory() as folder:
        result = demo_module.demo(given.out or Path(folder) / "demo", config)
        watch.stop()
        print("\n".join(result.summary))
    print(f"\n{'copyscope demo':32} {'seconds':>8} {'CPU s':>8}")
    for stage, (wall, cpu) in watch.seconds.items():
        print(f"{stage:32} {wall:8.1f} {cpu:8.1f}")
    total = [sum(values[i] for values in watch.seconds.values()) for i in range(2)]
    print(f"{'all':32} {total[0]:8.1f} {total[1]:8.1f}; {peak_megabytes():,.0f} MB at most")


if __name__ == "__main__":
    main()
