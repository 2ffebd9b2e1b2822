"""An event's step in words: the same number and interval wherever it is printed."""

from collections.abc import Mapping
from typing import Any


def step_text(row: Mapping[str, Any]) -> str:
    """`1,373 (1,250–1,500)`: the estimate and its 95 % interval in steps, of a row of `formation_steps` or
    `copying_formation` that formed.

    Where there is no estimate, or its checkpoints begin at step 0, "by 250". In the brackets also: that the rise was
    under way at the first checkpoint, the steps of its two stages, that it may still move where the series ends too
    early to fix it. Raises KeyError for a row of another table.
    """
    low, high, estimate = row["low"], row["high"], row["estimate"]
    notes = []
    if row.get("began_earlier"):
        notes.append("under way at the first checkpoint")
    if row.get("stages") == 2:
        notes.append(f"in two stages, {round(row['first_stage']):,} and {round(row['second_stage']):,}")
    if row.get("provisional"):
        notes.append("may still move")
    if estimate is None or row["bracket_low"] == 0 or row.get("began_earlier"):
        return f"by {row['bracket_high'] if high is None else round(high):,}" + (
            f" ({', '.join(notes)})" if notes else ""
        )
    return f"{round(estimate):,} ({', '.join([f'{round(low):,}–{round(high):,}', *notes])})"
