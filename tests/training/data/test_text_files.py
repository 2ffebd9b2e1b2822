"""A file of text is read as what it is, whatever its encoding, packing and layout, or refused by name."""

import codecs
import gzip
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from copyscope.training.data.cutting import MAX_CHARS
from copyscope.training.data.text_files import Reading, decoded, file_texts, kind_of
from copyscope.training.errors import InputError

PROSE = "Née in Zürich, she said “the café is déjà vu” – naïve, over-priced… and left for São Paulo.\n" * 40
ROWS = [f"row {number}: " + PROSE[:200] for number in range(5)]
OBJECTS = [{"text": row, "id": number} for number, row in enumerate(ROWS)]


def read(path: Path, data: bytes, **reading: str) -> list[str]:
    path.write_bytes(data)
    return list(file_texts(path, Reading(**reading)))  # type: ignore[arg-type]


def refusal(path: Path, data: bytes, **reading: str) -> str:
    with pytest.raises(InputError) as caught:
        read(path, data, **reading)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(encoding: str, tmp_path: Path) -> None:
    text = MARKED[encoding] + PROSE.encode(encoding)
    assert read(tmp_path / "a.txt", text) == [PROSE]
    assert read(tmp_path / "a.txt", text, encoding="cp1252") == [PROSE]
    assert read(tmp_path / "a.txt.gz", gzip.compress(text)) == [PROSE]
    assert read(tmp_path / "a.txt", text * 2) == [PROSE * 2]  # files put together
    rows = MARKED[encoding] + json_lines(OBJECTS).encode(encoding)
    assert read(tmp_path / "a.jsonl", rows * 2) == ROWS * 2


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be", "utf-32-le", "mac-roman"])
def test_without_a_mark_another_encoding_is_refused_and_read_when_named(encoding: str, tmp_path: Path) -> None:
    for name, text, content in (("a.txt", PROSE, [PROSE]), ("a.jsonl", json_lines(OBJECTS), ROWS)):
        assert "encoding" in refusal(tmp_path / name, text.encode(encoding))
        assert read(tmp_path / name, text.encode(encoding), encoding=encoding) == content


def test_ascii_in_utf_16_is_refused_although_its_bytes_are_utf_8(tmp_path: Path) -> None:
    refusal(tmp_path / "a.txt", b"plain words " * 50 + "plain words".encode("utf-16-le"))


def test_the_byte_that_is_wrong_is_named_wherever_pieces_end(tmp_path: Path) -> None:
    for before in (3, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):  # a piece is 1 << 20 bytes
        assert f"0xff at {before + 2:,};" in refusal(tmp_path / "a.txt", b"x" * before + "é".encode() + b"\xff" + b"y")
    assert "0xc3" in refusal(tmp_path / "a.txt", b"cut off in a letter \xc3")


@given(st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    for encoding in ("utf-8", "utf-16-le", "utf-32-be"):
        assert "".join(decoded(Path("a.txt"), BytesIO(text.encode(encoding)), encoding)) == text


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".JSON"])
@pytest.mark.parametrize("layout", [json_lines, json.dumps, lambda rows: json.dumps(rows, indent=2)])
def test_objects_a_line_or_in_an_array(layout: Callable[[Any], str], ending: str, tmp_path: Path) -> None:
    for rows in (OBJECTS, ROWS, [*OBJECTS, {"text": None}, None][:6]):  # bare strings too; null is no text
        assert read(tmp_path / f"a{ending}", ("\n" + layout(rows)).encode()) == ROWS


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", json.dumps(OBJECTS[0], indent=1).encode()) == ROWS[:1]
    assert read(tmp_path / "a.json", b" \n") == []


def test_the_field_can_be_named_and_the_fields_that_are_there_are_listed(tmp_path: Path) -> None:
    objects = [{"content": row, "path": "a.py"} for row in ROWS]
    pl.DataFrame(objects).write_parquet(tmp_path / "made")
    for name, data in (
        ("a.jsonl", json_lines(objects).encode()),
        ("a.json", json.dumps(objects).encode()),
        ("a.parquet", (tmp_path / "made").read_bytes()),
    ):
        assert "content, path" in refusal(tmp_path / name, data)
        assert "content, path" in refusal(tmp_path / name, data, field="body")
        assert read(tmp_path / name, data, field="content") == ROWS


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"no": 1}\n', "line 2"),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": "cut\n', "line 3"),
        ("a.json", b'{"text": "fine"}\n{"text": 7}\n', "line 2"),
        ("a.jsonl", b"not json\n", "line 1"),
        ("a.jsonl", b"[" * 100_000, "JSON"),
        ("a.json", b'[{"text": "fine"}, {"text": ["a", "list"]}]', "entry 2"),
        ("a.json", b'[{"text": "fine"}, {}]', "entry 2"),
        ("a.jsonl.gz", b"\x1f\x8b not gzip", "a.jsonl.gz"),
        ("a.jsonl.xz", b"\xfd7zXZ\x00 cut off", "a.jsonl.xz"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd not zstd", "a.txt.zst"),
        ("a.txt.gz", b"\x1e\x8b\x08\xff", "a.txt.gz"),
        ("a.parquet", b"PAR1 no", "a.parquet"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    assert says in refusal(tmp_path / name, data)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ".txt"),
        ("b.TXT.Gz", ".txt"),
        ("c.tar.xz", None),
        ("d", None),
        ("e.v2.jsonl.zst", ".jsonl"),
        (".txt", None),
        ("f.gz", None),
        ("g.txt.bak", None),
    ],
)
def test_the_ending_says_the_kind(name: str, kind: str | None) -> None:
    assert kind_of(Path(name)) == kind


def test_a_zst_of_several_frames_is_read_whole_and_a_cut_one_refused(tmp_path: Path) -> None:
    halves = [zstandard.compress(json_lines(rows).encode()) for rows in (OBJECTS[:2], OBJECTS[2:])]
    assert read(tmp_path / "a.jsonl.zst", b"".join(halves)) == ROWS
    for missing in (1, 20):
        refusal(tmp_path / "a.jsonl.zst", b"".join(halves)[:-missing])


@pytest.mark.parametrize("packing", [".gz", ".GZ", ".xz", ".zst"])
def test_a_file_unpacked_under_its_packed_name_is_read(packing: str, tmp_path: Path) -> None:
    assert read(tmp_path / f"a.jsonl{packing}", json_lines(OBJECTS).encode()) == ROWS


def test_a_zst_may_begin_with_a_frame_to_be_skipped(tmp_path: Path) -> None:
    skipped = b"\x50*M\x18" + (3).to_bytes(4, "little") + b"abc"
    assert read(tmp_path / "a.txt.zst", skipped + zstandard.compress(PROSE.encode())) == [PROSE]


def test_a_mark_within_a_json_text_is_left_as_it_is(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", json_lines([{"text": "a\ufeffb"}]).encode("utf-8-sig")) == ["a\ufeffb"]


def test_a_gz_damaged_inside_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(json_lines(OBJECTS).encode()))
    data[12:40] = b"\xff" * 28
    refusal(tmp_path / "a.jsonl.gz", bytes(data))


def test_a_long_text_file_comes_in_pieces_with_its_letters_whole(tmp_path: Path) -> None:
    text = "é" * (MAX_CHARS * 5 + 7)  # two bytes each, so that no piece of it in memory is a whole number of letters
    pieces = read(tmp_path / "a.txt", ("x" + text).encode())
    assert "".join(pieces) == "x" + text
    assert 6 <= len(pieces) <= 8
