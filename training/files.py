"""Every write of the project: whole or not there. Temporary name, fsync, rename; hashes of files; leftovers of writers.

A file or folder is written as `.<target>.<writer>.partial` and renamed. A folder that is replaced is first renamed to
`.<target>.<writer>.old`; should the writer die just then, the next look puts it back. The writer's name is its machine,
its process and a count, so that writers of the same target do not collide.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from copyscope.training.errors import InputError

MANIFEST = "MANIFEST.json"
"""Lists the files of a folder that `write_folder` wrote, with their hashes."""
ABANDONED_SECONDS = 86_400.0
"""Age from which what a writer on another machine left counts as abandoned, since nobody can ask whether it lives."""
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_PROCESS = secrets.token_hex(4)  # tells this process from an earlier one that had the same number
_COUNT = itertools.count()
_NAME = re.compile(
    r"\.(?P<target>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<process>[0-9a-f]{8})-\d+\.(?P<kind>partial|old)"
)


def write_folder(target: Path, fill: Callable[[Path], None], **labels: Any) -> None:
    """Writes a folder that is either whole or not there: temp folder, manifest, fsync, rename, fsync of the parent.

    `fill` puts the files into the folder it is given; `labels` (step, tokens, run_id) go into the manifest. A folder
    that is there already is replaced, and stays what it was if this fails. Raises InputError if the place is full or
    cannot be written.
    """
    temp = partial(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target.parent)
        temp.mkdir()
        fill(temp)
        files = {path.name: sha256_of(path) for path in sorted(temp.iterdir())}
        (temp / MANIFEST).write_text(json.dumps({**labels, "files": files}, indent=1))
        mode = temp.stat().st_mode & 0o666
        for path in temp.iterdir():
            path.chmod(mode)  # safetensors lets nobody but the owner read its files
            _fsync(path)
        _fsync(temp)
        put(temp, target)
        _fsync(target.parent)
    except BaseException as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise _in_one_line(error, target) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or as it was: temp file, fsync, rename, fsync of the parent.

    Raises InputError if the place is full or cannot be written.
    """
    if not path.name:  # as `--out .` or an empty one
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    temp = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        temp.write_bytes(data)
        _fsync(temp)
        temp.replace(path)
        _fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise _in_one_line(error, path) from None


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


def check_writable(folder: Path) -> None:
    """Makes the folder and raises InputError unless files can be written there: before anything is computed for it."""
    probe = partial(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder) from None
        raise InputError(f"cannot write {folder}: {error.strerror}; give another folder with --out") from None


@contextlib.contextmanager
def alone_in(folder: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Holds a folder for this process while the body runs. Where another one holds it, calls `waiting` and waits.

    On one machine (flock); where the file system cannot do that, nobody waits. Leaves no file behind.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def together_in(
    folder: Path, waiting: Callable[[], object], first: Callable[[], object], last: Callable[[], object]
) -> Iterator[None]:
    """Holds a folder together with all who hold it so, while whoever wants it alone waits (`alone_in`).

    `first` is called on the way in, and `last` on the way out of a body that raised nothing, if nobody else holds it.
    Where it is held alone, calls `waiting` and waits. On one machine, as `alone_in`; elsewhere everybody is the first
    and the last.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _lock(descriptor, fcntl.LOCK_EX):
            first()
        if not _lock(descriptor, fcntl.LOCK_SH):
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
        if _lock(descriptor, fcntl.LOCK_EX):
            last()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Takes a lock if nobody is in the way, also where the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space. safetensors passes the system's error on as text only."""
    code = getattr(error, "errno", None)
    signs = ("No space left", "File too large", "os error 28", "os error 27")
    return code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(sign in str(error) for sign in signs)


def disk_full(path: Path) -> InputError:
    return InputError(
        f"no space left while writing {path}: free some and run the same command again; it continues from there"
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


def _in_one_line(error: BaseException, path: Path) -> BaseException:
    """An InputError where the place is at fault, else the error itself."""
    if is_disk_full(error):
        return disk_full(path)
    codes = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
    if isinstance(error, OSError) and error.errno in codes:
        return InputError(f"cannot write {path}: {error.strerror}; choose another place")
    return error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
