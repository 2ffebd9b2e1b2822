"""An event's step in words: the same number and interval wherever it is printed."""

from collections.abc import Mapping
from typing import Any


def step_text(row: Mapping[str, Any]) -> str:
    """`1,373 (1,250–1,500)`: the estimate and its 95 % interval in steps, of a row of `formation_steps` or
    `copying_formation` that formed.

    Where there is no estimate, or its checkpoints begin at step 0, "by 250"; "may still move" where the series ends too
    early to fix it. Raises KeyError for a row of another table.
    """
    low, high, estimate = row["low"], row["high"], row["estimate"]
    moves = ", may still move" if row.get("provisional") else ""
    if estimate is None or row["bracket_low"] == 0:
        return f"by {row['bracket_high'] if high is None else round(high):,}" + (f" ({moves[2:]})" if moves else "")
    return f"{round(estimate):,} ({round(low):,}–{round(high):,}{moves})"
