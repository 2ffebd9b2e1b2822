"""What results of a checkpoint depend on: every file of it that is read, or the commit of a hub's revision."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from copyscope.training.checkpoints.hashes import sha256_remembered
from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.checkpoints.tokenizer_files import TOKENIZER_FILES
from copyscope.training.checkpoints.weights import INDEX, UnreadableError, read_index
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST


def checkpoint_key(checkpoint: Checkpoint, commits: Mapping[str, str] | None = None) -> str:
    """A hash of all that is read of a checkpoint, wherever it lies: config, index, weights and tokenizer.

    Where a manifest vouches for the weights, its hashes stand for them (whoever reads them compares). Of a hub's
    revision the commit stands for all (`commits`: by revision, asked of the hub if None).
    Raises InputError for a manifest that is unreadable, a file that may not be read, a revision that is not there.
    """
    parts: list[object] = []
    if checkpoint.revision is not None:
        from copyscope.training.checkpoints.revisions import commits as ask

        known = ask(checkpoint.path, [checkpoint.revision]) if commits is None else commits
        parts.append(("commit", known[checkpoint.revision]))
    else:
        parts += _files(Path(checkpoint.path))
    if checkpoint.tokenizer is not None:
        parts.append(("tokenizer", tokenizer_key(Path(checkpoint.tokenizer))))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def tokenizer_key(folder: Path) -> str:
    """A hash of the files that a tokenizer is read from."""
    return hashlib.sha256(repr(_hashes(folder, TOKENIZER_FILES)).encode()).hexdigest()


def _files(path: Path) -> list[object]:
    if path.is_file():
        return [("gguf", _sha256(path))]
    small = _hashes(path, ("config.json", INDEX, *TOKENIZER_FILES))
    if (path / MANIFEST).is_file():
        read_manifest(path)
        return [(MANIFEST, _sha256(path / MANIFEST)), *small]
    try:
        names = sorted(read_index(path))
    except UnreadableError:
        names = []  # the index is damaged, which is said on loading
    return [*small, *_hashes(path, names)]


def _hashes(folder: Path, names: tuple[str, ...] | list[str]) -> list[object]:
    return [(name, _sha256(folder / name)) for name in names if (folder / name).is_file()]


def _sha256(path: Path) -> str:
    try:
        return sha256_remembered(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; it cannot be read") from None
