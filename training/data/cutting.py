"""Long documents to pieces."""

from collections.abc import Iterable, Iterator

MIN_CHARS = 200
"""Shorter documents (empty `__init__.py` files, mostly) hold nothing to learn from."""
MAX_CHARS = 200_000
"""Longer documents are cut into pieces that each count as one, so that one book or table does not fill the corpus."""


def cut(chunks: Iterable[str], limit: int) -> Iterator[str]:
    """The text that the chunks make up, in pieces of at most `limit` characters, nothing dropped; cut after a line
    break where the last quarter of a piece has one. No piece is shorter than `MIN_CHARS` if the text is not, and
    `limit` is at least four times that."""
    text, start = "", 0
    for chunk in chunks:
        text, start = text[start:] + chunk, 0
        while len(text) - start >= limit + MIN_CHARS:
            end = _line_end(text, start, limit)
            yield text[start:end]
            start = end
    while len(text) - start > limit:  # by less than MIN_CHARS
        end = _line_end(text, start, max(1, limit * 3 // 4))
        yield text[start:end]
        start = end
    yield text[start:]


def _line_end(text: str, start: int, limit: int) -> int:
    return text.rfind("\n", start + limit * 3 // 4, start + limit) + 1 or start + limit
