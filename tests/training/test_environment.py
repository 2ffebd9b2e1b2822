"""A run says what it was computed with, also where that changes on the way; a replay takes the run's threads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import small_config, write_corpus

from copyscope.analyses.cli import app
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.summary import provenance
from copyscope.training import replay as replays
from copyscope.training.environment import FILE, at_step, differences, environments
from copyscope.training.errors import InputError
from copyscope.training.trainer import train
from copyscope.training.zoom import zoom


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Trained to step 6 with one thread, from there on with two."""
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    config = small_config(corpus, {"train.threads": None, "checkpoints.state_every": 6})
    torch.set_num_threads(1)

    def cut(what: str, step: int, total: int, note: str = "") -> None:
        if step == 8:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(config, tmp_path / "run", progress=cut)
    torch.set_num_threads(2)
    return train(config, tmp_path / "run")


def test_what_a_run_was_computed_with(run: Path) -> None:
    first, second = environments(run)
    assert (first["from_step"], first["threads"]) == (0, 1)
    assert (second["from_step"], second["threads"]) == (6, 2)
    assert (first["torch"], first["device"], first["processes"]) == (torch.__version__, "cpu", 1)
    assert (first["precision"], first["compiled"]) == ("float32", False)
    assert [at_step(run, step)["threads"] for step in (0, 5, 6, 20)] == [1, 1, 2, 2]
    assert differences(first, second) == "threads 1 and 2"
    train(open_run(run).config, run)  # type: ignore[arg-type]
    assert environments(run) == [first, second]  # finished already: nothing was computed
    facts = provenance(open_run(run))
    assert "threads 1, processes 1" in facts["trained from step 0 with"]
    assert "threads 2, processes 1" in facts["trained from step 6 with"]


def test_a_replay_has_the_threads_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = replays.run_updates, []

    def look(*arguments: Any, **more: Any) -> None:
        seen.append(torch.get_num_threads())
        plain(*arguments, **more)

    monkeypatch.setattr(replays, "run_updates", look)
    torch.set_num_threads(2)
    assert zoom(run, 1, 3).added == [3]
    torch.set_num_threads(1)
    assert zoom(run, 13, 15).added == [13, 14, 15]
    assert (seen, torch.get_num_threads()) == ([1, 2], 1)


def test_a_replay_that_differs_says_what_was_different(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("lr = 0.001", "lr = 0.0011"))
    noted = environments(run)
    (run / FILE).write_text(json.dumps([one | {"processor": "abacus"} for one in noted]))
    assert app(["zoom", str(run), "--from", "1", "--to", "3", "--quiet"], standalone_mode=False) == 1
    said = capsys.readouterr().out
    assert f"differ at step 1; run and replay had processor abacus and {noted[0]['processor']})" in said


def test_a_damaged_note_is_one_clear_line(run: Path) -> None:
    assert environments(run.parent) == []
    for text in ("[", "[1]", '[{"threads": 1}]', "{}x"):
        (run / FILE).write_text(text)
        with pytest.raises(InputError, match=f"{FILE}: damaged .*; delete it") as error:
            environments(run)
        assert "\n" not in str(error.value)
