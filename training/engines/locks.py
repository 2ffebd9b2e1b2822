"""One process a piece of work, over all machines that share the folder: a lock whose holder shows that it lives."""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from copyscope.training.errors import InputError

BEAT = 5.0
"""Seconds between signs of life."""
STALE = 60.0
"""Seconds without one after which a holder on another machine counts as dead. Counted by the one who waits: clocks of
machines differ."""
_TRIES, _PAUSE = 5, 0.2
"""The holder of a moment ago may be on its way out."""
_SIZE = 512
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """This machine's name, and what tells it from another of that name (containers are often called alike)."""
    try:
        return f"{socket.gethostname()} ({_BOOT.read_text()[:8]})"
    except OSError:
        return socket.gethostname()


class Busy(Exception):  # noqa: N818 - not an error: somebody else is doing the work
    """Another process holds the lock; the message says which."""


@contextmanager
def held(
    path: Path, lost: Callable[[], object], beat: float = BEAT, stale: float = STALE, tries: int = _TRIES
) -> Iterator[None]:
    """Holds the lock file while in here. Raises `Busy` if somebody else does, after so many `tries` on one machine.

    On one machine the system's file lock decides, which it frees when a process dies, however it dies. Between
    machines, whose file system may not share such locks, the sign of life in the file decides: it has to stand still
    for `stale` seconds. `lost()` is called, from another thread, should somebody have taken over regardless, as when
    this process was suspended for longer than that.
    """
    token = secrets.token_hex(8)
    with _opened(path) as lock:
        _take(path, lock, token, stale, tries)
        done = threading.Event()

        def live() -> None:
            count = 0
            while not done.wait(beat):
                if _holder(path).get("token") not in (token, None):
                    lost()
                    return
                count += 1
                _write(lock, token, count)

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            if _holder(path).get("token") == token:
                os.ftruncate(lock, 0)


def held_elsewhere(path: Path) -> bool:
    """Whether a process of another machine holds the lock, or held it when it died: to tell takes `held` a while."""
    return path.exists() and _holder(path).get("host", machine()) != machine()


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose a folder that can be") from None
    try:
        yield lock
    finally:
        os.close(lock)


def _take(path: Path, lock: int, token: str, stale: float, tries: int) -> None:
    locks = _system_lock(path, lock, tries)
    holder = _holder(path)
    if holder and not (locks and holder.get("host") == machine()):
        _watch(path, holder, stale)
        _write(lock, token, 0)
        time.sleep(_PAUSE)  # two may have waited for the same dead one: the last to write has it
        if _holder(path).get("token") != token:
            raise Busy(_words(_holder(path)))
    else:
        _write(lock, token, 0)


def _system_lock(path: Path, lock: int, tries: int) -> bool:
    """Takes the file lock; False where the file system has none."""
    for attempt in range(tries):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt + 1 < tries:
                time.sleep(_PAUSE)
        except OSError:
            return False
    raise Busy(_words(_holder(path)))


def _watch(path: Path, seen: dict[str, Any], stale: float) -> None:
    """Returns when the sign of life has stood still for `stale` seconds, or the holder has let go."""
    end = time.monotonic() + stale
    while time.monotonic() < end:
        time.sleep(min(1.0, stale / 4))
        now = _holder(path)
        if not now:
            return
        if now != seen:
            raise Busy(_words(now))


def _write(lock: int, token: str, count: int) -> None:
    sign = {"host": machine(), "pid": os.getpid(), "token": token, "beat": count}
    os.pwrite(lock, json.dumps(sign).ljust(_SIZE).encode(), 0)  # in one piece, of one length: never seen half written


def _holder(path: Path) -> dict[str, Any]:
    """Who holds the lock by the file's content; empty if nobody does."""
    try:
        note = json.loads(path.read_text("utf-8") or "{}")
    except (OSError, ValueError):
        return {"host": None}  # somebody, but who cannot be read
    return note if isinstance(note, dict) else {}


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"
