"""The explorer's page in a thread of this process, while a run trains."""

import logging
import threading
from pathlib import Path
from typing import Any

from copyscope.analyses.explorer.serve import listen
from copyscope.analyses.explorer.state import Explored
from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)


class LivePage:
    """Serves the page about one run from its first scored checkpoint until `close`.

    Its port is taken when it is made, so that what is wrong with it is said before training. Raises InputError: a port
    that is taken, starlette or uvicorn not installed.
    """

    def __init__(self, run: str | Path, port: int = 0) -> None:
        try:
            import uvicorn  # noqa: F401 - before training, not after its first checkpoint

            from copyscope.analyses.explorer.server import explorer_app  # noqa: F401
        except ImportError as error:
            raise InputError(f"--explore: needs {error.name}; install copyscope[explore]") from None
        self._run = Path(run)
        self._socket = listen("127.0.0.1", port)
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def show(self, *_: object) -> None:
        """Starts serving, at the first call; the address is logged. Call it once a checkpoint is scored."""
        if self._thread:
            return
        import uvicorn

        from copyscope.analyses.explorer.server import explorer_app

        app = explorer_app(Explored([self._run]))
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", server_header=False))
        self._thread = threading.Thread(target=self._server.run, args=[[self._socket]], daemon=True)
        self._thread.start()
        logger.info(f"live page: {self.address} (new checkpoints appear as they are scored)")

    def close(self) -> None:
        """Stops serving and frees the port."""
        if self._thread:
            self._server.should_exit = True
            self._thread.join(10)
        self._socket.close()

    def __enter__(self) -> "LivePage":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
