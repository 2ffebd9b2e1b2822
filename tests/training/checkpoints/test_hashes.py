"""A remembered hash is never that of other content."""

import os
import time
from pathlib import Path

import pytest

from copyscope.training.checkpoints import hashes
from copyscope.training.checkpoints.hashes import sha256_remembered
from copyscope.training.files import sha256_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were read to be hashed; every file counts as large, and as changed long ago."""
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "MIN_BYTES", 1)
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(hashes, "sha256_of", counted)
    return read


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert {sha256_remembered(path) for _ in range(3)} == {sha256_of(path)}
    assert len(read) == 1
    link = tmp_path / "link"
    link.symlink_to(path)
    assert sha256_remembered(link) == sha256_of(path)
    assert len(read) == 1


def test_other_content_of_the_same_size_and_time_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    path, other = tmp_path / "weights", tmp_path / "other"
    path.write_bytes(b"one")
    sha256_remembered(path)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.02)  # a tick of the file system's clock
    path.write_bytes(b"two")  # in place
    os.utime(path, ns=times)
    assert sha256_remembered(path) == sha256_of(path)
    other.write_bytes(b"six")
    os.utime(other, ns=times)
    other.replace(path)  # another file in its place
    assert sha256_remembered(path) == sha256_of(path)
    assert len(read) == 3


def test_a_file_that_has_just_changed_is_not_remembered(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", 3600.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    for _ in range(2):
        sha256_remembered(path)
    assert len(read) == 2


def test_damaged_notes_and_places_that_cannot_be_written(
    tmp_path: Path, read: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    sha256_remembered(path)
    for text in ("{", "[]", '{"file": 3}', ""):
        for note in (tmp_path / "cache").rglob("*.json"):
            note.write_text(text)
        assert sha256_remembered(path) == sha256_of(path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sha256_remembered(path) == sha256_of(path)
    with pytest.raises(OSError, match="gone"):
        sha256_remembered(tmp_path / "gone")
