"""Python and polars values as JSON can hold them."""

import math
from typing import Any

import numpy as np
import polars as pl


def number(value: Any, digits: int = 7) -> int | float | None:
    """A number rounded to `digits` that count; None for NaN, infinities and None."""
    if value is None or isinstance(value, int | np.integer):
        return None if value is None else int(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """`value` with numbers as `number` leaves them, whatever it is nested in; other objects as text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.integer | np.floating):
        return number(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)


def table(title: str, frame: pl.DataFrame) -> dict[str, Any]:
    """A frame as the page takes it: title, columns, rows."""
    return {"title": title, "columns": frame.columns, "rows": [plain(list(row)) for row in frame.iter_rows()]}
