"""Which heads carry in-context tasks: the tasks without the induction heads, beside other heads, graded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.formation.nulls import strong
from copyscope.analyses.statistics.grades import Grade, grade
from copyscope.analyses.tables.as_trained import as_trained
from copyscope.analyses.tables.measured import measure_series
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, read_tables, selected_or_last
from copyscope.analyses.tables.tasks import TaskAsker
from copyscope.analyses.tables.workers import workers_of
from copyscope.interp.ablation.parts import Head
from copyscope.interp.ablation.task_effects import Without, control_sets, without_heads
from copyscope.interp.head_names import head_name
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.devices import Compute
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.tasks.questions import N_PROMPTS, TaskPrompts
from copyscope.training.checkpoints.series import Checkpoint, Source, step_folder
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

VERSION = 1
"""Raised when sets of heads or grades change, so that stored results are computed again."""
MAX_HEADS = 8
"""Induction heads that are removed together, the highest scores."""
MEASURE = "prefix_matching_sum"
"""By which heads are induction heads."""


def task_heads(
    source: Source,
    names: Iterable[str] | None = None,
    steps: Iterable[int] | None = None,
    progress: Progress | None = None,
    *,
    seeds: Sequence[int] | None = None,
    prompts: int = N_PROMPTS,
    cache_limit: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    max_bytes: int | None = None,
    engine: str | Engine | None = None,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """What the induction heads are to each task: run, step, tokens, task, variant, chance, heads, and the fields of
    `analyses.statistics.grades.Grade`, a row a variant.

    The strong heads of prefix matching (at most `MAX_HEADS`) are removed together: their outputs are replaced by their
    means over prompts. The same is done to the sets of `interp.ablation.task_effects.control_sets`. Accuracy is that
    among the candidates. `steps`: None for the last checkpoint; the rest is as for `tasks`. Tables are in
    results/tasks/heads. Raises InputError as `tasks` does, and for a model without induction heads.
    """
    workers, run = workers_of(engine, jobs, options, device), open_run(source)
    compute = Compute(device=device, dtype=dtype, max_bytes=max_bytes)
    names = None if names is None else list(names)
    chosen = selected_or_last(run, steps)
    grader = HeadGrader(names, seeds=seeds, prompts=prompts, cache_limit=cache_limit, compute=compute)
    measure_series(run, grader, chosen, progress, workers)
    return read_tables(run, "tasks/heads")


class HeadGrader(TaskAsker):
    """Grades the induction heads of the checkpoints of one series. Arguments as for `task_heads`."""

    doing = "removing heads from tasks"
    version = ("heads", VERSION)

    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        """Grades a checkpoint's heads and stores the table."""
        key = self._key(run, checkpoint)
        model, prompts = self.models.load(run, checkpoint)
        drawn = self._draw(prompts)
        with as_trained(model, run, checkpoint):
            scores = score_heads(
                model,
                [MEASURE, f"{MEASURE}_null", f"{MEASURE}_p", "attention_entropy"],
                prompts.seeds,
                vocab=prompts.vocab,
                bos_id=prompts.bos_id,
            )
            heads = [(int(layer), int(head)) for layer, head, _ in strong(scores, MEASURE).head(MAX_HEADS).rows()]
            if not heads:
                raise InputError(f"step {checkpoint.step:,} has no strong induction head; take a later step")
            entropy = scores.filter(pl.col("measure") == "attention_entropy")
            of_head = {(layer, head): value for layer, head, value in entropy.select("layer", "head", "value").rows()}
            groups = [group for groups in drawn.values() for group in groups]
            table = graded(model, groups, heads, control_sets(heads, of_head, prompts.seed), prompts.seed)
        self._store(run, checkpoint, table, key, prompts, drawn)

    def _path(self, run: Run, checkpoint: Checkpoint) -> Path:
        return run.folder / "results" / "tasks" / "heads" / f"{step_folder(checkpoint.step)}.parquet"


def graded(
    model: HookedModel,
    groups: Sequence[TaskPrompts],
    heads: Sequence[Head],
    controls: Mapping[str, Sequence[Sequence[Head]]],
    seed: int = 0,
) -> pl.DataFrame:
    """task, variant, chance, heads and the fields of `Grade`, a row for each variant of the tasks in `groups`."""
    kinds = [kind for kind, sets in controls.items() for _ in sets]
    sets = [heads, *(one for some in controls.values() for one in some)]
    named = ", ".join(head_name(*head) for head in sorted(heads))
    rows = []
    for result in without_heads(model, groups, sets, seed=seed):
        rows.append(
            {"task": result.task, "variant": result.variant, "chance": result.chance, "heads": named}
            | asdict(_grade(result, kinds))
        )
    return pl.DataFrame(rows)


def _grade(result: Without, kinds: Sequence[str]) -> Grade:
    """`kinds`: of each set but the first, which is the one that is graded."""
    ablated = result.ablated.numpy()
    controls = {kind: ablated[1:][np.array(kinds) == kind] for kind in dict.fromkeys(kinds)}
    return grade(result.clean.numpy(), ablated[0], controls, result.chance)
