"""Long arrays in files of bounded size, mapped into memory as one, and checked when they are opened."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from copyscope.training.errors import InputError
from copyscope.training.files import sha256_of, write_bytes

SHARD_TOKENS = 100_000_000
"""Tokens in a file at most (one longer document has a file of its own): 200 MB, which a kill may cost again."""


class ShardedArray:
    """One-dimensional arrays end to end. Has a length and slices of step 1, which are copied if they cross a border."""

    def __init__(self, shards: Sequence[np.ndarray], dtype: str):
        self.dtype = np.dtype(dtype)
        self.shards = tuple(shards)
        self._ends = list(accumulate(len(shard) for shard in shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"slices have step 1 here, not {step}")
        if start >= stop:
            return np.zeros(0, self.dtype)
        number = bisect_right(self._ends, start)
        before = self._ends[number - 1] if number else 0
        if stop <= self._ends[number]:
            return self.shards[number][start - before : stop - before]
        parts = []
        while start < stop:
            before, end = self._ends[number - 1] if number else 0, self._ends[number]
            parts.append(self.shards[number][start - before : min(stop, end) - before])
            start, number = end, number + 1
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the index says of one shard: whole documents, in a file of tokens (uint16) and one of where they start in
    it (int64)."""

    tokens: int
    documents: int
    sha256: str
    starts_sha256: str


class Expected(NamedTuple):
    """A file that must be there, of this length and with this hash."""

    path: Path
    n_bytes: int
    sha256: str


def tokens_file(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:05}.bin"


def starts_file(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}-{number:05}.documents.bin"


def write_shards(
    folder: Path,
    part: str,
    documents: Iterable[np.ndarray],
    done: Sequence[Shard],
    saved: Callable[[list[Shard]], None],
) -> list[Shard]:
    """Writes documents (each [n] uint16) after the shards that are `done`; `saved` is told of each that is whole."""
    shards = list(done)
    waiting: list[np.ndarray] = []
    size = 0

    def write() -> None:
        nonlocal size
        data = b"".join(tokens.data for tokens in waiting)
        starts = np.cumsum([0, *map(len, waiting[:-1])], dtype=np.int64).tobytes()
        write_bytes(tokens_file(folder, part, len(shards)), data)
        write_bytes(starts_file(folder, part, len(shards)), starts)
        shards.append(
            Shard(
                tokens=size,
                documents=len(waiting),
                sha256=hashlib.sha256(data).hexdigest(),
                starts_sha256=hashlib.sha256(starts).hexdigest(),
            )
        )
        waiting.clear()
        size = 0
        saved(shards)

    for tokens in documents:
        if waiting and size + len(tokens) > SHARD_TOKENS:
            write()
        waiting.append(tokens)
        size += len(tokens)
    if waiting:
        write()
    return shards


def shard_of_row(row: Sequence[Any]) -> Shard:
    """A shard from the values of its fields, in their order. ValueError if their number is another."""
    return Shard(**dict(zip((field.name for field in fields(Shard)), row, strict=True)))


def shards_of(index: dict[str, Any], part: str) -> list[Shard]:
    """The shards that an index lists; KeyError, TypeError or ValueError if it is not an index."""
    shards = [Shard(**shard) for shard in index[part]["shards"]]
    for name in ("tokens", "documents"):
        if sum(getattr(shard, name) for shard in shards) != index[part][name]:
            raise ValueError(f"the {name} of its {part} shards do not add up")
    return shards


def expected_files(folder: Path, part: str, shards: Sequence[Shard]) -> list[Expected]:
    return [
        file
        for number, shard in enumerate(shards)
        for file in (
            Expected(tokens_file(folder, part, number), 2 * shard.tokens, shard.sha256),
            Expected(starts_file(folder, part, number), 8 * shard.documents, shard.starts_sha256),
        )
    ]


def check(files: Sequence[Expected], fix: str) -> None:
    """InputError names the first file that is missing, of another length or changed, and how to `fix` it."""
    for path, n_bytes, _ in files:
        if not path.is_file():
            raise InputError(f"{path}: missing; {fix}")
        if path.stat().st_size != n_bytes:
            raise InputError(f"{path}: {path.stat().st_size} bytes, not the {n_bytes} of its index; {fix}")
    with ThreadPoolExecutor() as pool:
        for (path, _, sha256), digest in zip(files, pool.map(sha256_of, [file.path for file in files]), strict=True):
            if digest != sha256:
                raise InputError(f"{path}: damaged, its sha256 is not that of its index; {fix}")


def mapped(paths: Sequence[Path], dtype: str) -> ShardedArray:
    return ShardedArray([np.memmap(path, dtype=dtype, mode="r") for path in paths], dtype)
