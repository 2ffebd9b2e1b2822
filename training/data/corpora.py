"""Named corpora to texts: the only place that knows where text comes from."""

import codecs
import gzip
import hashlib
import io
import json
import lzma
import sysconfig
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from copyscope.training.errors import InputError

EMBEDDED = "python"
MIN_CHARS = 200
"""Shorter documents (empty `__init__.py` files, mostly) hold nothing to learn from."""
MAX_CHARS = 200_000
"""Longer documents are cut into pieces that each count as one, so that one book or table does not fill the corpus."""
_KINDS = (".txt", ".jsonl", ".parquet")
_PACKED = (".gz", ".xz", ".zst")
_AT_ONCE = 1 << 20
_ROWS_AT_ONCE = 1000


class Source(NamedTuple):
    """The texts of a corpus as they come, a book in pieces."""

    texts: Generator[str, None, None]
    position: Callable[[], Any]
    """Where `open_source` goes on after the last text taken; as JSON."""
    endless: bool
    """Whether to stop reading when there is enough: a data set may be larger than anyone has time for."""


def open_source(name: str, position: Any = None) -> Source:
    """The corpus of this name, from `position` on (None: from its beginning).

    `name` is `python` (the embedded default: the .py files of this Python installation and of the packages installed
    beside copyscope), a file or folder of .txt, .jsonl (a field `text` a line) or .parquet (a column `text`), plain or
    as .gz, .xz or .zst, or `hf:<data set>[:<subset>[:<column>]]` for the split `train` of a Hugging Face data set,
    which is streamed. Taking texts raises InputError for a missing or unreadable source.
    """
    if name.startswith("hf:"):
        return _hugging_face(name, position)
    taken = position or 0

    def counted() -> Generator[str, None, None]:
        nonlocal taken
        for text in islice(_texts(name), taken, None):
            taken += 1
            yield text

    return Source(counted(), lambda: taken, endless=False)


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


def file_signature(name: str) -> str:
    """Changes when files of the corpus are added, removed or written; empty for a data set by name."""
    if name.startswith("hf:"):
        return ""
    paths = _python_paths() if name == EMBEDDED else _corpus_files(name)
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def check_corpus(name: str) -> None:
    """Raises InputError for a file or folder that is not there or has no text. Data sets by name are not looked up."""
    if name != EMBEDDED and not name.startswith("hf:"):
        _corpus_files(name)


def _texts(name: str) -> Iterator[str]:
    if name == EMBEDDED:
        yield from _python_sources()
    else:
        for path in _corpus_files(name):
            yield from _file_texts(path)


def _corpus_files(name: str) -> list[Path]:
    root = Path(name).expanduser()
    if not root.exists():
        raise InputError(
            f"corpus {name}: no such file or folder; give one, or {EMBEDDED!r}, or hf:<data set> with a network"
        )
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if _kind(path))
    if not paths or not _kind(paths[0]):
        raise InputError(f"corpus {name}: no .txt, .jsonl or .parquet in it (plain, .gz, .xz or .zst)")
    return paths


def _kind(path: Path) -> str | None:
    suffixes = path.suffixes
    name = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in _PACKED else path.suffix
    return name if name in _KINDS and path.is_file() else None


class _ZstdFile(io.RawIOBase):
    """A .zst file of any number of frames. zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, path: Path):
        import zstandard

        self._packed = path.open("rb")
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._rest, self._plain, self._started = b"", b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            if self._frame.eof:
                self._rest, self._frame, self._started = self._frame.unused_data, self._new(), False
            self._rest = self._rest or self._packed.read(1 << 16)
            if not self._rest:
                if self._started:
                    raise EOFError("the file ends in the middle")
                return 0
            self._plain, self._rest, self._started = self._frame.decompress(self._rest), b"", True
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size

    def close(self) -> None:
        self._packed.close()
        super().close()


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstdFile(path), 1 << 20)
    return path.open("rb")


def _file_texts(path: Path) -> Iterator[str]:
    from zstandard import ZstdError

    try:
        with _open(path) as stream:
            kind = _kind(path)
            if kind == ".txt":
                yield from cut(_decoded(stream), MAX_CHARS)
            elif kind == ".jsonl":
                yield from _json_lines(path, stream)
            else:
                yield from _parquet(path, path if path.suffix == kind else io.BytesIO(stream.read()))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError) as error:
        raise InputError(f"corpus file {path}: cannot be read ({error}); replace it or take it away") from None


def _decoded(stream: io.BufferedIOBase) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := stream.read(_AT_ONCE):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def _json_lines(path: Path, stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise InputError(f'corpus file {path}, line {number}: not an object with a string "text"; mend the line')
        yield text


def _parquet(path: Path, data: Path | io.BytesIO) -> Iterator[str]:
    import polars as pl

    try:
        column = pl.scan_parquet(data, glob=False).select(pl.col("text").cast(pl.String))
        for rows in column.collect_batches(chunk_size=_ROWS_AT_ONCE, maintain_order=True):
            yield from rows["text"].drop_nulls()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"corpus file {path}: no readable column 'text' ({str(error).splitlines()[0]})") from None


def _python_paths() -> Iterator[Path]:
    paths = sysconfig.get_paths()
    for root in dict.fromkeys([paths["stdlib"], paths["purelib"], paths["platlib"]]):
        for path in sorted(Path(root).rglob("*.py")):
            if root == paths["stdlib"] and {"site-packages", "dist-packages"} & set(path.parts):
                continue  # those of the interpreter that made this environment are not installed with copyscope
            yield path


def _python_sources() -> Iterator[str]:
    for path in _python_paths():
        try:
            yield path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a few test files are in other encodings on purpose


def _hugging_face(name: str, position: Any) -> Source:
    data_set, subset, column = (*name.removeprefix("hf:").split(":", 2), "", "")[:3]
    column = column or "text"
    with _one_line(name):
        from datasets import load_dataset

        rows: Any = load_dataset(data_set, subset or None, split="train", streaming=True)
        if position is not None:
            rows.load_state_dict(position)

    def texts() -> Generator[str, None, None]:
        with _one_line(name):
            for row in rows:
                if column not in row:
                    raise InputError(
                        f"corpus {name}: no column {column!r} in it; name one of {', '.join(row)} as "
                        f"hf:{data_set}:{subset}:<column>"
                    )
                if isinstance(row[column], str):
                    yield row[column]

    return Source(texts(), rows.state_dict, endless=True)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """The library raises many kinds of error for a missing set, a gated one and no network."""
    try:
        yield
    except InputError:
        raise
    except ImportError:
        raise InputError(f"corpus {name}: the package 'datasets' is missing; install it") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"corpus {name}: cannot be streamed ({reason[:200]}); check the name and the network, and run the same "
            "command again: it goes on from what was read"
        ) from None
