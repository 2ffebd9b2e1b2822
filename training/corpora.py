"""Named corpora to documents: the only place that knows where text comes from."""

import gzip
import hashlib
import io
import json
import lzma
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import InputError

EMBEDDED = "python"
MIN_CHARS = 200
"""Shorter documents (empty `__init__.py` files, mostly) hold nothing to learn from."""
MAX_CHARS = 200_000
"""Longer documents are cut into pieces that each count as one, so that one book or table does not fill the corpus."""
FEW = 100
"""A corpus of fewer documents is cut finer, into this many pieces or so, that some can be held out of training."""
_PIECE_CHARS = 2_000
_KINDS = (".txt", ".jsonl", ".parquet")
_PACKED = (".gz", ".xz", ".zst")


class Document(NamedTuple):
    text: str
    digest: bytes
    """sha256 of the UTF-8 text; its order is a fair shuffle, and equal documents are taken once."""


def read_corpus(source: str, max_megabytes: float) -> list[Document]:
    """The documents of a corpus, distinct, in the order of their digest, up to `max_megabytes` (10^6 bytes of text).

    `source` is `python` (the embedded default: the .py files of this Python installation and of the packages
    installed beside copyscope), a file or folder of .txt, .jsonl (a field `text` a line) or .parquet (a column
    `text`), plain or as .gz, .xz or .zst, or `hf:<data set>` for a Hugging Face data set, which is streamed.
    Long documents are cut at line breaks (`MAX_CHARS`, `FEW`). Raises InputError for a missing, empty or unreadable
    source.
    """
    found: dict[bytes, str] = {}
    budget = int(max_megabytes * 1e6)
    size = 0

    def take(text: str, limit: int) -> None:
        nonlocal size
        for piece in cut(text, limit):
            data = piece.encode("utf-8", "replace")
            digest = hashlib.sha256(data).digest()
            if len(piece) >= MIN_CHARS and digest not in found:
                found[digest] = data.decode("utf-8")
                size += len(data)

    # A stream that may never end is cut when the budget is full; files on disk are all read, so that the part
    # kept does not depend on which file came first.
    endless = source.startswith("hf:")
    for text in _texts(source):
        take(text, MAX_CHARS)
        if endless and size >= budget:
            break
    if len(found) < FEW:
        texts = list(found.values())
        found.clear()
        for text in texts:
            take(text, max(_PIECE_CHARS, sum(map(len, texts)) // FEW))
    if not found:
        raise InputError(f"corpus {source}: no document of at least {MIN_CHARS} characters in it; give more text")
    documents: list[Document] = []
    for digest in sorted(found):
        if budget <= 0:
            break
        documents.append(Document(found[digest], digest))
        budget -= len(found[digest].encode())
    return documents


def cut(text: str, limit: int) -> Iterator[str]:
    """The text in pieces of at most `limit` characters, nothing dropped; cut after a line break where the last quarter
    of a piece has one."""
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start + limit * 3 // 4, start + limit) + 1 or start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def fingerprint(documents: list[Document]) -> str:
    """sha256 over the documents' digests in order: equal for equal text, wherever it lies."""
    return hashlib.sha256(b"".join(document.digest for document in documents)).hexdigest()


def file_signature(source: str) -> str:
    """Changes when files of the corpus are added, removed or written; empty for a data set by name."""
    if source.startswith("hf:"):
        return ""
    paths = _python_paths() if source == EMBEDDED else _corpus_files(source)
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _texts(source: str) -> Iterator[str]:
    if source == EMBEDDED:
        yield from _python_sources()
    elif source.startswith("hf:"):
        yield from _hugging_face(source.removeprefix("hf:"))
    else:
        for path in _corpus_files(source):
            yield from _file_texts(path)


def _corpus_files(source: str) -> list[Path]:
    root = Path(source).expanduser()
    if not root.exists():
        raise InputError(
            f"corpus {source}: no such file or folder; give one, or {EMBEDDED!r}, or hf:<data set> with a network"
        )
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if _kind(path))
    if not paths or not _kind(paths[0]):
        raise InputError(f"corpus {source}: no .txt, .jsonl or .parquet in it (plain, .gz, .xz or .zst)")
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
                yield stream.read().decode("utf-8", "replace")
            elif kind == ".jsonl":
                yield from _json_lines(path, stream)
            else:
                yield from _parquet(path, io.BytesIO(stream.read()))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError) as error:
        raise InputError(f"corpus file {path}: cannot be read ({error}); replace it or take it away") from None


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


def _parquet(path: Path, data: io.BytesIO) -> Iterator[str]:
    import polars as pl

    try:
        column = pl.read_parquet(data, columns=["text"])["text"].cast(pl.String)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"corpus file {path}: no readable column 'text' ({str(error).splitlines()[0]})") from None
    yield from column.drop_nulls()


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


def _hugging_face(name: str) -> Iterator[str]:
    try:
        from datasets import load_dataset

        rows = load_dataset(name, split="train", streaming=True)
        for row in rows:
            if isinstance(row.get("text"), str):
                yield row["text"]
    except ImportError:
        raise InputError(f"corpus hf:{name}: the package 'datasets' is missing; install it") from None
    except Exception as error:  # the library raises many kinds for a missing set, a gated one and no network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"corpus hf:{name}: cannot be streamed ({reason[:200]}); check the name and the network"
        ) from None
