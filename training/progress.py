"""How long work reports its progress, and how only one process at a time does it.

What is worth telling goes to `logging`, under the module's name; the command line shows it (`commands.console`).
"""

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""Between two lines of progress."""


@runtime_checkable
class Progress(Protocol):
    """Called with what is being done, how many units of it are done, of how many, and a note ("loss 3.21")."""

    def __call__(self, what: str, done: int, total: int, /, note: str = "") -> object: ...


def now_and_then(logger: logging.Logger) -> Callable[[str], None]:
    """`tell(text)`, which logs the text if `SECONDS` have passed since it last did."""
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS:
            logger.info(text)
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
