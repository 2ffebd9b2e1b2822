"""A folder that transformers' Trainer wrote goes through every command."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
import trainer_run
from run_command import copyscope
from transformers import GPT2LMHeadModel

from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.checkpoints.series import CheckpointSeries

STEPS = [0, 2, 4, 6, 8]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainer_run.train(tmp_path_factory.mktemp("theirs"))


def test_the_checkpoints_are_the_series_not_the_model_beside_them(series: Path) -> None:
    assert (series / "model.safetensors").is_file()
    assert [checkpoint.step for checkpoint in CheckpointSeries.open(series).checkpoints] == STEPS
    last = CheckpointSeries.open(series / "checkpoint-8").checkpoints
    assert [checkpoint.step for checkpoint in last] == [8]


def test_every_command(series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(series)
    assert copyscope(monkeypatch, "verify", folder, "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoints": 5, "with_manifest": 0, "problems": []}
    assert copyscope(monkeypatch, "score", folder, "--samples", "20", "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["step"] == 8
    assert scored["model"]["copying_samples"] == 20
    assert copyscope(monkeypatch, "ablate", folder, "--samples", "20", "--prompts", "4", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["heads"]
    assert {(row["layer"], row["head"]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert copyscope(monkeypatch, "map", folder, "--json") == 0
    mapped = json.loads(capsys.readouterr().out)
    assert json.loads(Path(mapped["path"]).read_text()) == mapped["formation"]
    assert all(Path(figure).is_file() for figure in mapped["figures"])
    assert copyscope(monkeypatch, "claims", folder, "--json") == 0
    assert {claim["verdict"] for claim in json.loads(capsys.readouterr().out)["claims"]} == {"undecided"}
    assert copyscope(monkeypatch, "report", folder) == 0
    assert Path(capsys.readouterr().out.strip().splitlines()[-1]).stat().st_size > 10_000


def test_the_scores_are_those_of_their_weights(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion proved here by hand, and a stored table against the measure itself."""
    model = load_hooked(series / "checkpoint-8", prove=False)
    tokens = torch.randint(0, 100, (2, 30), generator=torch.Generator().manual_seed(0))
    theirs = GPT2LMHeadModel.from_pretrained(series / "checkpoint-8")
    with torch.no_grad():
        assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-5)
    assert copyscope(monkeypatch, "score", str(series), "--samples", "20") == 0  # stored, or computed now
    stored = pl.read_parquet(series / "results" / "heads" / "step00000008.parquet")
    assert stored["tokens"].null_count() == stored.height  # nobody says how many
    direct = score_heads(model, ["previous_token"], 0).filter(pl.col("measure") == "previous_token")
    ours = stored.filter(pl.col("measure") == "previous_token")
    assert direct["value"].to_list() == pytest.approx(ours["value"].to_list(), abs=0.05)  # other random tokens
