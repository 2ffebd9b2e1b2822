"""Workers and drivers of a series that are killed, stopped, or two at once: nothing is done twice, nothing is lost."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from counted_measurer import BREAKS, DIES, FAILS, SLOW, began, count, counted_run, table
from processes import alive, until

from copyscope.analyses.tables import workers as driver
from copyscope.analyses.tables.workers import Workers
from copyscope.training.errors import InputError

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "POLL", 0.02)


def tables(folder: Path, steps: range | list[int]) -> list[str]:
    return [table(folder, step).read_text() for step in steps]


def test_a_killed_worker_costs_its_checkpoint_only(tmp_path: Path) -> None:
    """And what cannot be measured, shows a bug or kills its worker each time is named once; the others are measured."""
    (tmp_path / SLOW).touch()
    killed: list[tuple[int, int]] = []
    noted: list[tuple[int, int]] = []

    def kill() -> None:
        until(lambda: bool(began(tmp_path)))
        killed.append(began(tmp_path)[0])
        os.kill(killed[0][1], signal.SIGKILL)
        (tmp_path / SLOW).unlink()

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        noted.append((done, total))

    threading.Thread(target=kill, daemon=True).start()
    steps = [0, 1, 2, 3, FAILS, BREAKS, DIES]
    tally, _ = count(counted_run(tmp_path, steps), Workers(jobs=2), progress)
    assert tables(tmp_path, steps[:4]) == [f"counted {step} of counted" for step in range(4)]
    assert set(tally.failed) == {FAILS, BREAKS, DIES}
    assert tally.failed[FAILS] == "no such weights"
    assert tally.failed[BREAKS].startswith("RuntimeError: a bug; see ")
    assert "killed 3 times" in tally.failed[DIES]
    assert noted[-1] == (7, 7)
    begun = [step for step, _ in began(tmp_path)]
    expected = dict.fromkeys(steps, 1) | {DIES: 3}
    expected[killed[0][0]] += killed[0][0] != DIES
    assert {step: begun.count(step) for step in steps} == expected
    logs = list((tmp_path / "results" / ".work").rglob("log.txt"))
    assert any("a bug" in log.read_text() for log in logs)  # kept to be looked at

    again, _ = count(counted_run(tmp_path, steps), Workers(jobs=9))
    assert set(again.failed) == {FAILS, BREAKS, DIES}  # what failed is tried again, and nothing else
    assert {step for step, _ in began(tmp_path)[len(begun) :]} == {FAILS, BREAKS, DIES}


def test_two_drivers_at_once(tmp_path: Path, start: Start) -> None:
    both = [start("counted_measurer.py", tmp_path, 30, 2) for _ in range(2)]
    assert [driver.wait(timeout=120) for driver in both] == [0, 0]
    assert sorted(step for step, _ in began(tmp_path)) == list(range(30))
    assert tables(tmp_path, range(30)) == [f"counted {step} of counted" for step in range(30)]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["counted"]  # the last one tidies up


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_ends_takes_its_workers_along(number: signal.Signals, tmp_path: Path, start: Start) -> None:
    (tmp_path / SLOW).touch()
    driver = start("counted_measurer.py", tmp_path, 4, 2)
    until(lambda: len(began(tmp_path)) == 2)
    driver.send_signal(number)
    said = driver.communicate(timeout=60)[0]
    if number == signal.SIGKILL:
        assert driver.returncode == -signal.SIGKILL
    else:
        assert driver.returncode == 130
        assert "0 of 4 done" in said
    until(lambda: not any(alive(pid) for _, pid in began(tmp_path)))
    assert not (tmp_path / "results" / "counted").exists()

    (tmp_path / SLOW).unlink()
    assert start("counted_measurer.py", tmp_path, 4, 2).wait(timeout=120) == 0
    assert tables(tmp_path, range(4)) == [f"counted {step} of counted" for step in range(4)]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["counted"]


def test_workers_that_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MODULE", "copyscope.no_such_module")
    with pytest.raises(InputError, match="no_such_module") as error:
        count(counted_run(tmp_path, range(3)), Workers(jobs=2))
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "results" / "counted").exists()
