"""Stops a piece of work at its n-th write, as a kill would: with half a file left under a temporary name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from copyscope.training import files
from copyscope.training.data import documents, shards, surprisal
from copyscope.training.data import store as tokens


class Killed(BaseException):
    pass


@contextmanager
def killed_at(write: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plain, calls = files.write_bytes, 0

    def write_bytes(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == write:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = f"{files._HOST}-{os.getpid()}-00000000-0"  # an earlier process that had our number
            path.with_name(f".{path.name}.{writer}.partial").write_bytes(data[: len(data) // 2])
            raise Killed
        plain(path, data)

    with monkeypatch.context() as patch:
        for module in (files, documents, shards, surprisal, tokens):
            patch.setattr(module, "write_bytes", write_bytes)
        yield
