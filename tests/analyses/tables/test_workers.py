"""A series measured by workers: the tables of one process, byte for byte; what is refused; who takes what."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from counted_measurer import Counter, began, counted_run
from run_command import copyscope
from tiny_series import add_checkpoint

from copyscope.analyses.tables import board as boards
from copyscope.analyses.tables import workers as driver
from copyscope.analyses.tables.ablations import Ablater, ablate
from copyscope.analyses.tables.board import MEASURED, Board, Outcome
from copyscope.analyses.tables.claimed import work
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, read_failed, run_as_json, run_from_json
from copyscope.analyses.tables.scores import score
from copyscope.analyses.tables.workers import Workers, workers_of
from copyscope.interp.models.devices import Compute
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.engines import locks
from copyscope.training.engines.protocol import Job
from copyscope.training.errors import InputError

FAST = ("--samples", "5", "--measures", "previous_token", "--quiet")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four checkpoints, the second of which has no weights."""
    folder = tmp_path_factory.mktemp("series") / "tiny"
    for step in (0, 1, 8, 64):
        add_checkpoint(folder, step)
    (folder / "step1" / "model.safetensors").unlink()
    return folder


def copied(series: Path, folder: Path) -> Path:
    return Path(shutil.copytree(series, folder / series.name))


def results(folder: Path) -> dict[str, bytes]:
    paths = [path for path in (folder / "results").rglob("*") if path.suffix == ".parquet"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_the_tables_are_those_of_one_process(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = copied(series, tmp_path / "one"), copied(series, tmp_path / "two")
    score(one, ["previous_token"], samples=5)
    ablate(one, [0, 8], samples=5, loss_prompts=2, heads="L0H1,L1")
    assert copyscope(monkeypatch, "score", str(two), *FAST, "--jobs", "2") == 1
    named = [line for line in capsys.readouterr().err.splitlines() if "step 1 is not measured" in line]
    assert len(named) == 1
    assert read_failed(open_run(two)).keys() == {1}
    run = open_run(two)
    ablater = Ablater(heads=[(0, 1), (1, "attention")], samples=5, loss_prompts=2, compute=Compute(max_bytes=2**26))
    by_worker = Ablater.from_json(json.loads(json.dumps(ablater.arguments)))
    board = Board(tmp_path / "board")
    work(run, by_worker, [run.series.checkpoints[0], run.series.checkpoints[2]], board, tmp_path / "log.txt")
    assert [board.read(step).state for step in (0, 8)] == [MEASURED, MEASURED]
    assert results(one) == results(two)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jobs", "0"], "--jobs 0"),
        (["--engine", "lokal"], "--engine lokal"),
        (["--option", "gpus=1"], "--option"),
        (["--engine", "local", "--option", "gpus=1"], "--option gpus"),
        (["--engine", "slurm"], "--engine slurm"),
        (["--engine", "ray", "--option", "address=127.0.0.1:1"], "--option address=127.0.0.1:1"),
        (["--jobs", "2", "--device", "cuda:1"], "--device cuda:1"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: list[str],
    says: str,
    series: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install copyscope[slurm]")
    pytest.importorskip("ray", reason="needs Ray: pip install copyscope[ray]")
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here, even where there is one
    for command in ("score", "ablate"):
        assert copyscope(monkeypatch, command, str(series), *options) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert says in lines[0]
    assert not (series / "results").exists()  # nothing is half written


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_of(None, None) is workers_of(None, 1) is None
    monkeypatch.setattr(driver, "jobs_at_once", lambda jobs: jobs or 4)
    for gpus, wanted in ((["0", "1", "2"], 3), (["0"], 4), ([], 4)):
        monkeypatch.setattr(driver, "visible_gpus", lambda gpus=gpus: gpus)
        assert Workers().count(100) == wanted
        assert Workers().count(2) == 2
        assert Workers(jobs=8).count(100) == 8
        assert Workers(device="cpu").count(100) == 4
    assert Workers(engine="slurm").count(7) == 7  # as many as fit
    named = workers_of(None, 2)
    assert named is not None
    assert named.engine == "local"


def test_each_worker_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen: list[str] = []

    def start_child(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        return subprocess.Popen(["true"], stdin=subprocess.PIPE)

    monkeypatch.setattr("copyscope.training.engines.local.start_child", start_child)
    engine, count = Workers().start(tmp_path, 100)
    assert count == engine.room() == 2
    for _ in range(2):
        engine.start(Job(folder=tmp_path, module="none"))
    assert seen == ["3", "5"]
    engine.stop()


def test_a_run_as_json(series: Path) -> None:
    run = open_run(series)
    assert run_from_json(json.loads(json.dumps(run_as_json(run)))) == run


def test_which_checkpoint_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at work elsewhere is passed over; one whose worker died on another machine comes last, and is taken over."""
    monkeypatch.setattr(boards, "held", partial(locks.held, stale=0.2))
    checkpoints = counted_run(tmp_path, range(4)).series.checkpoints
    board, other = Board(tmp_path / "board"), Board(tmp_path / "board")
    (tmp_path / "board" / "locks").mkdir(parents=True)
    sign = {"host": "elsewhere", "pid": 1, "token": "theirs", "beat": 0}
    (tmp_path / "board" / "locks" / "step00000000").write_text(json.dumps(sign))
    first, second = board.take(checkpoints), other.take(checkpoints)
    assert first is not None
    assert second is not None
    assert (first.checkpoint.step, second.checkpoint.step) == (1, 2)
    assert other.take(checkpoints[1:3]) is None
    other.write(2, Outcome(state=MEASURED))
    second.release()
    ahead = other.take(checkpoints, but=2)
    assert ahead is not None
    assert ahead.checkpoint.step == 3
    assert other.take(checkpoints, but=3) is None  # one that has work does not wait to learn who died
    third = other.take(checkpoints)
    assert third is not None
    assert third.checkpoint.step == 0
    first.release()
    again = board.take(checkpoints)
    assert again is not None
    assert again.checkpoint.step == 1  # released, and nothing came of it


def test_of_a_hub_series_the_next_checkpoint_is_claimed_meanwhile(tmp_path: Path) -> None:
    """So that its weights can be fetched, and by nobody else."""
    steps = [Checkpoint(step, None, "lab/model", f"step{step}") for step in range(3)]
    board, other = Board(tmp_path / "board"), Board(tmp_path / "board")
    counter, ahead, free = Counter(), [], []
    measure = counter.measure

    def watched(run: Run, checkpoint: Checkpoint) -> None:
        claim = other.take(steps)
        free.append(claim is not None)
        if claim is not None:
            claim.release()
        ahead.append(None if counter.models.next is None else counter.models.next.step)
        measure(run, checkpoint)

    counter.measure = watched  # type: ignore[method-assign]
    (tmp_path / "worker").mkdir()
    work(counted_run(tmp_path, []), counter, steps, board, tmp_path / "worker" / "log.txt")
    order = [step for step, _ in began(tmp_path)]
    assert sorted(order) == [0, 1, 2]
    assert ahead == [*order[1:], None]
    assert free == [True, False, False]


def test_a_measurer_of_its_own_has_a_board_of_its_own(tmp_path: Path) -> None:
    run = counted_run(tmp_path, range(2))
    folders = {driver.Shift(run, Counter(word)).board.folder for word in ("a", "b", "a")}
    assert len(folders) == 2


def test_engines_are_refused_in_python_too(series: Path) -> None:
    with pytest.raises(InputError, match="no such engine"):
        score(series, engine="lokal", jobs=2)
