"""Results of in-context tasks in words, one line a variant."""

from typing import Any

import polars as pl

from copyscope.analyses.formation.step_text import step_text

CONTROL_WORDS = {
    "layer": "other heads of their layers",
    "entropy": "heads of like attention entropy",
    "random": "random heads",
}
"""The kinds of `interp.ablation.task_effects.control_sets`."""


def task_lines(table: pl.DataFrame, formed: pl.DataFrame | None) -> list[str]:
    """Of a table that `tasks` returns: accuracies at the last step of each variant beside control and chance,
    rank and gain of the right token, and when choice accuracy formed (rows of `task_formation`; None: not asked)."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    when = {} if formed is None else formed.rows_by_key(["task", "variant"], named=True)
    lines = []
    for (task, variant), part in last.group_by("task", "variant", maintain_order=True):
        value = dict(part.select("measure", "value").iter_rows())
        uniform = f", uniform {value['chance_uniform']:.2f}" if value["chance_uniform"] < value["chance"] else ""
        parts = [
            f"accuracy {_with_error(value, 'accuracy', 2)} (control {value['control']:.2f})",
            f"choice accuracy {_with_error(value, 'choice_accuracy', 2)} (control {value['control_choice']:.2f}, "
            f"chance {value['chance']:.2f}{uniform})",
            f"rank {value['mean_rank']:,.1f}",
            f"{value['gain']:+.1f} nats over no context",
        ]
        parts += [
            f"{_with_error(value, name, 2)} nats from the {name.removeprefix('kl_')} rule"
            for name in ("kl_bigram", "kl_unigram")
            if name in value
        ]
        for row in when.get((task, variant), ()):
            parts.append(("over uniform: " if row["over"] == "uniform" else "") + _formed(row, value))
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
        if row["baseline"] > row["chance"] + 4 * value["choice_accuracy_se"]
        else "not formed"
    )


def grade_lines(table: pl.DataFrame) -> list[str]:
    """Of a table of `task_heads`: what the induction heads are to each variant at the last step."""
    last = table.filter(pl.col("step") == pl.col("step").max())
    lines = [f"Induction heads removed (mean over prompts) at step {last['step'][0]:,}: {last['heads'][0]}."]
    for row in last.iter_rows(named=True):
        text = f"{row['task']} {row['variant']}: {row['grade']}; choice accuracy {row['clean']:.2f}"
        text += f" (chance {row['chance']:.2f}), without them {row['without']:.2f}"
        text += f", without {CONTROL_WORDS[row['control']]} {row['control_without']:.2f}"
        text += f"; they cost {row['excess']:+.2f} more ({row['excess_low']:+.2f} to {row['excess_high']:+.2f})"
        lines.append(text)
    return lines
