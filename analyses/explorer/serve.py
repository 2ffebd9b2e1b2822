"""Starts the explorer's server on this machine and opens the browser."""

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from copyscope.analyses.explorer.state import Explored
from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)

PORT = 7117
"""Where the explorer is found unless told otherwise."""


def explore(
    sources: Sequence[str | Path],
    port: int | None = None,
    host: str = "127.0.0.1",
    browser: bool = True,
    device: str = "auto",
    dtype: str = "float32",
) -> None:
    """Serves the page about scored runs until it is interrupted; the address is logged.

    `port` None: `PORT`, so that links stay good from one day to the next, or a free one where that is taken; 0 takes a
    free one. `device` and `dtype` of the models that compute attention, as for `score`. Raises
    InputError: no such run, a host that is not this machine, a port that is taken, a device that is not there,
    starlette or uvicorn not installed.
    """
    if (device, dtype) != ("auto", "float32"):  # which need no look, and so no torch before the page is there
        from copyscope.interp.models.devices import Compute

        Compute(device=device, dtype=dtype)
    explored = Explored(sources, device, dtype)
    listening = listen(host, port) if port is not None else _usual(host)
    try:
        import uvicorn

        from copyscope.analyses.explorer.server import explorer_app
    except ImportError as error:
        listening.close()
        raise InputError(f"explore: needs {error.name}; install copyscope[explore]") from None
    address = f"http://{host}:{listening.getsockname()[1]}/"
    config = uvicorn.Config(explorer_app(explored), log_level="warning", lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    logger.info(f"explorer: {address} (Ctrl-C stops it)")
    threading.Thread(target=_read_ahead, args=[explored], daemon=True).start()
    if browser and has_display():
        threading.Timer(0.5, webbrowser.open, [address]).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # how one leaves
        pass
    finally:
        listening.close()


def _usual(host: str) -> socket.socket:
    """A socket at `PORT`, or a free one where another program has it."""
    with contextlib.suppress(InputError):
        return listen(host, PORT)
    return listen(host, 0)


def _read_ahead(explored: Explored) -> None:
    """Reads the tables while the browser starts, then loads the last model: the curves are there before torch is.
    What is wrong with a table the page asks for and shows."""
    with contextlib.suppress(InputError):
        explored.index()
    explored.warm_up()


def listen(host: str, port: int) -> socket.socket:
    """A socket on this machine. Raises InputError for any other host, or a port that cannot be had."""
    try:
        near = host == "localhost" or ipaddress.ip_address(host) in ipaddress.ip_network("127.0.0.0/8")
    except ValueError:
        near = False
    if not near:
        raise InputError(
            f"--host {host}: the explorer has no password and serves this machine only; from elsewhere, use "
            "`ssh -L 8000:127.0.0.1:8000` and --port 8000"
        )
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(128)  # from here on a browser waits for the answer instead of being refused
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--port {port}: {reason}; give another, or 0 for a free one") from None
    return opened


def has_display() -> bool:
    """Whether a browser of its own window can be opened here."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
