"""Long texts are cut into pieces, at line breaks, with nothing lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.data.cutting import MIN_CHARS, cut


@given(st.text("ab\n", max_size=300), st.integers(1, 50), st.lists(st.integers(0, 300), max_size=4))
def test_cutting_drops_nothing_and_keeps_to_the_limit(text: str, limit: int, borders: list[int]) -> None:
    pieces = list(cut([text], limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)
    chunks = [text[a:b] for a, b in pairwise([0, *sorted(borders), 300])]
    assert list(cut(chunks, limit)) == pieces  # however it was read


@given(st.integers(800, 900), st.integers(0, 3000), st.integers(1, 400))
def test_no_piece_is_too_short_to_count(limit: int, length: int, line: int) -> None:
    text = ("x" * (line - 1) + "\n") * (1 + length // line)
    pieces = list(cut([text], limit))
    assert min(map(len, pieces)) >= min(MIN_CHARS, len(text))


def test_cuts_are_at_line_breaks() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    assert all(piece.endswith("\n") for piece in cut([text], 100))
