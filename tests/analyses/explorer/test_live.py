"""The live page: its port is taken at once, it answers from the first scored checkpoint on, and is gone afterwards."""

import json
import socket
import urllib.request
from pathlib import Path

import pytest
from written_run import config, write_run

from copyscope.analyses.explorer.live import LivePage
from copyscope.training.errors import InputError

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def test_the_page_answers_until_it_is_closed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", config(), copies_at=2000)
    with LivePage(run) as page:
        page.show()
        page.show()  # each checkpoint calls it
        with urllib.request.urlopen(page.address, timeout=20) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{page.address}changed", timeout=20) as answer:
            assert json.load(answer)["stamp"]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(page.address, timeout=5)


def test_a_taken_port_is_refused_before_training(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="--port"):
            LivePage(tmp_path / "run", taken.getsockname()[1])
