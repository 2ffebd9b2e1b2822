"""The distinct documents of a corpus, gathered on disk in a fair order, whatever their source."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from copyscope.training.data.corpora import open_source
from copyscope.training.data.cutting import MAX_CHARS, MIN_CHARS, cut
from copyscope.training.data.text_files import Reading
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes, write_json
from copyscope.training.progress import now_and_then

FEW = 100
"""A corpus of fewer documents is cut finer, into this many pieces or so, that some can be held out of training."""
_PIECE_CHARS = 2_000
logger = logging.getLogger(__name__)
SAVE_BYTES = 64_000_000
"""Text held in memory before it is written: what a kill can lose."""
_MAX_FILES = 256
_ENTRY = np.dtype([("digest", ">u8", 4), ("size", "<u4")])
_PLACE = np.dtype([*_ENTRY.descr, ("file", "<u4"), ("offset", "<i8")])


class Document(NamedTuple):
    """One document of a corpus."""

    text: str
    digest: bytes
    """sha256 of the UTF-8 text; its order is a fair shuffle, and equal documents are taken once."""


@dataclass(frozen=True, eq=False)
class Documents:
    """Distinct documents on disk, in the order of their digest: the same for the same text, wherever it came from."""

    folder: Path
    places: np.ndarray
    """Of each document: digest, size in bytes, file, offset."""

    @property
    def n_bytes(self) -> int:
        return int(self.places["size"].sum(dtype=np.int64))

    @property
    def fingerprint(self) -> str:
        """sha256 over the digests in order."""
        return hashlib.sha256(self.places["digest"].tobytes()).hexdigest()

    def held_out_below(self, share: float) -> int:
        """Documents whose `key` is below this are held out: `share` of them, but not all and, where there are two, not
        none. Decided by each document's own text."""
        keys = self.places["digest"][:, 3]
        return min(max(int(share * 2**64), int(keys.min()) + 1), int(keys.max()))

    def read(self, wanted: Callable[[bytes], bool] = lambda digest: True, skip: int = 0) -> Iterator[Document]:
        """The documents whose digest is `wanted`, in order, without the first `skip` of them."""
        digests = self.places["digest"].tobytes()
        files: dict[int, BinaryIO] = {}
        try:
            for i, place in enumerate(self.places):
                digest = digests[32 * i : 32 * i + 32]
                if not wanted(digest):
                    continue
                if skip:
                    skip -= 1
                    continue
                number = int(place["file"])
                path = _path(self.folder, number, "text")
                if number not in files:
                    if len(files) == _MAX_FILES:  # the system allows only so many
                        files.popitem()[1].close()
                    files[number] = path.open("rb")
                files[number].seek(place["offset"])
                data = files[number].read(place["size"])
                if hashlib.sha256(data).digest() != digest:
                    raise _damaged(path, "not the text that was written")
                yield Document(data.decode(), digest)
        except OSError as error:
            raise _damaged(self.folder, str(error)) from None
        finally:
            for file in files.values():
                file.close()


def key(digest: bytes) -> int:
    """64 bits of the digest other than those it is sorted by, so that the sample read and the share held out are
    independent."""
    return int.from_bytes(digest[-8:], "big")


def gather(name: str, max_megabytes: float, folder: Path, reading: Reading = Reading()) -> Documents:
    """Reads a corpus (`training.data.corpora.open_source`) into `folder`, or resumes doing so after a kill.

    Taken are the distinct documents in the order of their digest up to `max_megabytes` (10^6 bytes of UTF-8), so that
    any part is a fair sample; an endless source is read until there is that much. Long documents are cut at line
    breaks (`MAX_CHARS`, `FEW`). Memory holds the digests and `SAVE_BYTES` of text (more above 16 GB: a 256th). Raises
    InputError for a missing, empty or unreadable source.
    """
    budget = max(1, int(max_megabytes * 1e6))
    gathered = _Gathered(folder)
    if not gathered.done:
        tell = now_and_then(logger)
        source = open_source(name, gathered.position, reading)
        for pieces in _pieces(source.texts, few=not gathered.files, ascii_only=reading.ascii_only):
            for piece in pieces:
                gathered.add(piece)
            tell(f"read {len(gathered.seen):,} documents, {gathered.size / 1e6:,.1f} MB")
            if source.endless and gathered.size >= budget:
                break
            if gathered.waiting >= max(SAVE_BYTES, budget // _MAX_FILES):
                gathered.save(source.position())
                if not source.endless and gathered.size > 2 * budget:
                    gathered.drop_above(budget)
        source.texts.close()
        if not gathered.seen:
            kind = "no ASCII document" if reading.ascii_only else "no document"
            raise InputError(f"corpus {name}: {kind} of at least {MIN_CHARS} characters in it; give more text")
        gathered.save(None, done=True)
    return Documents(folder, _places(folder, gathered.files, budget))


def _pieces(texts: Iterator[str], few: bool, ascii_only: bool) -> Iterator[list[str]]:
    """Each text, cut if it is long. Where there may be `few` and there are, they are cut finer."""

    def is_taken(piece: str) -> bool:
        return len(piece) >= MIN_CHARS and (piece.isascii() or not ascii_only)

    cut_texts = ([piece for piece in cut([text], MAX_CHARS) if is_taken(piece)] for text in texts)
    if few:
        first: dict[str, None] = {}
        for pieces in cut_texts:
            first |= dict.fromkeys(pieces)
            if len(first) >= FEW:
                break
        else:
            limit = max(_PIECE_CHARS, sum(map(len, first)) // FEW)
            yield [part for piece in first for part in cut([piece], limit)]
            return
        yield list(first)
    yield from cut_texts


class _Gathered:
    """What is gathered so far. Each save adds one file of text and one of entries, and then says so in gathered.json,
    with where to go on reading; what a kill left beside them does not count and is written again."""

    def __init__(self, folder: Path):
        self.folder, self.files, self.position, self.done = folder, 0, None, False
        self.bound = b"\xff" * 32  # documents above it are not among those kept
        self.seen: set[bytes] = set()
        self.size = self.waiting = 0
        self._new: list[tuple[bytes, bytes]] = []
        path = folder / "gathered.json"
        if path.is_file():
            try:
                saved = json.loads(path.read_text())
                self.files, self.position, self.done = saved["files"], saved["position"], saved["done"]
                self.bound = bytes.fromhex(saved["bound"])
            except (ValueError, KeyError, TypeError) as error:
                raise _damaged(path, str(error)) from None
            if not self.done:
                self._recall(_places(folder, self.files))

    def _recall(self, places: np.ndarray) -> None:
        digests = places["digest"].tobytes()
        self.seen = {digests[i : i + 32] for i in range(0, len(digests), 32) if digests[i : i + 32] <= self.bound}
        self.size = int(places["size"][: len(self.seen)].sum(dtype=np.int64))  # they are in order

    def add(self, piece: str) -> None:
        data = piece.encode("utf-8", "replace")
        digest = hashlib.sha256(data).digest()
        if digest <= self.bound and digest not in self.seen:
            self.seen.add(digest)
            self._new.append((digest, data))
            self.size += len(data)
            self.waiting += len(data)

    def save(self, position: Any, done: bool = False) -> None:
        self._new.sort()
        entries = np.zeros(len(self._new), _ENTRY)
        entries["digest"] = np.frombuffer(b"".join(digest for digest, _ in self._new), ">u8").reshape(-1, 4)
        entries["size"] = [len(data) for _, data in self._new]
        write_bytes(_path(self.folder, self.files, "text"), b"".join(data for _, data in self._new))
        write_bytes(_path(self.folder, self.files, "entries"), entries.tobytes())
        self._new, self.waiting = [], 0
        self.files, self.position, self.done = self.files + 1, position, done
        saved = {"files": self.files, "position": position, "done": done, "bound": self.bound.hex()}
        write_json(self.folder / "gathered.json", saved)

    def drop_above(self, budget: int) -> None:
        """Forgets the documents that the lower ones already crowd out. All are on disk when this is called."""
        places = _places(self.folder, self.files, budget)
        self.bound = places["digest"][-1].tobytes()
        self._recall(places)


def _places(folder: Path, files: int, budget: int | None = None) -> np.ndarray:
    """Where the documents are, in the order of their digest; with a `budget` in bytes, until it is used up."""
    by_file = []
    for number in range(files):
        path = _path(folder, number, "entries")
        try:
            entries = np.fromfile(path, _ENTRY)
        except OSError as error:
            raise _damaged(path, str(error)) from None
        places = np.zeros(len(entries), _PLACE)
        places["digest"], places["size"], places["file"] = entries["digest"], entries["size"], number
        places["offset"] = np.cumsum(entries["size"], dtype=np.int64) - entries["size"]
        by_file.append(places)
    places = np.concatenate(by_file, dtype=_PLACE)  # without it, byte order is lost
    places = places[np.lexsort(places["digest"].T[::-1])]
    if budget is None:
        return places
    return places[np.cumsum(places["size"], dtype=np.int64) - places["size"] < budget]


def _path(folder: Path, number: int, kind: str) -> Path:
    return folder / f"{number:04}.{kind}"


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged ({why}); delete the folder {path.parent} and run again to rebuild it")
