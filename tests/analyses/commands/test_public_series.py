"""Commands about a public series, on a hub of this machine, and what Ctrl-C says."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_command import copyscope
from stand_in_hub import hub_of_this_process
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig

from copyscope.analyses.tables.scores import Scorer

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


def test_what_cannot_be_measured_is_refused_before_its_weights_are_fetched(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, asked = hub
    MambaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=1).save_pretrained(models / "step10")
    assert copyscope(monkeypatch, "score", "lab/tiny@step10", *FAST) == 2
    assert fetched(asked) == []


def test_ctrl_c_is_one_line_and_the_rest_is_scored_next_time(
    hub: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models, _ = hub
    score, interrupts = Scorer.score, [20]

    def interrupted(self: Scorer, run: object, checkpoint: object, prove: bool = True) -> None:
        score(self, run, checkpoint, prove)  # type: ignore[arg-type]
        if interrupts:
            interrupts.pop()
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a script it is ignored
    monkeypatch.setattr(Scorer, "score", interrupted)
    try:
        assert copyscope(monkeypatch, "score", str(models), *FAST) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if "interrupted" in line] == said.err.strip().splitlines()[-1:]
    assert scored_steps(models) == [0]
    assert copyscope(monkeypatch, "score", str(models), *FAST) == 0
    assert scored_steps(models) == [0, 10, 20]
