"""A head's name: written in one way, read back as it was meant."""

import pytest

from copyscope.interp.head_names import head_name, parse_heads
from copyscope.training.errors import InputError


def test_names_are_read_back() -> None:
    assert parse_heads("L2H1, l3,L0h12") == [(2, 1), (3, "attention"), (0, 12)]
    assert parse_heads([(2, 1), (0, "mlp")]) == [(2, 1), (0, "mlp")]
    assert [head_name(layer, head) for layer, head in [(2, 1), (11, 0), (3, None)]] == ["L2H1", "L11H0", "L3"]


@pytest.mark.parametrize("text", ["2.1", "L", "H1", "L1H", "L1H2H3", "", ",", "L-1"])
def test_what_names_no_head_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_heads(text)
