"""What every analysis of a long table asks first: is it one run, complete, without doubles, long enough?"""

import difflib
import logging
from collections.abc import Sequence

import polars as pl

from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)


def measure_rows(table: pl.DataFrame, name: str, measure: str, keys: tuple[str, ...]) -> pl.DataFrame:
    """The rows of one measure, checked and sorted; `name` is the table's name in messages.

    A head that lacks a step which other heads have is a warning: what is computed uses its other steps.
    """
    missing = [column for column in (*keys, "step", "tokens", "measure", "value") if column not in table.columns]
    if missing:
        raise InputError(f"{name} table: column {missing[0]!r} is missing; score the series again")
    if "run" in table.columns and table["run"].n_unique() > 1:
        runs = ", ".join(map(repr, table["run"].unique().sort().to_list()[:5]))
        raise InputError(f"{name} table: holds several runs ({runs}); filter it to one run")
    rows = table.filter(pl.col("measure") == measure)
    if rows.is_empty():
        known = table["measure"].unique().sort().to_list()
        close = difflib.get_close_matches(measure, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known) or 'no rows'}"
        raise InputError(f"{name} table: no measure {measure!r}; {hint}")
    bad = rows.filter(pl.col("value").is_null() | ~pl.col("value").is_finite())
    if not bad.is_empty():
        row = bad.row(0, named=True)
        where = "".join(f", {key} {row[key]}" for key in keys)
        raise InputError(f"{name} table: {measure} is not a number at step {row['step']}{where}; score that step again")
    if rows["step"].min() < 0:  # type: ignore[operator]
        raise InputError(f"{name} table: step {rows['step'].min()} is negative; steps count updates from 0")
    double = rows.filter(pl.struct(*keys, "step").is_duplicated())
    if not double.is_empty():
        row = double.row(0, named=True)
        where = "".join(f", {key} {row[key]}" for key in keys)
        raise InputError(f"{name} table: {measure} has step {row['step']}{where} twice; keep one row a step")
    steps = rows.group_by("step").agg(pl.col("tokens").max()).sort("step")
    back = steps.filter(pl.col("tokens").diff() < 0)
    if not back.is_empty():
        step = back["step"][0]
        raise InputError(f"{name} table: tokens fall at step {step}; the steps are out of order, verify the series")
    if keys:
        _warn_of_gaps(rows, name, measure, keys)
    return rows.sort(*keys, "step")


def _warn_of_gaps(rows: pl.DataFrame, name: str, measure: str, keys: tuple[str, ...]) -> None:
    wanted = rows.select(keys).unique().join(rows.select("step").unique(), how="cross")
    gaps = wanted.join(rows, on=[*keys, "step"], how="anti").sort("step", *keys)
    if not gaps.is_empty():
        row = gaps.row(0, named=True)
        where = "".join(f", {key} {row[key]}" for key in keys)
        more = f" and {len(gaps) - 1} more" * (len(gaps) > 1)
        logger.warning(
            f"{name} table: {measure} is missing at step {row['step']}{where}{more}; other steps are used: score the "
            "step again"
        )


def has_errors(table: pl.DataFrame, measure: str) -> bool:
    """Whether the table has standard errors of the measure; those of a single prompt are not a number, and none."""
    errors = table.filter(pl.col("measure") == f"{measure}_se")["value"]
    return len(errors) > 0 and bool(errors.is_finite().all())


def enough(steps: Sequence[int], name: str, measure: str, confirm: int) -> None:
    """InputError unless there are at least `confirm` + 1 checkpoints: a start and a level held."""
    if len(steps) < confirm + 1:
        raise InputError(
            f"{name} table: {measure} has {len(steps)} checkpoint{'s' * (len(steps) != 1)}; "
            f"a formation step needs at least {confirm + 1}: score more checkpoints"
        )


def check_rule(confirm: int, z: float, least: float) -> None:
    """InputError unless the rule's numbers make sense."""
    if confirm < 1 or z < 0 or not 0 <= least < 1:
        raise InputError(f"confirm={confirm}, z={z}, least={least}: use confirm >= 1, z >= 0, 0 <= least < 1")
