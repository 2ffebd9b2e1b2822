"""Any plain or packed file of text gives the same documents; what cannot be read is named."""

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from training.corpora import MAX_CHARS, cut, fingerprint, read_corpus
from training.errors import InputError

TEXTS = [f"document number {n} tells its own story, {n * n} words long. " * 8 for n in range(12)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"source": "x", "text": text}) + "\n" for text in texts).encode()


def parquet(texts: list[str], path: Path) -> bytes:
    pl.DataFrame({"text": texts}).write_parquet(path)
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
    documents = read_corpus(str(folder), 100.0)
    assert sorted(document.text for document in documents) == sorted(TEXTS)
    (tmp_path / "plain.jsonl").write_bytes(jsonl(TEXTS[::-1] + TEXTS))  # another order, and twice
    assert fingerprint(read_corpus(str(tmp_path / "plain.jsonl"), 100.0)) == fingerprint(documents)


def test_the_budget_keeps_the_same_part_whatever_the_order(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS))
    (tmp_path / "b.jsonl").write_bytes(jsonl(TEXTS[::-1]))
    parts = [read_corpus(str(tmp_path / name), 0.002) for name in ("a.jsonl", "b.jsonl")]
    assert parts[0] == parts[1]
    assert 0 < len(parts[0]) < len(TEXTS)


def test_lone_surrogates_and_wrong_bytes_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "\ud800 lone " * 100}))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe broken " * 100)
    assert len(read_corpus(str(tmp_path), 100.0)) == 2


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"no": 1}\n', "line 2"),
        ("a.jsonl", b"not json\n", "line 1"),
        ("a.jsonl.gz", b"not gzip at all", "a.jsonl.gz"),
        ("a.jsonl.xz", b"\xfd7zXZ\x00 cut off", "a.jsonl.xz"),
        ("a.txt.zst", b"not zstd", "a.txt.zst"),
        ("a.parquet", b"PAR1 no", "a.parquet"),
        ("a.txt", b"short", "no document"),
        ("a.bin", b"x" * 500, "no .txt, .jsonl or .parquet"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_corpus(str(tmp_path), 100.0)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_embedded_corpus_is_there() -> None:
    documents = read_corpus("python", 0.2)
    assert sum(len(document.text) for document in documents) > 100_000


def test_a_zst_of_several_frames_is_read_whole_and_a_cut_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(jsonl(TEXTS[:5])) + zstandard.compress(jsonl(TEXTS[5:])))
    assert len(read_corpus(str(path), 100.0)) == len(TEXTS)
    for missing in (1, 20):
        path.write_bytes(zstandard.compress(jsonl(TEXTS))[:-missing])
        with pytest.raises(InputError, match="cannot be read"):
            read_corpus(str(path), 100.0)


def test_a_gz_damaged_inside_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(jsonl(TEXTS)))
    data[12:40] = b"\xff" * 28
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read"):
        read_corpus(str(tmp_path), 100.0)


def test_the_budget_counts_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl([f"{n}" + "é" * 500 for n in range(10)]))  # 1,001 bytes each
    assert len(read_corpus(str(tmp_path), 0.003)) == 3


@given(st.text("ab\n", max_size=300), st.integers(1, 50))
def test_cutting_drops_nothing_and_keeps_to_the_limit(text: str, limit: int) -> None:
    pieces = list(cut(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)


def test_cuts_are_at_line_breaks() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    assert all(piece.endswith("\n") for piece in cut(text, 100))


def test_one_file_is_a_corpus_of_many_documents(tmp_path: Path) -> None:
    text = "".join(f"{number} squared is {number * number}.\n" for number in range(2000))
    (tmp_path / "one.txt").write_text(text)
    documents = read_corpus(str(tmp_path / "one.txt"), 100.0)
    assert 20 <= len(documents) <= 110
    assert sum(len(document.text) for document in documents) == len(text)


def test_long_documents_are_cut_and_short_ones_are_not(tmp_path: Path) -> None:
    texts = [f"{number} " * 300 for number in range(200)] + ["long line of a table\n" * 20_000]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    documents = {document.text for document in read_corpus(str(tmp_path / "many.jsonl"), 100.0)}
    assert set(texts[:-1]) <= documents
    assert max(map(len, documents)) <= MAX_CHARS
