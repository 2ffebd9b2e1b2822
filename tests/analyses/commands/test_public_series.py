"""Commands about a public series, on a hub of this machine, and what Ctrl-C says."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_command import copyscope
from stand_in_hub import hub_of_this_process
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig

from copyscope.analyses.tables.scores import Scorer
from copyscope.interp.measures.heads import score_heads

FAST = ("--samples", "5", "--measures", "previous_token", "--quiet")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """The models that a stand-in hub serves, and what it is asked for."""
    models = tmp_path / "hub" / "lab" / "tiny"
    for step in (0, 10, 20):
        config = LlamaConfig(
            vocab_size=600,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(models / f"step{step}")
    monkeypatch.chdir(tmp_path)
    with hub_of_this_process(tmp_path / "hub", tmp_path / "cache", monkeypatch) as asked:
        yield models, asked


def scored_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("step")) for path in folder.glob("results/heads/step*.parquet"))


def fetched(asked: list[str]) -> list[str]:
    return [path for path in asked if path.endswith(".safetensors") and "/resolve/" in path]


def test_revisions_of_a_condition(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copyscope(monkeypatch, "revisions", "lab/tiny@<=step10", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["revisions"]
    assert [(one["name"], one["step"]) for one in listed] == [("step0", 0), ("step10", 10)]
    assert copyscope(monkeypatch, "revisions", "lab/tiny") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # three and how many they are
    assert copyscope(monkeypatch, "revisions", "lab/tiny@step7..step9") == 2
    assert fetched(hub[1]) == []


def test_score_within_a_cache_limit(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Every revision is scored; no weights stay where the limit is 0; one without weights is named and stops none."""
    models, asked = hub
    (models / "step10" / "model.safetensors").unlink()
    assert copyscope(monkeypatch, "score", "lab/tiny@*", "--cache-limit", "0", *FAST) == 1
    assert scored_steps(tmp_path / "runs" / "lab--tiny") == [0, 20]
    line = next(line for line in capsys.readouterr().err.splitlines() if "not measured" in line)
    assert "lab/tiny@step10" in line
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    assert list((tmp_path / "cache").rglob("config.json"))
    asked.clear()
    assert copyscope(monkeypatch, "score", "lab/tiny@step0,step20", "--cache-limit", "0", *FAST) == 0
    assert fetched(asked) == []  # stored: nothing is fetched again
    assert copyscope(monkeypatch, "score", "lab/tiny@*", "--cache-limit", "-1", *FAST) == 2


def test_the_next_weights_are_fetched_while_one_checkpoint_is_measured(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One ahead, never more: with a limit of 0 at most two checkpoints' weights are in the cache."""
    counts: list[tuple[int, int]] = []

    def slow(*arguments: Any, **more: Any) -> Any:
        wanted, end = min(len(counts) + 2, 3), time.monotonic() + 60
        here = []
        while len(set(fetched(hub[1]))) < wanted or len(here) < (2 if wanted > len(counts) + 1 else 1):
            assert time.monotonic() < end, "not fetched meanwhile"
            time.sleep(0.01)
            here = [path for path in (tmp_path / "cache").rglob("snapshots/*/model.safetensors") if path.is_file()]
        counts.append((len(set(fetched(hub[1]))), len(here)))
        return score_heads(*arguments, **more)

    monkeypatch.setattr("copyscope.analyses.tables.scores.score_heads", slow)
    assert copyscope(monkeypatch, "score", "lab/tiny@*", "--cache-limit", "0", *FAST) == 0
    assert counts == [(2, 2), (3, 2), (3, 1)]
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_what_cannot_be_measured_is_refused_before_its_weights_are_fetched(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, asked = hub
    MambaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=1).save_pretrained(models / "step10")
    assert copyscope(monkeypatch, "score", "lab/tiny@step10", *FAST) == 2
    assert fetched(asked) == []
    assert copyscope(monkeypatch, "score", "lab/tiny@step0,step10", *FAST) == 1
    assert len(set(fetched(asked))) == 1  # nor ahead, while the one before is measured


def test_ctrl_c_is_one_line_and_the_rest_is_scored_next_time(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models, _ = hub
    measure, interrupts = Scorer.measure, [20]

    def interrupted(self: Scorer, run: object, checkpoint: object, prove: bool = True) -> None:
        measure(self, run, checkpoint, prove)  # type: ignore[arg-type]
        if interrupts:
            interrupts.pop()
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    monkeypatch.setattr(Scorer, "measure", interrupted)
    try:
        assert copyscope(monkeypatch, "score", str(models), *FAST) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if "interrupted" in line] == said.err.strip().splitlines()[-1:]
    assert scored_steps(models) == [0]
    assert copyscope(monkeypatch, "score", str(models), *FAST) == 0
    assert scored_steps(models) == [0, 10, 20]
