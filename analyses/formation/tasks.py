"""When the model learnt each in-context task."""

import polars as pl

from copyscope.analyses.formation.copying import COPYING_SCHEMA, accuracy_rise
from copyscope.analyses.formation.step_rule import CONFIRM, MIN_SHARE, Z
from copyscope.analyses.formation.table_checks import check_rule
from copyscope.training.errors import InputError

TASK_SCHEMA = {"task": pl.String, "variant": pl.String, "over": pl.String, "chance": pl.Float64, **COPYING_SCHEMA}


def task_formation(tasks: pl.DataFrame, confirm: int = CONFIRM, z: float = Z, least: float = MIN_SHARE) -> pl.DataFrame:
    """When `choice_accuracy` on each variant of each task began to rise and was half-way up: a row for each, in the
    table's order, over `chance`; where an even guess among the choices does worse than that, one over `uniform` too,
    since a better guess is learnt as well.

    `tasks`: long table (step, tokens, task, variant, measure, value) of one run, as `copyscope tasks` stores it. The
    rule is that of copying accuracy (`copying_formation`): a rise over the larger of the first value and the task's
    chance. Accuracy over all tokens is not dated: it also rises when a model learns which tokens are candidates, and
    falls when habits of the text win over them. status `not yet` is also that of a task that was there from the start;
    its baseline says which.

    Raises InputError as `copying_formation` does: for a table without tasks, of several runs, or with too few
    checkpoints.
    """
    check_rule(confirm, z, least)
    missing = [name for name in ("task", "variant", "step", "measure", "value") if name not in tasks.columns]
    if missing:
        raise InputError(f"tasks table: column {missing[0]!r} is missing; run `copyscope tasks` again")
    rows = []
    for (task, variant), part in tasks.group_by("task", "variant", maintain_order=True):
        last = dict(part.filter(pl.col("step") == pl.col("step").max()).select("measure", "value").iter_rows())
        prompts = int(last["prompts"])
        floors = {"chance": float(last["chance"]), "uniform": float(last.get("chance_uniform", last["chance"]))}
        for over, chance in floors.items():
            if over == "chance" or chance < floors["chance"]:
                row = accuracy_rise(part, f"{task} {variant}", "choice_accuracy", chance, prompts, confirm, z, least)
                rows.append({"task": task, "variant": variant, "over": over, "chance": chance, **row})
    return pl.DataFrame(rows, schema=TASK_SCHEMA)
