"""However often a run is stopped and resumed, each tracker has one run of it, with each step once."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.tracking import RunLog


def part(out: Path, tracker: str, first: int, until: int, last: int = 10) -> None:
    """The updates `first` + 1 … `until` of a run of `last` updates, as a process that resumes at `first` logs them."""
    out.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with=tracker, project_dir=out / "tracking")
    log = RunLog(RunConfig().with_values({"train.track": [tracker]}), out, first, last, accelerator, None)
    for step in range(first + 1, until + 1):
        log.write(step=step, loss=float(step), tokens_per_second=1.0)
    log.close()


def resumed(out: Path, tracker: str) -> None:
    """Stopped at 4, killed at 7 after its last full state at 5, finished, and asked for once more."""
    for first, until in ((0, 4), (4, 7), (5, 10), (10, 10)):
        part(out, tracker, first, until)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for wandb and trackio: what they were started with, and the steps they were given."""
    seen: dict[str, Any] = {"init": [], "steps": [], "finished": 0}

    def init(**how: Any) -> Any:
        def finish() -> None:
            seen["finished"] += 1

        seen["init"].append(how)
        return SimpleNamespace(log=lambda values, step: seen["steps"].append(step), finish=finish)

    config = SimpleNamespace(update=lambda values, allow_val_change: seen.update(config=values))
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=init, config=config))
    return seen


@pytest.mark.parametrize(("tracker", "names"), [("wandb", "id"), ("trackio", "name")])
def test_one_run_with_rising_steps(tracker: str, names: str, started: dict[str, Any], tmp_path: Path) -> None:
    resumed(tmp_path / "run", tracker)
    assert len(started["init"]) == started["finished"] == 3  # the finished run started none
    assert len({how[names] for how in started["init"]}) == 1
    assert {how["resume"] for how in started["init"]} == {"allow"}
    assert started["steps"] == list(range(1, 11))
    assert started["config"]["run_id"] == RunConfig().with_values({"train.track": [tracker]}).run_id
    part(tmp_path / "again", tracker, 0, 1)
    assert len({how[names] for how in started["init"]}) == 2  # a folder of its own is a run of its own


def test_tensorboard_shows_each_step_once_in_one_run(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    resumed(tmp_path / "run", "tensorboard")
    folder = tmp_path / "run" / "tracking" / "copyscope"
    assert {path.parent for path in folder.rglob("*") if path.is_file()} == {folder}
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(n, float(n)) for n in range(1, 11)]


def test_nothing_is_started_for_an_accelerator_without_trackers(started: dict[str, Any], tmp_path: Path) -> None:
    log = RunLog(RunConfig().with_values({"train.track": ["wandb"]}), tmp_path, 0, 5, Accelerator(cpu=True), None)
    log.write(step=1, loss=1.0)
    log.close()
    assert not started["init"]
    assert not (tmp_path / "tracking.json").exists()


def test_a_damaged_id_is_named(started: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tracking.json").write_text("{}")
    with pytest.raises(InputError, match=r"tracking\.json"):
        part(tmp_path, "wandb", 0, 1)
