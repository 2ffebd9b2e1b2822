"""Any plain or packed file of text gives the same texts; what cannot be read is named."""

import gzip
import json
import lzma
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.data.corpora import MAX_CHARS, MIN_CHARS, cut, open_source
from copyscope.training.errors import InputError

TEXTS = [f"document number {n} tells its own story, {n * n} words long. " * 8 for n in range(12)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def texts(path: Path) -> list[str]:
    return list(open_source(str(path)).texts)


def jsonl(rows: list[str]) -> bytes:
    return "".join(json.dumps({"source": "x", "text": text}) + "\n" for text in rows).encode()


def parquet(rows: list[str], path: Path) -> bytes:
    pl.DataFrame({"text": rows}).write_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_documents(kind: str, packed: str, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    if kind == ".txt":
        parts = {f"{n}.txt": text.encode() for n, text in enumerate(TEXTS)}
    else:
        parts = {f"all{kind}": jsonl(TEXTS) if kind == ".jsonl" else parquet(TEXTS, tmp_path / "x")}
    for name, data in parts.items():
        (folder / (name + packed)).write_bytes(PACKERS[packed](data))
    assert sorted(texts(folder)) == sorted(TEXTS)


def test_lone_surrogates_and_wrong_bytes_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\ud800 lone " * 100}))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe broken " * 100)
    assert texts(tmp_path) == ["\ud800 lone " * 100, "\ufffd\ufffd broken " * 100]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"no": 1}\n', "line 2"),
        ("a.jsonl", b"not json\n", "line 1"),
        ("a.jsonl.gz", b"not gzip at all", "a.jsonl.gz"),
        ("a.jsonl.xz", b"\xfd7zXZ\x00 cut off", "a.jsonl.xz"),
        ("a.txt.zst", b"not zstd", "a.txt.zst"),
        ("a.parquet", b"PAR1 no", "a.parquet"),
        ("a.bin", b"x" * 500, "no .txt, .jsonl or .parquet"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        texts(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_embedded_corpus_is_there() -> None:
    assert sum(len(text) for text in islice(open_source("python").texts, 50)) > 100_000


def test_a_zst_of_several_frames_is_read_whole_and_a_cut_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(jsonl(TEXTS[:5])) + zstandard.compress(jsonl(TEXTS[5:])))
    assert texts(path) == TEXTS
    for missing in (1, 20):
        path.write_bytes(zstandard.compress(jsonl(TEXTS))[:-missing])
        with pytest.raises(InputError, match="cannot be read"):
            texts(path)


def test_a_gz_damaged_inside_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(jsonl(TEXTS)))
    data[12:40] = b"\xff" * 28
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read"):
        texts(tmp_path)


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


def test_a_long_text_file_comes_in_pieces_with_its_letters_whole(tmp_path: Path) -> None:
    text = "é" * (MAX_CHARS * 5 + 7)  # two bytes each, so that no piece of it in memory is a whole number of letters
    (tmp_path / "a.txt").write_text("x" + text)
    pieces = texts(tmp_path)
    assert "".join(pieces) == "x" + text
    assert 6 <= len(pieces) <= 8


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:5]))
    (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS[5:]))
    for stop in range(len(TEXTS) + 1):
        source = open_source(str(tmp_path))
        first = list(islice(source.texts, stop))
        position = json.loads(json.dumps(source.position()))
        assert first + list(open_source(str(tmp_path), position).texts) == TEXTS


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face data set in a local folder: the library streams it as it does one of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        table = pl.DataFrame({"text": TEXTS[4 * number : 4 * number + 4], "title": f"title {number}"})
        table.write_parquet(folder / f"{number}.parquet", row_group_size=3)
    return folder


def test_a_hugging_face_data_set_is_streamed_and_goes_on_where_it_stopped(data_set: Path) -> None:
    for stop in (0, 2, 3, 4, 9, 12):
        source = open_source(f"hf:{data_set}")
        first = list(islice(source.texts, stop))
        position = json.loads(json.dumps(source.position()))
        source.texts.close()
        assert first + list(open_source(f"hf:{data_set}", position).texts) == TEXTS
    assert source.endless


def test_subset_and_column_of_a_data_set_are_named_after_it(data_set: Path) -> None:
    assert set(open_source(f"hf:{data_set}:default:title").texts) == {"title 0", "title 1", "title 2"}
    assert set(open_source(f"hf:{data_set}::title").texts) == {"title 0", "title 1", "title 2"}
    with pytest.raises(InputError, match=r"no column 'body' in it; name one of text, title as hf:.*::<column>"):
        next(open_source(f"hf:{data_set}::body").texts)
    for wrong in (f"hf:{data_set}:other", f"hf:{data_set}x"):
        with pytest.raises(InputError, match="cannot be streamed") as caught:
            next(open_source(wrong).texts)
        assert "\n" not in str(caught.value)
