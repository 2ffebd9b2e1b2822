"""An event's step in words: the same number and interval wherever it is printed."""

from collections.abc import Mapping
from typing import Any


def step_number(row: Mapping[str, Any]) -> int:
    """The number that `step_text` gives an event, for marks and labels: the estimate, or without one the end of its
    interval ("by 250"). Of a row that formed; raises KeyError for a row of another table."""
    if _only_by(row):
        return round(row["bracket_high"] if row["high"] is None else row["high"])
    return round(row["estimate"])


def _only_by(row: Mapping[str, Any]) -> bool:
    """Whether nothing but an end of the interval is known."""
    return row["estimate"] is None or row["bracket_low"] == 0 or bool(row.get("began_earlier"))


def step_text(row: Mapping[str, Any]) -> str:
    """`1,373 (1,250–1,500)`: the estimate and its 95 % interval in steps, of a row of `formation_steps` or
    `copying_formation` that formed.

    Where there is no estimate, or its checkpoints begin at step 0, "by 250". In the brackets also: that the rise was
    under way at the first checkpoint, the steps of its two stages, that it may still move where the series ends too
    early to fix it. Raises KeyError for a row of another table.
    """
    notes = []
    if row.get("began_earlier"):
        notes.append("under way at the first checkpoint")
    if row.get("stages") == 2:
        notes.append(f"in two stages, {round(row['first_stage']):,} and {round(row['second_stage']):,}")
    if row.get("provisional"):
        notes.append("may still move")
    if _only_by(row):
        return f"by {step_number(row):,}" + (f" ({', '.join(notes)})" if notes else "")
    interval = f"{round(row['low']):,}–{round(row['high']):,}"
    return f"{step_number(row):,} ({', '.join([interval, *notes])})"
