"""sha256 of large files, remembered from call to call for as long as nothing about a file has changed.

Notes lie in `$XDG_CACHE_HOME/copyscope/hashes` (else `~/.cache`), one a file. They can be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from copyscope.training.errors import InputError
from copyscope.training.files import sha256_of, write_json

MIN_BYTES = 1 << 23
"""Files from here on are remembered; smaller ones are hashed in the time that a note takes to read."""
SETTLED_SECONDS = 2.0
"""A file changed later than this before it was hashed is not remembered: one more change within the same tick of the
file system's clock would not show."""


def sha256_remembered(path: Path) -> str:
    """The sha256 of a file. Known from an earlier call if path, size, inode and both times (of the content, and of the
    last change of any kind, which nobody can set back) are as they were. Raises OSError for what cannot be read."""
    if path.stat().st_size < MIN_BYTES:
        return sha256_of(path)
    facts, note = _facts(path), _note(path)
    if note is not None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            held = json.loads(note.read_text("utf-8"))
            if held.get("file") == facts and isinstance(held.get("sha256"), str):
                return held["sha256"]
    began = time.time()
    digest = sha256_of(path)
    changed = max(path.stat().st_mtime, path.stat().st_ctime)
    if note is not None and _facts(path) == facts and began - changed > SETTLED_SECONDS:
        with contextlib.suppress(InputError, OSError):  # a home that cannot be written costs time only
            write_json(note, {"file": facts, "sha256": digest})
    return digest


def _facts(path: Path) -> list[str | int]:
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _note(path: Path) -> Path | None:
    """Where the hash of a file is kept; None for a user without a home."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return Path(cache) / "copyscope" / "hashes" / f"{name}.json"
