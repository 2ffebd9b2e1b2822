"""Sweeps and series on Ray and Slurm: they end as on one machine, a node that dies costs a step or a checkpoint.

Slurm is stood in for by submitit's own local executor: scripts, pickles and signals as on a cluster, but no queue.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counted_measurer import began, count, counted_run, table
from counted_run import DIES_ONCE, SLOW, steps_done, workers
from drive import counted_sweep
from processes import alive, until

from copyscope.analyses.tables import workers as series_workers
from copyscope.analyses.tables.run import Run
from copyscope.analyses.tables.workers import Workers
from copyscope.training import engines
from copyscope.training.engines import make_engine
from copyscope.training.errors import InputError, Stopped
from copyscope.training.sweeps import driver as sweeps
from copyscope.training.sweeps.driver import run_sweep
from copyscope.training.sweeps.plan import claim, parse_sweep
from copyscope.training.sweeps.worker import read_status

HELPERS = Path(__file__).parents[1] / "helpers"
LOCAL_SLURM = {"cluster": "local", "timeout_min": 5}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    monkeypatch.setattr(sweeps, "POLL", 0.05)
    monkeypatch.setattr(series_workers, "POLL", 0.05)
    # submitit's stand-in for Slurm is cancelled by an interrupt, which tests in the background of a script ignore.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, each with room for one run."""
    pytest.importorskip("ray", reason="needs Ray: pip install copyscope[ray]")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(HELPERS)  # what Ray's processes start with
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def test_ray_with_a_node_that_dies(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where the cluster was not started
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    sweep = counted_sweep(2, 150)
    claim(sweep, tmp_path)
    (tmp_path / SLOW).touch()
    folders = [tmp_path / run.run_id for run in sweep.runs]
    engine = make_engine("ray", tmp_path, 2, {"address": cluster.address})
    removed: list[Any] = []

    def lose(what: str, done: int, total: int, note: str = "") -> None:
        if not removed and all(len(steps_done(folder)) > 3 for folder in folders):
            removed.append(node)
            cluster.remove_node(node, allow_graceful=False)
            (tmp_path / SLOW).unlink()

    found = run_sweep(sweep, tmp_path, engine, "counted_run", progress=lose)
    assert removed
    assert [one.status.state for one in found] == ["finished", "finished"]
    assert sum("again " in line for line in logged) == 1
    assert sorted(len(workers(folder)) for folder in folders) == [1, 2]
    for folder in folders:
        assert (folder / "where").read_text() == str(tmp_path)  # so a relative corpus is found
        steps = steps_done(folder)
        assert set(steps) == set(range(1, 151))
        assert len(steps) <= 151

    # Stopping lets the runs save; what is too large for the cluster is refused.
    other = counted_sweep(1, 5000)
    claim(other, tmp_path / "other")
    folder = tmp_path / "other" / other.runs[0].run_id

    def interrupt(what: str, done: int, total: int, note: str = "") -> None:
        if len(steps_done(folder)) > 3:
            raise KeyboardInterrupt

    with pytest.raises(Stopped, match="0 of 1 runs done"):
        run_sweep(other, tmp_path / "other", engine, "counted_run", progress=interrupt)
    assert read_status(folder).state == "stopped"
    with pytest.raises(InputError, match="--option gpus=64: the Ray cluster has 0 GPUs"):
        make_engine("ray", tmp_path, 1, {"gpus": 64})


def measured_once_but(folder: Path, run: Run, killed: int) -> None:
    """All checkpoints are there, and none but the one that was lost was begun twice."""
    steps = [checkpoint.step for checkpoint in run.series.checkpoints]
    begun = [step for step, _ in began(folder)]
    assert {step: begun.count(step) for step in steps} == {step: 1 + (step == killed) for step in steps}
    assert all(table(folder, step).is_file() for step in steps)
    assert [path.name for path in (folder / "results").iterdir()] == ["counted"]


def test_a_series_on_ray_with_a_node_that_dies(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    (tmp_path / SLOW).touch()
    run, lost = counted_run(tmp_path, range(6)), []

    def lose() -> None:
        until(lambda: len(began(tmp_path)) == 2)
        cluster.remove_node(node, allow_graceful=False)
        until(lambda: any("a worker ended" in line for line in logged))
        lost.extend(step for step, pid in began(tmp_path) if not alive(pid))
        (tmp_path / SLOW).unlink()

    thread = threading.Thread(target=lose)
    thread.start()
    tally, counter = count(run, Workers(engine="ray", options={"address": cluster.address}))
    thread.join()
    assert (tally.done, tally.failed) == (6, {})
    assert max(counter.checked) == 5 / 1e6
    assert len(lost) == 1
    measured_once_but(tmp_path, run, lost[0])


def test_a_series_on_slurm_with_a_job_that_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install copyscope[slurm]")
    (tmp_path / SLOW).touch()
    run, killed = counted_run(tmp_path, range(6)), []

    def kill() -> None:
        until(lambda: len(began(tmp_path)) == 2)
        killed.append(began(tmp_path)[0])
        os.kill(killed[0][1], signal.SIGKILL)
        (tmp_path / SLOW).unlink()

    threading.Thread(target=kill, daemon=True).start()
    tally, _ = count(run, Workers(engine="slurm", jobs=2, options=LOCAL_SLURM))
    assert (tally.done, tally.failed) == (6, {})
    measured_once_but(tmp_path, run, killed[0][0])


def test_a_ray_cluster_that_cannot_be_reached(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install copyscope[ray]")
    from copyscope.training.engines.ray_cluster import _connect

    for address in ("127.0.0.1:1", "nonsense", "127.0.0.1:99999999"):
        with pytest.raises(InputError, match=f"--option address={address}: no Ray cluster answers there") as error:
            _connect(address)
        assert len(str(error.value).splitlines()) == 1


def test_slurm_jobs_end_as_they_do(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install copyscope[slurm]")
    runs = [{"label": "sound"}, {"label": "dies", "seeds.eval": DIES_ONCE}]
    sweep = parse_sweep({"base": "quickstart", "values": {"train.steps": 6}, "runs": runs}, tmp_path)
    claim(sweep, tmp_path)
    found = run_sweep(sweep, tmp_path, make_engine("slurm", tmp_path, None, LOCAL_SLURM), "counted_run")
    assert [one.status.state for one in found] == ["finished", "finished"]
    assert [steps_done(one.folder) for one in found] == [[1, 2, 3, 4, 5, 6]] * 2


def test_a_slurm_job_that_is_killed_or_stopped(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="needs submitit: pip install copyscope[slurm]")
    sweep = counted_sweep(1, 5000)
    claim(sweep, tmp_path)
    folder = tmp_path / sweep.runs[0].run_id
    killed: list[int] = []

    def kill_then_interrupt(what: str, done: int, total: int, note: str = "") -> None:
        pids = workers(folder)
        if not killed and len(steps_done(folder)) > 3:
            killed.extend(pids)
            os.kill(killed[0], signal.SIGKILL)
        if len(pids) == 2:
            raise KeyboardInterrupt

    engine = make_engine("slurm", tmp_path, None, LOCAL_SLURM)
    with pytest.raises(Stopped):
        run_sweep(sweep, tmp_path, engine, "counted_run", progress=kill_then_interrupt)
    end = time.monotonic() + 30
    while read_status(folder).state != "stopped" and time.monotonic() < end:
        time.sleep(0.05)
    assert read_status(folder).state == "stopped"
    steps = steps_done(folder)
    assert set(steps) == set(range(1, max(steps) + 1))
    assert len(steps) <= max(steps) + 1


def test_a_cluster_s_task_hears_an_interrupt_where_its_program_ignores_it(tmp_path: Path) -> None:
    """As one does that a script started with `&`, and so its children."""
    (tmp_path / SLOW).touch()
    sweep = counted_sweep(1, 100)
    claim(sweep, tmp_path)
    folder = tmp_path / sweep.runs[0].run_id
    task = (
        "import sys; from pathlib import Path; from copyscope.training.engines.protocol import Job; "
        "from copyscope.training.engines.child import run_child; "
        "sys.exit(run_child(Job(folder=Path(sys.argv[1]), module='counted_run'), {}))"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        program = subprocess.Popen([sys.executable, "-c", task, str(folder)])
    finally:
        signal.signal(signal.SIGINT, before)
    end = time.monotonic() + 60
    while len(steps_done(folder)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=60) == 1
    assert read_status(folder).state == "stopped"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("lokal", {}, "--engine lokal: no such engine; use local, ray, slurm"),
        ("local", {"gpus": 1}, "--option gpus: the engine local has no options"),
        ("ray", {"partition": "x"}, "--option partition: the engine ray has address, cpus, gpus"),
        ("ray", {"gpus": "many"}, "--option gpus=many: give a number"),
        ("slurm", {}, "--engine slurm: no sbatch on this machine"),
        ("slurm", {"cluster": "local", "partion": "x"}, "--option: submitit refuses it"),
    ],
)
def test_engines_that_cannot_be_used(
    name: str, options: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here, even where there is one
    package = engines.PACKAGES.get(name)
    if package:
        pytest.importorskip(package, reason=f"needs {package}: pip install copyscope[{name}]")
    with pytest.raises(InputError, match=says) as error:
        make_engine(name, tmp_path, 1, options)
    assert len(str(error.value).splitlines()) == 1


def test_an_engine_whose_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for name in ("ray", "slurm"):
        with pytest.raises(InputError, match=rf'pip install "copyscope\[{name}\]"'):
            make_engine(name, tmp_path)
    with pytest.raises(InputError, match="--jobs 0"):
        make_engine("local", tmp_path, 0)
