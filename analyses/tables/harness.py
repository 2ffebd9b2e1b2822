"""Benchmarks of EleutherAI's lm-evaluation-harness (`copyscope[lm-eval]`) at every checkpoint of a series."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from copyscope.analyses.tables.as_trained import as_trained
from copyscope.analyses.tables.loading import SeriesModels
from copyscope.analyses.tables.measured import measure_series
from copyscope.analyses.tables.measurer import Measurer, SeriesError
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, labelled, read_tables, selected
from copyscope.analyses.tables.stored import is_stored, store_table
from copyscope.interp.models.devices import Compute
from copyscope.interp.tasks.harness_model import harness_model
from copyscope.training.checkpoints.series import Checkpoint, Source, step_folder
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

VERSION = 1
"""Raised when the model is asked otherwise, so that stored results are computed again."""
KIND = "tasks/lm-eval"


def harness(
    source: Source,
    names: Iterable[str],
    steps: Iterable[int] | None = None,
    progress: Progress | None = None,
    *,
    cache_limit: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    max_bytes: int | None = None,
) -> pl.DataFrame:
    """Runs tasks of lm-evaluation-harness at every checkpoint and returns run, step, tokens, task, variant (a filter of
    the task's, else empty), measure (as the harness names it; `_se` its standard error), value.

    `names`: of its tasks, or paths of task files (.yaml). Prompts, data sets and metrics are the harness'; it fetches
    data sets from the hub unless the task file names local ones, and runs the code that a task file refers to. The rest
    is as for `tasks`; tables are in results/tasks/lm-eval. Raises InputError as `tasks` does, and without the harness,
    for an unknown task or a series without a tokenizer.
    """
    run = open_run(source)
    compute = Compute(device=device, dtype=dtype, max_bytes=max_bytes)
    asker = HarnessAsker(list(names), cache_limit=cache_limit, compute=compute)
    measure_series(run, asker, selected(run, steps), progress)
    return read_tables(run, KIND)


class HarnessAsker(Measurer):
    """Runs the harness on the checkpoints of one series. Arguments as for `harness`."""

    command, doing = "tasks", "running lm-eval"
    version: ClassVar[tuple[str, int]] = ("lm-eval", VERSION)

    def __init__(
        self, names: Iterable[str], *, cache_limit: float | None = None, compute: Compute | None = None
    ) -> None:
        if find_spec("lm_eval") is None:
            raise InputError("--lm-eval: needs lm-evaluation-harness; pip install 'copyscope[lm-eval]'")
        self._names = list(dict.fromkeys(names))
        self._files = {name: Path(name) for name in self._names if name.endswith((".yaml", ".yml"))}
        for path in self._files.values():
            if not path.is_file():
                raise InputError(f"--lm-eval {path}: no such file; give a task's name or its .yaml file")
        self.models = SeriesModels(cache_limit=cache_limit, compute=compute)
        self._manager: Any = None

    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether the table of this checkpoint is on disk already."""
        path = self._path(run, checkpoint)
        return path.is_file() and is_stored(path, self._key(run, checkpoint))

    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        """Runs the tasks on a checkpoint and stores their table."""
        from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

        key = self._key(run, checkpoint)
        tasks, manager = self._tasks()
        model, prompts = self.models.load(run, checkpoint)
        if prompts.tokenizer is None:
            raise SeriesError("--lm-eval: needs a tokenizer, and this series has none; give --tokenizer")
        with as_trained(model, run, checkpoint):
            asked = harness_model(model, prompts.tokenizer, prompts.bos_id)
            found = simple_evaluate(
                asked, tasks=tasks, task_manager=manager, log_samples=False, bootstrap_iters=0, random_seed=prompts.seed
            )
        table = harness_table(found["results"] if found else {})
        facts = {"version": VERSION, "tasks": self._names, "lm_eval": metadata.version("lm_eval")}
        store_table(
            labelled(table, run, checkpoint), self._path(run, checkpoint), key, facts | self.models.compute.facts
        )
        self.models.done_with(checkpoint)

    def _tasks(self) -> tuple[list[str], Any]:
        """Names as the harness knows them, and what finds them; made once."""
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

        if self._manager is None:
            folders = sorted({str(path.parent) for path in self._files.values()})
            builtin = len(self._files) < len(self._names)
            self._manager = TaskManager(include_path=folders or None, include_defaults=builtin)
        names = [_task_of(self._files[name]) if name in self._files else name for name in self._names]
        unknown = [name for name in names if name not in self._manager.all_tasks]
        if unknown:
            raise SeriesError(
                f"--lm-eval {unknown[0]}: lm-evaluation-harness has no such task; `lm_eval ls tasks` lists all"
            )
        return names, self._manager

    def _key(self, run: Run, checkpoint: Checkpoint) -> str:
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files.values()]
        return self.models.result_key(run, checkpoint, *self.version, metadata.version("lm_eval"), self._names, files)

    def _path(self, run: Run, checkpoint: Checkpoint) -> Path:
        return run.folder / "results" / KIND / f"{step_folder(checkpoint.step)}.parquet"


def _task_of(path: Path) -> str:
    """The name that a task file gives its task."""
    named = re.search(r"^task:\s*['\"]?([^'\"\s#]+)", path.read_text("utf-8"), re.MULTILINE)
    if named is None:
        raise SeriesError(f"--lm-eval {path}: names no task; give it a line such as task: my_task")
    return named[1]


def harness_table(results: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """task, variant, measure, value of `{task: {"acc,none": 0.5, "acc_stderr,none": 0.1}}`, as the harness has it."""
    rows: Sequence[tuple[str, str, str, float]] = [
        (task, "" if name == "none" else name, measure.replace("_stderr", "_se"), float(value))
        for task, of_task in results.items()
        for key, value in of_task.items()
        for measure, comma, name in [key.partition(",")]
        if comma and isinstance(value, int | float)
    ]
    schema = {"task": pl.String, "variant": pl.String, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def harness_lines(table: pl.DataFrame) -> list[str]:
    """Each measure of each task at the last step, with its standard error where there is one."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    lines = []
    for (task, variant), part in last.group_by("task", "variant", maintain_order=True):
        value = dict(part.select("measure", "value").iter_rows())
        said = [
            f"{name} {one:.3f}" + (f" ± {value[f'{name}_se']:.3f}" if f"{name}_se" in value else "")
            for name, one in value.items()
            if not name.endswith("_se")
        ]
        lines.append(f"{task}{f' {variant}' if variant else ''}: {', '.join(said)}")
    return lines
