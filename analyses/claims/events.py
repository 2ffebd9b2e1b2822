"""When other things than copying and its heads formed in a run: tasks, attention sinks, function-vector heads."""

from contextlib import suppress

import polars as pl

from copyscope.analyses.formation.copying import accuracy_rise
from copyscope.analyses.formation.heads import first_formed
from copyscope.analyses.formation.roles import role_steps
from copyscope.analyses.formation.sinks import sink_fraction
from copyscope.analyses.formation.step_rule import middle
from copyscope.analyses.formation.tasks import task_formation
from copyscope.training.errors import InputError

TOKEN_COPYING, WHOLE_COPYING = "token copying", "whole-entity copying"
SINKS, FUNCTION_VECTOR = "attention sinks", "function-vector head"
VECTOR_MEASURE = "function_vector"

Step = tuple[float, float, float]
"""A formation step with its 95 % interval."""


def events_of(heads: pl.DataFrame, tasks: pl.DataFrame | None) -> dict[str, Step | None]:
    """Formation step of each event that the tables of a run can show; None where it has not formed, or not after the
    first checkpoint.

    `TOKEN_COPYING`: the last token of random strings (task `identifiers`). `WHOLE_COPYING`: from one name to the next,
    or from one string to the next where the tokenizer makes no names; both by choice accuracy. `SINKS`: the sink
    fraction by the rule of copying accuracy. `FUNCTION_VECTOR`: the first head with a score of at least half the best;
    the score has no upper limit, so its highest value stands for the top of its range, and without a head above the
    null at the last step nothing has formed. `tasks`: None where they were not asked.
    """
    events: dict[str, Step | None] = {}
    with suppress(InputError):  # scored without the first token's attention, or at too few steps
        events[SINKS] = _sinks(heads)
    if (heads["measure"] == VECTOR_MEASURE).any():
        with suppress(InputError):
            events[FUNCTION_VECTOR] = _first_vector(heads)
    names = None if tasks is None else tasks.filter(pl.col("task") == "identifiers")
    if names is not None and not names.is_empty():
        with suppress(InputError):
            formed = task_formation(names).rows_by_key("variant", named=True, unique=True)
            events[TOKEN_COPYING] = _step(formed["strings token"])
            events[WHOLE_COPYING] = _step(formed.get("names whole", formed["strings whole"]))
    return events


def _step(row: dict[str, object]) -> Step | None:
    step = middle(row)
    return None if step is None else (step, row["low"], row["high"])  # type: ignore[return-value]


def _sinks(heads: pl.DataFrame) -> Step | None:
    counted = sink_fraction(heads).with_columns(measure=pl.lit("sink_fraction"))
    return _step(accuracy_rise(counted, "heads", "sink_fraction", 0.0, counted["heads"][0]))


def _first_vector(heads: pl.DataFrame) -> Step | None:
    first = first_formed(role_steps(heads, VECTOR_MEASURE))
    return None if first is None else _step(first)
