"""While one checkpoint of a hub series is measured, the weights of the next are fetched: one ahead, never more."""

import threading
from collections.abc import Callable
from pathlib import Path

from copyscope.training.checkpoints.revisions import fetch_small, fetch_weights, has_weights


class FetchAhead:
    """Fetches one revision's weights at a time in a thread. What goes wrong is for whoever loads the model to meet, who
    then asks the hub again and says it as ever."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._revision: tuple[str, str] | None = None
        self._fetched = False

    def start(self, repo: str, commit: str, wanted: Callable[[Path], bool]) -> None:
        """Begins, unless another fetch goes on. `wanted` judges the folder with the config before weights are fetched
        into it."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._revision, self._fetched = (repo, commit), False
        # A thread that the interpreter does not wait for: an interrupt ends the program, not the download.
        self._thread = threading.Thread(target=self._fetch, args=(repo, commit, wanted), daemon=True)
        self._thread.start()

    def fetched(self, repo: str, commit: str) -> bool:
        """Whether the weights of this revision were fetched ahead; waits while they are."""
        if self._thread is None or self._revision != (repo, commit):
            return False
        self._thread.join()
        return self._fetched

    def _fetch(self, repo: str, commit: str, wanted: Callable[[Path], bool]) -> None:
        try:
            place = fetch_small(repo, commit)
            if not has_weights(place) and wanted(place):
                fetch_weights(repo, place, one_by_one=True)
                self._fetched = True
        except Exception:  # see the class
            return
