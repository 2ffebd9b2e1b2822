"""The share of heads that rest on the first token, on planted scores."""

import numpy as np
import pytest
from synthetic_run import series_table

from copyscope.analyses.formation.sinks import sink_fraction
from copyscope.training.errors import InputError


def test_heads_above_the_level_are_counted_at_each_step() -> None:
    curves = {(0, 0): [0.1, 0.9], (0, 1): [0.1, 0.31], (1, 0): [0.1, 0.3], (1, 1): [0.4, 0.0]}
    table = series_table({head: np.array(curve) for head, curve in curves.items()}, [0, 100], "bos_sink")
    found = sink_fraction(table)
    assert found.select("step", "sinks", "heads", "value").rows() == [(0, 1, 4, 0.25), (100, 2, 4, 0.5)]
    assert sink_fraction(table, 0.0)["sinks"].to_list() == [4, 3]


def test_without_the_measure_or_with_no_share() -> None:
    table = series_table({(0, 0): np.array([0.1])}, [0], "previous_token")
    with pytest.raises(InputError, match="no bos_sink"):
        sink_fraction(table)
    with pytest.raises(InputError, match="level=3"):
        sink_fraction(table, 3.0)
