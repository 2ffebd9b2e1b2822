"""What a page holds, before and after it is put together."""

from typing import Any, NamedTuple


class Entry(NamedTuple):
    """One run."""

    fields: dict[str, Any]
    """The run in the index."""
    blocks: dict[str, bytes]
    notes: list[str]
    """What could not be said, and why."""
    band: tuple[float, float] | None
    """Steps between which heads and copying formed."""


class Payload(NamedTuple):
    """All runs of a page."""

    index: dict[str, Any]
    blocks: dict[str, bytes]
    entries: list[Entry]
