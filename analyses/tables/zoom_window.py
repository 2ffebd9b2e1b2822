"""Where to zoom: the steps around what formed in a mapped run."""

import json
import re
from pathlib import Path
from typing import Any

from copyscope.training.errors import InputError

STAGES = {
    "previous-token": "previous-token head",
    "induction": "induction head",
    "copying": "copying (loss)",
}


def steps_around(run: str | Path, what: str) -> tuple[int, int]:
    """First and last step of the bracket in which something formed, from the run's results/formation.json.

    `what`: `formation` (from the first stage to the last), `previous-token`, `induction`, `copying`, or a head such as
    `L2H1` (by the measure in which it formed first). Raises InputError if it is not one of these, did not form, or
    the run was not mapped.
    """
    path = Path(run) / "results" / "formation.json"
    try:
        formation = json.loads(path.read_text("utf-8"))
        head = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", what)
        if head:
            rows = [row for rows in formation["heads"].values() for row in rows]
            events = [row for row in rows if (row["layer"], row["head"]) == (int(head[1]), int(head[2]))]
            if not events:
                raise InputError(f"--around {what}: the run has no such head; layers and heads count from 0")
        elif what == "formation":
            events = formation["order"]
        elif what in STAGES:
            events = [row for row in formation["order"] if row["stage"] == STAGES[what]]
        else:
            raise InputError(f"--around {what}: give formation, {', '.join(STAGES)} or a head such as L2H1")
        return _bracket(events, what)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run `copyscope score {run}` and `copyscope map {run}` first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); run `copyscope map {run}` again") from None


def _bracket(rows: list[dict[str, Any]], what: str) -> tuple[int, int]:
    formed = [row for row in rows if row["step"] is not None]
    if not formed:
        raise InputError(f"--around {what}: did not form in this run; give --from and --to instead")
    if what != "formation":
        formed = [min(formed, key=lambda row: row["step"])]
    return min(row["bracket_low"] for row in formed), max(row["step"] for row in formed)
