"""Long work tells how far it is, and only one process does it."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from copyscope.training.errors import InputError

SECONDS = 5.0
"""Between two lines of progress."""


def now_and_then(say: Callable[[str], None]) -> Callable[[str], None]:
    """`tell(text)`, which hands the text to `say` if `SECONDS` have passed since it last did."""
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            say(text)
            last = time.monotonic()

    return tell


@contextmanager
def one_at_a_time(lock: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Only one process at a time is in here, on this file. `waiting()` is called if there is another. The system frees
    the lock of a process that dies, so no kill leaves one behind."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("a")
    except OSError as error:
        raise InputError(f"{lock}: cannot be written ({error.strerror}); choose a folder that can be") from None
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems have no locks; nobody waits there
        yield
