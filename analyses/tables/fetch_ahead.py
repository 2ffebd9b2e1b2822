"""While one checkpoint is measured, the next is made ready: a hub's weights are fetched, a folder's files are hashed,
which also brings them into memory. One ahead, never more."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from copyscope.training.checkpoints.keys import checkpoint_key
from copyscope.training.checkpoints.revisions import fetch_small, fetch_weights, has_weights
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError


class FetchAhead:
    """Makes one checkpoint ready at a time, in a thread. What goes wrong is for whoever loads the model to meet, who
    then asks the hub again and says it as ever."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._of: tuple[str, str] | None = None
        self._fetched = False

    def start(self, repo: str, commit: str, wanted: Callable[[Path], bool]) -> None:
        """Begins, unless another fetch goes on. `wanted` judges the folder with the config before weights are fetched
        into it."""
        self._begin((repo, commit), lambda: self._fetch(repo, commit, wanted))

    def start_reading(self, checkpoint: Checkpoint) -> None:
        """Hashes the files of a checkpoint on this machine, unless it is busy with another. The hashes are remembered
        (`training.checkpoints.hashes`)."""
        self._begin((checkpoint.path, ""), lambda: self._read(checkpoint))

    def wait_for(self, checkpoint: Checkpoint) -> None:
        """Until the files of this checkpoint are hashed, if that goes on; hashing them beside it would take longer."""
        if self._thread is not None and self._of == (checkpoint.path, ""):
            self._thread.join()

    def fetched(self, repo: str, commit: str) -> bool:
        """Whether the weights of this revision were fetched ahead; waits while they are."""
        if self._thread is None or self._of != (repo, commit):
            return False
        self._thread.join()
        return self._fetched

    def _begin(self, of: tuple[str, str], work: Callable[[], None]) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._of, self._fetched = of, False
        # A thread that the interpreter does not wait for: an interrupt ends the program, not the download.
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    @staticmethod
    def _read(checkpoint: Checkpoint) -> None:
        with contextlib.suppress(InputError):  # see the class
            checkpoint_key(checkpoint)

    def _fetch(self, repo: str, commit: str, wanted: Callable[[Path], bool]) -> None:
        try:
            place = fetch_small(repo, commit)
            if not has_weights(place) and wanted(place):
                fetch_weights(repo, place, one_by_one=True)
                self._fetched = True
        except Exception:  # see the class
            return
