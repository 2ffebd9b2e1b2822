"""A run that is killed, stopped or starved of disk at any moment goes on to the very weights of an undisturbed one."""

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from child_run import STEPS, run_child, write_corpus
from safetensors.torch import load_file

from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.verify import verify

# Its server imports torch once; every child is a fork of that. (It does not look in this folder for modules.)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["copyscope.training.trainer"])


def start(out: Path, corpus: Path, **limits: Any) -> tuple[Any, Any]:
    ours, theirs = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=run_child, args=(str(out), str(corpus), theirs), kwargs=limits)
    child.start()
    theirs.close()
    return child, ours


def to_the_end(out: Path, corpus: Path, **limits: Any) -> list[Any]:
    """What the child sent: steps of checkpoints, then how it ended."""
    child, pipe = start(out, corpus, **limits)
    sent = []
    try:
        while True:
            sent.append(pipe.recv())
    except EOFError:
        child.join()
    return sent


def weights(run: Path) -> dict[str, dict[str, bytes]]:
    """The exact bytes of every weight of every checkpoint."""
    return {
        folder.name: {name: value.numpy().tobytes() for name, value in load_file(folder / "model.safetensors").items()}
        for folder in sorted((run / "checkpoints").glob("step*"))
    }


def logged(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_the_same(run: Path, undisturbed: Path) -> None:
    assert verify(CheckpointSeries.open(run)) == []
    assert weights(run) == weights(undisturbed)
    assert logged(run) == list(range(STEPS + 1))
    assert not list((run / "checkpoints").glob(".*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_corpus(root / "corpus.jsonl")
    assert to_the_end(root / "undisturbed", root / "corpus.jsonl")[-1] == "finished"
    return root / "undisturbed"


@pytest.fixture
def out(undisturbed: Path, request: pytest.FixtureRequest) -> Path:
    return undisturbed.with_name(request.node.name)


def kill(child: Any) -> bool:
    """Whether the child was still at work."""
    child.kill()  # no error when it has just ended by itself
    child.join()
    return child.exitcode == -signal.SIGKILL


def is_sound(out: Path) -> bool:
    """At every moment: what is listed as a checkpoint is whole."""
    started = (out / "checkpoints").is_dir() and any((out / "checkpoints").glob("step*"))
    return not started or verify(CheckpointSeries.open(out)) == []


def test_killed_a_hundred_times_half_of_them_in_the_middle_of_a_save(undisturbed: Path, out: Path) -> None:
    draw = random.Random(0)
    corpus = undisturbed.with_name("corpus.jsonl")
    between, within, runs = 0, 0, 0
    run = out.with_name(f"{out.name}_0")
    for _ in range(600):
        child, pipe = start(run, corpus, tell_writes=between >= 50)
        try:
            if between < 50:  # at a random checkpoint or before the first, then a random moment later
                for _ in range(draw.randint(0, 3)):
                    pipe.recv()
                time.sleep(draw.random() * 0.1)
            else:
                for _ in range(draw.randint(1, 25)):
                    while pipe.recv() != "writing":
                        pass
        except EOFError:  # it has finished
            pass
        killed = kill(child)
        half_written = any(
            path.name.startswith(".") for part in ("checkpoints", "resume") for path in run.glob(f"{part}/*")
        )
        between += killed and between < 50
        within += killed and half_written and between >= 50
        assert is_sound(run)
        if child.exitcode == 0 or (between == 50 and within >= 50):
            assert to_the_end(run, corpus)[-1] == "finished"
            assert_the_same(run, undisturbed)
            runs += 1
            run = out.with_name(f"{out.name}_{runs}")
        if between == 50 and within >= 50:
            break
    assert (between, within) == (50, 50)


def test_killed_while_the_token_store_is_made(undisturbed: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copy(undisturbed.with_name("corpus.jsonl"), tmp_path / "corpus.jsonl"))
    out = tmp_path / "run"
    for part in ("tokenizer.json", "train-00000.bin", "counts.bin", "index.json"):
        child, _ = start(out, corpus)
        while child.is_alive() and not list(tmp_path.glob(f"tokens/*/*{part}*")):
            time.sleep(0.001)
        child.kill()
        child.join()
    assert to_the_end(out, corpus)[-1] == "finished"
    assert weights(out) == weights(undisturbed)


def test_stopped_by_sigterm(undisturbed: Path, out: Path) -> None:
    corpus = undisturbed.with_name("corpus.jsonl")
    assert to_the_end(out, corpus, stop_at=7)[-1].startswith("Stopped: stopped at step 7 of 40, saved in")
    assert (out / "resume" / "step00000007").is_dir()
    assert logged(out) == list(range(8))
    sent = to_the_end(out, corpus)
    assert sent[0] == 8  # nothing is trained twice
    assert sent[-1] == "finished"
    assert_the_same(out, undisturbed)


# Bytes: a line of the log needs hundreds, a tokenizer thousands, the weights 158,000, a full state 475,000.
@pytest.mark.parametrize("size", [400, 3_000, 50_000, 250_000])
def test_the_disk_fills_up(size: int, undisturbed: Path, out: Path) -> None:
    corpus = undisturbed.with_name("corpus.jsonl")
    end = to_the_end(out, corpus, full=(10, size))[-1]
    assert end.startswith("InputError: no space left while writing"), end
    assert len(end.splitlines()) == 1
    series = CheckpointSeries.open(out)
    assert [c.step for c in series.checkpoints][:4] == [0, 1, 2, 4]
    assert series.checkpoints[-1].step in (8, 12)
    assert verify(series) == []
    assert to_the_end(out, corpus)[-1] == "finished"
    assert_the_same(out, undisturbed)


@pytest.mark.parametrize("size", [100, 12_000])
def test_the_disk_is_full_before_the_tokens_are_written(size: int, undisturbed: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copy(undisturbed.with_name("corpus.jsonl"), tmp_path / "corpus.jsonl"))
    end = to_the_end(tmp_path / "run", corpus, full=(-1, size))[-1]
    assert end.startswith("InputError: no space left while writing"), end
    assert to_the_end(tmp_path / "run", corpus)[-1] == "finished"
    assert weights(tmp_path / "run") == weights(undisturbed)
