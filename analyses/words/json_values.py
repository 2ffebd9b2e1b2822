"""Python, numpy and polars values as JSON can hold them: the one place that makes them so."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import polars as pl


def number(value: Any, digits: int | None = None) -> int | float | None:
    """A number, rounded to `digits` significant ones if given; None for NaN, infinities and None."""
    if value is None or isinstance(value, int | np.integer):
        return None if value is None else int(value)
    if not math.isfinite(value):
        return None
    return float(value) if digits is None else float(f"{value:.{digits}g}")


def plain(value: Any, digits: int | None = None) -> Any:
    """`value` as JSON can hold it, whatever it is nested in.

    Numbers as `number` leaves them; frames become lists of rows, named tuples and dataclasses objects, other sequences
    lists, anything else text.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.integer | np.floating):
        return number(value, digits)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, pl.DataFrame):
        return plain(value.to_dicts(), digits)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple | pl.Series | np.ndarray):
        return [plain(item, digits) for item in value]
    return str(value)


def table(title: str, frame: pl.DataFrame, tidy: pl.DataFrame | None = None) -> dict[str, Any]:
    """A frame as the page takes it: title, columns, rows; seven significant digits.

    `tidy`: the same rows for a file, a column a number, where `frame` has words and intervals for readers; five digits.
    """
    out = {"title": title, "columns": frame.columns, "rows": [plain(list(row), 7) for row in frame.iter_rows()]}
    if tidy is not None:
        out["tidy"] = {"columns": tidy.columns, "rows": [plain(list(row), 5) for row in tidy.iter_rows()]}
    return out
