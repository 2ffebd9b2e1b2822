"""Hidden names for what is being written, and what becomes of them when their writer dies.

A file or folder is written as `.<target>.<writer>.partial` and renamed. A folder that is replaced is first renamed to
`.<target>.<writer>.old`; should the writer die just then, the next look puts it back. The writer's name is its machine,
its process and a count, so that writers of the same target are not in each other's way.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

ABANDONED_SECONDS = 86_400.0
"""Age from which what a writer on another machine left counts as abandoned, since nobody can ask whether it lives."""
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PROCESS = secrets.token_hex(4)  # tells this process from an earlier one that had the same number
_COUNT = itertools.count()
_NAME = re.compile(
    r"\.(?P<target>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-\d+\.(?P<kind>partial|old)"
)


def partial(target: Path) -> Path:
    """A name of this writer's own, beside `target`."""
    return _hidden(target, "partial")


def put(temp: Path, target: Path) -> None:
    """Renames folder `temp` to `target`, in the place of a folder there. At no time are both gone: see `tidy`."""
    while True:
        try:
            temp.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        old = _hidden(target, "old")
        try:
            target.rename(old)
            temp.rename(target)
            return
        except FileNotFoundError:
            if not temp.exists():
                raise
        except OSError as error:  # another writer's folder has come to the target meanwhile: once more
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        finally:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # there is no old one, or another writer's folder has just come
                    old.rename(target)


def tidy(folder: Path) -> None:
    """Puts back what a writer that died had moved aside in `folder`, and deletes what it left half written.

    What a living writer is at stays, and where nothing may be changed (a disk mounted read-only), nothing is.
    """
    try:
        left = [(Path(entry.path), match) for entry in os.scandir(folder) if (match := _NAME.fullmatch(entry.name))]
    except OSError:
        return
    for path, match in left:
        if _at_work(match, path):
            continue
        target = folder / match["target"]
        try:
            if match["kind"] == "old" and not target.exists():
                path.rename(target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            continue  # another process was faster, or may do what this one may not


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{_PROCESS}-{next(_COUNT)}.{kind}")


def _at_work(name: re.Match[str], path: Path) -> bool:
    """Whether the writer may still be alive."""
    if name["host"] != _HOST:
        try:
            return time.time() - path.stat().st_mtime < ABANDONED_SECONDS
        except OSError:
            return True
    if int(name["pid"]) == os.getpid():
        return name["process"] == _PROCESS
    try:
        os.kill(int(name["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
