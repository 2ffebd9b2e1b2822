"""Results of in-context tasks in words, one line a variant."""

from typing import Any

import polars as pl

from copyscope.analyses.formation.step_text import step_text
from copyscope.analyses.formation.tasks import ACCURACIES


def task_lines(table: pl.DataFrame, formed: pl.DataFrame | None) -> list[str]:
    """Of a table that `tasks` returns: accuracies at the last step of each variant beside control and chance,
    rank and gain of the right token, and when the accuracy formed (rows of `task_formation`; None: not asked)."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    when = (
        {}
        if formed is None
        else {(row["task"], row["variant"], row["measure"]): row for row in formed.iter_rows(named=True)}
    )
    lines = []
    for (task, variant), part in last.group_by("task", "variant", maintain_order=True):
        value = dict(part.select("measure", "value").iter_rows())
        parts = [
            f"accuracy {_with_error(value, 'accuracy', 2)} (control {value['control']:.2f})",
            f"choice accuracy {_with_error(value, 'choice_accuracy', 2)} (control {value['control_choice']:.2f}, "
            f"chance {value['chance']:.2f})",
            f"rank {value['mean_rank']:,.1f}",
            f"{value['gain']:+.1f} nats over no context",
        ]
        parts += [
            f"{_with_error(value, name, 2)} nats from the {name.removeprefix('kl_')} rule"
            for name in ("kl_bigram", "kl_unigram")
            if name in value
        ]
        for measure in ACCURACIES if when else ():
            parts.append(f"{measure.replace('_', ' ')} {_formed(when[str(task), str(variant), measure], value)}")
        lines.append(f"{task} {variant}: {'; '.join(parts)}")
    return lines


def _with_error(value: dict[str, float], name: str, digits: int) -> str:
    return f"{value[name]:.{digits}f} ± {value[f'{name}_se']:.{digits}f}"


def _formed(row: dict[str, Any], value: dict[str, float]) -> str:
    if row["formed"]:
        return f"formed {step_text(row)}" + (" and fell back" if row["fell_back"] else "")
    if row["onset"] is not None:
        return f"began at {row['onset']:,}"
    return (
        "above chance from the start"
        if row["baseline"] > row["chance"] + 4 * value[f"{row['measure']}_se"]
        else "not formed"
    )
