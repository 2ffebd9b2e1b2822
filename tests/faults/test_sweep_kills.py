"""Workers and drivers of a sweep that are killed, stopped, or two at once: nothing is done twice, nothing is lost."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from counted_run import BREAKS, DIES_ALWAYS, DIES_ONCE, DIVERGES, SLOW, SOUND, steps_done, workers
from drive import counted_sweep
from processes import alive, until

from copyscope.training.engines.local import LocalEngine
from copyscope.training.sweeps import driver as sweeps
from copyscope.training.sweeps.driver import run_sweep
from copyscope.training.sweeps.plan import claim, parse_sweep
from copyscope.training.sweeps.worker import read_status

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "POLL", 0.02)


def test_each_run_ends_as_it_does_and_the_others_go_on(tmp_path: Path, logged: list[str]) -> None:
    endings = {
        "sound": SOUND,
        "diverges": DIVERGES,
        "breaks": BREAKS,
        "dies once": DIES_ONCE,
        "dies always": DIES_ALWAYS,
    }
    runs = [{"label": name, "seeds.eval": code} for name, code in endings.items()]
    sweep = parse_sweep({"base": "quickstart", "values": {"train.steps": 6}, "runs": runs}, tmp_path)
    claim(sweep, tmp_path)
    found = {one.run.label: one for one in run_sweep(sweep, tmp_path, LocalEngine(3), "counted_run")}
    states = {name.split(" seeds")[0].split(" eval")[0]: one.status.state for name, one in found.items()}
    assert states == {
        "sound": "finished",
        "diverges": "diverged",
        "breaks": "failed",
        "dies once": "finished",
        "dies always": "failed",
    }
    reasons = {name.split(" eval")[0]: one.status.reason for name, one in found.items()}
    assert reasons["diverges"] == "diverged at step 3"
    assert reasons["breaks"].startswith("RuntimeError: a bug in two lines; see ")
    assert reasons["dies always"].startswith("killed by signal 9, 3 times without getting further")
    for one in found.values():
        if one.status.state == "finished":
            assert steps_done(one.folder) == [1, 2, 3, 4, 5, 6], one.run.label
    log = (tmp_path / "sweep.log").read_text()
    assert all(text in log for text in logged)

    logged.clear()
    run_sweep(sweep, tmp_path, LocalEngine(3), "counted_run")
    started = {line.split(" (")[0].removeprefix("start ") for line in logged if line.startswith("start")}
    assert {name.split(" eval")[0] for name in started} == {"breaks", "dies always"}  # what failed is tried again


def test_a_killed_worker(tmp_path: Path) -> None:
    (tmp_path / SLOW).touch()
    sweep = counted_sweep(2, 30)
    claim(sweep, tmp_path)
    first = tmp_path / sweep.runs[0].run_id
    killed: list[int] = []

    def kill(what: str, done: int, total: int, note: str = "") -> None:
        if not killed and len(steps_done(first)) > 5:
            killed.extend(workers(first))
            os.kill(killed[0], signal.SIGKILL)
            (tmp_path / SLOW).unlink()

    found = run_sweep(sweep, tmp_path, LocalEngine(2), "counted_run", progress=kill)
    assert killed
    assert [one.status.state for one in found] == ["finished", "finished"]
    assert len(workers(first)) == 2
    steps = steps_done(first)
    assert set(steps) == set(range(1, 31))
    assert len(steps) <= 31  # the step it was killed in, at most, is done again
    assert steps_done(found[1].folder) == list(range(1, 31))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_ends_takes_its_workers_along(number: signal.Signals, tmp_path: Path, start: Start) -> None:
    (tmp_path / SLOW).touch()
    sweep = counted_sweep(3, 40)
    driver = start("drive.py", tmp_path, 3, 40, "local")
    folders = [tmp_path / run.run_id for run in sweep.runs]
    until(lambda: sum(bool(steps_done(folder)) for folder in folders) >= 2)
    driver.send_signal(number)
    said = driver.communicate(timeout=60)[0]
    if number == signal.SIGKILL:
        assert driver.returncode == -signal.SIGKILL
    else:
        assert driver.returncode == 130
        assert said.startswith("sweep stopped: 0 of 3 runs done")
    pids = set().union(*map(workers, folders))
    until(lambda: not any(map(alive, pids)))
    states = [read_status(folder).state for folder in folders]
    assert states.count("stopped") == 2  # saved, and said so
    before = [steps_done(folder) for folder in folders]
    assert not any(40 in steps for steps in before)

    (tmp_path / SLOW).unlink()
    assert start("drive.py", tmp_path, 3, 40, "local").wait(timeout=120) == 0
    for folder in folders:
        assert steps_done(folder) == list(range(1, 41))


def test_a_driver_killed_again_and_again(tmp_path: Path, start: Start) -> None:
    """At random moments: while it starts, between runs, while they work. The next one follows at once."""
    draw = random.Random(3)
    folders = [tmp_path / run.run_id for run in counted_sweep(4, 30).runs]
    for _ in range(5):
        driver = start("drive.py", tmp_path, 4, 30, "local")
        time.sleep(draw.uniform(0.2, 1.5))
        driver.kill()
        driver.wait()
    assert start("drive.py", tmp_path, 4, 30, "local").wait(timeout=120) == 0
    for folder in folders:
        assert steps_done(folder) == list(range(1, 31))


def test_two_drivers_at_once(tmp_path: Path, start: Start) -> None:
    sweep = counted_sweep(5, 25)
    both = [start("drive.py", tmp_path, 5, 25, "local") for _ in range(2)]
    assert [driver.wait(timeout=120) for driver in both] == [0, 0]
    for run in sweep.runs:
        assert steps_done(tmp_path / run.run_id) == list(range(1, 26))
        assert len(workers(tmp_path / run.run_id)) == 1


def test_a_second_driver_takes_over_when_the_first_dies(tmp_path: Path, start: Start) -> None:
    (tmp_path / SLOW).touch()
    sweep = counted_sweep(2, 300)
    folders = [tmp_path / run.run_id for run in sweep.runs]
    first = start("drive.py", tmp_path, 2, 300, "local")
    until(lambda: all(map(steps_done, folders)))
    second = start("drive.py", tmp_path, 2, 300, "local")
    until(lambda: "elsewhere" in (tmp_path / "sweep.log").read_text())
    first.kill()
    (tmp_path / SLOW).unlink()
    assert second.wait(timeout=120) == 0
    for folder in folders:
        assert steps_done(folder) == list(range(1, 301))


def test_nohup_is_respected(tmp_path: Path, start: Start) -> None:
    (tmp_path / SLOW).touch()
    folder = tmp_path / counted_sweep(1, 40).runs[0].run_id
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what a child inherits, as from nohup
    try:
        driver = start("drive.py", tmp_path, 1, 40, "local")
    finally:
        signal.signal(signal.SIGHUP, before)
    until(lambda: len(steps_done(folder)) > 3)
    driver.send_signal(signal.SIGHUP)
    (tmp_path / SLOW).unlink()
    assert driver.wait(timeout=60) == 0
    assert steps_done(folder) == list(range(1, 41))
