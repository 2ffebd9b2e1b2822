"""A head's name, written L3H1: the one place that writes it and the one that reads it. Needs no torch."""

import re
from collections.abc import Sequence

from copyscope.training.errors import InputError

_NAME = re.compile(r"[Ll](\d{1,6})\s*(?:[Hh](\d{1,6}))?")


def head_name(layer: int, head: int | None) -> str:
    """`L3H1` for head 1 of layer 3; `L3` for the whole layer (head None)."""
    return f"L{layer}" if head is None else f"L{layer}H{head}"


def parse_heads(heads: str | Sequence[tuple[int, int | str]]) -> list[tuple[int, int | str]]:
    """Heads as (layer, head), from `"L3H1,L2"` or from pairs, which are returned as they are.

    `L2` alone is all heads of layer 2: (2, "attention"). Raises InputError for text that names none.
    """
    if not isinstance(heads, str):
        return list(heads)
    pairs: list[tuple[int, int | str]] = []
    for name in filter(None, (part.strip() for part in heads.split(","))):
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(f"{name!r} is not a head; write L2H1, or L2 for all heads of layer 2, separated by commas")
        pairs.append((int(match[1]), "attention" if match[2] is None else int(match[2])))
    if not pairs:
        raise InputError("no head named; name at least one, as in L2H1,L3")
    return pairs
