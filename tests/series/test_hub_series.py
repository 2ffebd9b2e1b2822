"""A public series by its revisions, from a hub on this machine, with the command that a user types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from stand_in_hub import stand_in_hub
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

STEPS = (0, 1, 2, 4, 8)
SERIES = "tiny-lab/pythia-tiny@" + ",".join(f"step{step}" for step in STEPS)


def write_models(root: Path) -> None:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = GPTNeoXForCausalLM(config)
    for step in STEPS:
        folder = root / "tiny-lab" / "pythia-tiny" / f"step{step}"
        model.save_pretrained(folder)
        (folder / "pytorch_model.bin").write_bytes(b"a pickle, never fetched")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def copyscope(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("copyscope")), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0", **environment},
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], list[str]]:
    """A working folder after `copyscope score`, what the command said, and what it asked the hub for."""
    folder = tmp_path_factory.mktemp("work")
    write_models(folder / "hub")
    with stand_in_hub(folder / "hub") as (address, asked):
        result = copyscope(folder, "score", SERIES, "--samples", "20", HF_ENDPOINT=address)
    return folder, result, asked


def test_score_fetches_each_revision(scored: tuple[Path, subprocess.CompletedProcess[str], list[str]]) -> None:
    folder, result, asked = scored
    assert result.returncode == 0, result.stderr
    assert "runs/tiny-lab--pythia-tiny/results" in result.stdout
    heads = pl.read_parquet(folder / "runs" / "tiny-lab--pythia-tiny" / "results" / "heads" / "*.parquet")
    assert sorted(set(heads["step"])) == list(STEPS)
    assert not any(path.endswith(".bin") for path in asked)
    assert sum(path.endswith("model.safetensors") for path in asked) >= len(STEPS)


def test_the_cache_is_enough_afterwards(scored: tuple[Path, subprocess.CompletedProcess[str], list[str]]) -> None:
    """No hub, no network: from what `score` left in the cache."""
    folder, _, _ = scored
    result = copyscope(
        folder, "ablate", SERIES, "--samples", "10", "--prompts", "2", "--json", "--quiet", HF_HUB_OFFLINE="1"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert {row["step"] for row in json.loads(result.stdout)["heads"]} == {8}
    result = copyscope(folder, "verify", SERIES, "--json", "--quiet", HF_HUB_OFFLINE="1")
    assert json.loads(result.stdout) == {"checkpoints": len(STEPS), "with_manifest": 0, "problems": []}


def test_map_and_report_of_a_hub_series(
    scored: tuple[Path, subprocess.CompletedProcess[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from run_command import copyscope as here

    folder, _, _ = scored
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    assert here(monkeypatch, "map", SERIES) == 0
    assert (folder / "runs" / "tiny-lab--pythia-tiny" / "results" / "formation.json").is_file()
    paths = [line for line in capsys.readouterr().out.splitlines() if line.endswith((".json", ".html"))]
    assert len(paths) >= 2
    assert all((folder / line).is_file() for line in paths)


def test_a_revision_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "hub" / "tiny-lab" / "pythia-tiny").mkdir(parents=True)
    with stand_in_hub(tmp_path / "hub") as (address, _):
        result = copyscope(tmp_path, "score", "tiny-lab/pythia-tiny@step7", HF_ENDPOINT=address)
    assert result.returncode == 2
    assert "tiny-lab/pythia-tiny@step7" in result.stderr
    assert len(result.stderr.splitlines()) == 1
