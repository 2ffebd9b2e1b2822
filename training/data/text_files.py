"""One file of text, plain or packed, to its documents: decoded as it says, or refused by name."""

import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from copyscope.training.data.cutting import MAX_CHARS, cut
from copyscope.training.errors import InputError, first_line

FORMATS = ".txt, .jsonl, .ndjson, .json or .parquet (plain, .gz, .xz or .zst)"
"""What is read, for messages."""
_KINDS = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
_PACKED = (".gz", ".xz", ".zst")
_BYTES_AT_ONCE = 1 << 20
_ROWS_AT_ONCE = 1000
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_MARK = "\ufeff"


@dataclass(frozen=True)
class Reading:
    """How the documents of a corpus are read."""

    field: str = "text"
    """Field of JSON objects, or column of tables, that holds the text."""
    encoding: str = "utf-8"
    """Of text and JSON files without a byte-order mark. A mark decides for the file that has it."""
    ascii_only: bool = False
    """Documents with other characters are left out."""


def kind_of(path: Path) -> str | None:
    """The ending that says how a file is read, in lower case and without that of packing; None if it is not read."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in _PACKED:
        endings.pop()
    return endings[-1] if endings and endings[-1] in _KINDS else None


def file_texts(path: Path, reading: Reading) -> Iterator[str]:
    """The documents of one file. Raises InputError, which names the file, for one that is damaged, in another encoding
    or without the field."""
    from zstandard import ZstdError

    try:
        with _open(path) as stream:
            kind = kind_of(path)
            if kind == ".txt":  # without the marks that files put together have in the middle
                text = (piece.replace(_MARK, "") for piece in decoded(path, stream, reading.encoding))
                yield from cut(text, MAX_CHARS)
            elif kind == ".parquet":
                packed = path.suffix.lower() in _PACKED
                yield from _parquet(path, io.BytesIO(stream.read()) if packed else path, reading.field)
            else:
                yield from _json(path, _lines(decoded(path, stream, reading.encoding)), reading.field)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError) as error:
        raise InputError(f"corpus file {path}: cannot be read ({error}); replace or remove it") from None


class _ZstdFile(io.RawIOBase):
    """A .zst file of any number of frames. zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, path: Path):
        import zstandard

        self._file = path.open("rb")
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._packed, self._plain, self._started = b"", b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            if self._frame.eof:
                self._packed, self._frame, self._started = self._frame.unused_data, self._new(), False
            self._packed = self._packed or self._file.read(1 << 16)
            if not self._packed:
                if self._started:
                    raise EOFError("the file ends in the middle")
                return 0
            self._plain, self._packed, self._started = self._frame.decompress(self._packed), b"", True
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> io.BufferedIOBase:
    """The file, unpacked if its ending and its first bytes say that it is packed: browsers unpack and keep the name."""
    with path.open("rb") as stream:
        start = stream.read(4)
    packing = path.suffix.lower()
    if packing == ".gz" and start.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if packing == ".xz" and start == b"\xfd7zX":
        return lzma.open(path, "rb")
    if packing == ".zst" and (start == b"\x28\xb5\x2f\xfd" or start[1:] == b"*M\x18"):  # or a frame to be skipped
        return io.BufferedReader(_ZstdFile(path), 1 << 20)
    return path.open("rb")


def decoded(path: Path, stream: io.BufferedIOBase, encoding: str) -> Iterator[str]:
    """The file's text in pieces, byte-order marks included. Bytes of another encoding and NULs are refused."""
    data = stream.read(_BYTES_AT_ONCE)
    encoding = next((of_mark for mark, of_mark in _MARKS if data.startswith(mark)), encoding)
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    decoded = 0  # bytes, those that the decoder keeps until it has a whole character among them
    while True:
        kept = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            at = decoded - kept + error.start
            raise _other_encoding(path, f"not {encoding}: byte 0x{error.object[error.start]:02x} at {at:,}") from None
        if "\0" in text:
            raise _other_encoding(path, "holds NUL characters: UTF-16 without a byte-order mark, or no text")
        yield text
        if not data:
            return
        decoded += len(data)
        data = stream.read(_BYTES_AT_ONCE)


def _other_encoding(path: Path, why: str) -> InputError:
    return InputError(
        f"corpus file {path}: {why}; name its encoding, as in --set data.encoding=cp1252 (or latin-1, utf-16-le, …), "
        "convert it to UTF-8, or remove it"
    )


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    begun: list[str] = []
    for piece in pieces:
        *lines, last = piece.split("\n")
        for line in lines:
            yield "".join([*begun, line])
            begun.clear()
        begun.append(last)
    yield "".join(begun)


def _json(path: Path, lines: Iterator[str], field: str) -> Iterator[str]:
    """A document a line; or an array of them, or a single one over several lines, which are held in memory whole."""
    lines = (line.lstrip(_MARK) for line in lines)
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") or (kind_of(path) == ".json" and not _is_json(first[1])):
        whole = _parsed(f"corpus file {path}", "\n".join([first[1], *lines]))
        for place, value in enumerate(whole if isinstance(whole, list) else [whole], 1):
            yield from _text_in(f"corpus file {path}, entry {place}", value, field)
        return
    for number, line in chain([first], numbered):
        where = f"corpus file {path}, line {number}"
        yield from _text_in(where, _parsed(where, line), field)


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error}); fix or remove it") from None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _text_in(where: str, value: Any, field: str) -> Iterator[str]:
    """The text of one JSON value: the value itself if it is a string, its field if it is an object."""
    if isinstance(value, dict):
        if field not in value:
            raise _no_field(where, field, list(value))
        value = value[field]
    if isinstance(value, str):
        yield value
    elif value is not None:
        kind = {list: "an array", dict: "an object"}.get(type(value), "a number or truth value")
        raise InputError(f"{where}: {kind} where the text {field!r} should be; name another field by data.field")


def _no_field(where: str, field: str, names: list[str]) -> InputError:
    if not names:
        return InputError(f"{where}: no field {field!r}, nor any other; remove it")
    listed = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    choice = f"name one, as in --set data.field={names[0]}"
    return InputError(f"{where}: no field {field!r}; its fields are {listed}; {choice}")


def _parquet(path: Path, data: Path | io.BytesIO, field: str) -> Iterator[str]:
    import polars as pl

    try:
        table = pl.scan_parquet(data, glob=False)
        names = table.collect_schema().names()
        if field not in names:
            raise _no_field(f"corpus file {path}", field, names)
        column = table.select(pl.col(field).cast(pl.String))
        for rows in column.collect_batches(chunk_size=_ROWS_AT_ONCE, maintain_order=True):
            yield from rows[field].drop_nulls()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"corpus file {path}: column {field!r} cannot be read ({first_line(error)})") from None
