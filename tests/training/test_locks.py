"""The lock of a run: one holder, freed by its death, taken over from a machine that gave no sign of life."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from copyscope.training.engines import locks
from copyscope.training.engines.locks import Busy, held
from copyscope.training.errors import InputError

HOLD = (
    "import sys, time; from pathlib import Path; from copyscope.training.engines.locks import held\n"
    "with held(Path(sys.argv[1]), lost=lambda: None): print('held', flush=True); time.sleep(60)"
)


def never() -> None:
    raise AssertionError("lost")


def written_by(path: Path, host: str, beat: int = 0) -> None:
    path.write_text(json.dumps({"host": host, "pid": 1, "token": "theirs", "beat": beat}))


def test_one_holder_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PAUSE", 0.01)
    path = tmp_path / "run" / "lock"
    with held(path, never), pytest.raises(Busy, match=f"on {re.escape(locks.machine())}"), held(path, never):
        pass
    assert path.read_text() == ""
    with held(path, never):
        pass


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    with child.stdout:
        assert child.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=str(child.pid)), held(path, never):
        pass
    child.kill()
    child.wait()
    with held(path, never, stale=60.0):
        assert json.loads(path.read_text())["pid"] != child.pid


def test_another_machine_without_a_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    written_by(path, "elsewhere")
    with held(path, never, stale=0.2):
        assert json.loads(path.read_text())["host"] == locks.machine()


def test_another_machine_that_lives(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    written_by(path, "elsewhere")
    done = threading.Event()

    def live() -> None:
        beat = 0
        while not done.wait(0.05):
            beat += 1
            written_by(path, "elsewhere", beat)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(Busy, match="on elsewhere"), held(path, never, stale=2.0):
            pass
    finally:
        done.set()
        thread.join()


def test_without_locks_of_the_system_the_sign_of_life_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_PAUSE", 0.01)
    path = tmp_path / "lock"
    with held(path, never, beat=0.05), pytest.raises(Busy), held(path, never, stale=5.0):
        pass
    with held(path, never):
        pass


def test_a_holder_learns_that_it_was_taken_for_dead(tmp_path: Path) -> None:
    path, lost = tmp_path / "lock", threading.Event()
    with held(path, lost.set, beat=0.05):
        written_by(path, "elsewhere")
        assert lost.wait(5)
    assert json.loads(path.read_text())["host"] == "elsewhere"  # theirs now: left alone


def test_the_sign_of_life_moves_and_is_never_seen_half_written(tmp_path: Path) -> None:
    path, seen = tmp_path / "lock", set()
    with held(path, never, beat=0.001):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            seen.add(json.loads(path.read_text())["beat"])
    assert len(seen) > 5


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), held(tmp_path / "file" / "lock", never):
        pass
