"""Values as JSON holds them: whatever they are nested in, and nothing that JSON has no word for."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from copyscope.analyses.words.json_values import number, plain, table


class Pair(NamedTuple):
    first: float
    second: Any


@dataclass(frozen=True)
class Fit:
    slope: float
    rows: pl.DataFrame


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (np.float32("inf"), None),
        (None, None),
        (True, True),
        (np.bool_(False), False),
        (np.int64(3), 3),
        (np.float64(0.1234567891), 0.1234567891),
        ("L3H1", "L3H1"),
        (Path("a") / "b", "a/b"),
        (Pair(1.5, (math.nan, 2)), {"first": 1.5, "second": [None, 2]}),
        (
            Fit(0.5, pl.DataFrame({"step": [1, 2], "value": [0.5, math.nan]})),
            {"slope": 0.5, "rows": [{"step": 1, "value": 0.5}, {"step": 2, "value": None}]},
        ),
        ({3: [np.array([1.0, -math.inf])]}, {"3": [[1.0, None]]}),
    ],
)
def test_values(value: object, expected: object) -> None:
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_numbers_are_rounded_only_if_asked() -> None:
    assert number(0.123456789) == 0.123456789
    assert number(0.123456789, 3) == 0.123
    assert number(123456789, 3) == 123456789  # whole numbers are steps and tokens, and stay
    assert plain({"value": [1234.5678]}, 2) == {"value": [1200.0]}
    assert table("heads", pl.DataFrame({"value": [1 / 3]}))["rows"] == [[0.3333333]]
