"""Two processes that share each batch: what one process does, and bit-identical when resumed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_run import metrics, small_config, weights, write_corpus

from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError
from copyscope.training.trainer import train

LAUNCH = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port")


def two_processes(config: Path, out: Path, port: int, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        *LAUNCH,
        str(port),
        str(Path(__file__).parents[1] / "helpers" / "train_child.py"),
        str(config),
        str(out),
    ]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | quiet, timeout=300)


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_do_what_one_does_and_resume_bit_by_bit(tmp_path: Path, port: int, optimizer: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    values = {
        "train.batch_size": 4,
        "train.gradient_accumulation": 2,
        "model.attention_dropout": 0.0,
        "train.steps": 8,
        "optimizer.name": optimizer,
    }
    config = small_config(corpus, values)
    (tmp_path / "config.toml").write_text(config.to_toml())
    one = train(config, tmp_path / "one")

    whole = two_processes(tmp_path / "config.toml", tmp_path / "two", port)
    assert whole.returncode == 0, whole.stderr
    assert verify(CheckpointSeries.open(tmp_path / "two")) == []
    for mine, theirs in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert mine["step"] == theirs["step"]
        for name in ("loss", "validation_loss", "grad_norm"):
            assert mine.get(name) == pytest.approx(theirs.get(name), abs=2e-4), (name, mine["step"])
    first, second = (
        load_file(run / "checkpoints" / "step00000001" / "model.safetensors") for run in (one, tmp_path / "two")
    )
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4

    # Killed at the checkpoint of step 4, and once more by SIGTERM to one of the two at step 6.
    killed = two_processes(tmp_path / "config.toml", tmp_path / "resumed", port, KILL_AT="4")
    assert killed.returncode != 0
    stopped = two_processes(tmp_path / "config.toml", tmp_path / "resumed", port, STOP_AT="5")
    assert "stopped at step" in stopped.stderr, stopped.stderr
    resumed = two_processes(tmp_path / "config.toml", tmp_path / "resumed", port, FORK_AT="3")
    assert resumed.returncode == 0, resumed.stderr
    assert all(weights(tmp_path / "resumed", step) == weights(tmp_path / "two", step) for step in (1, 2, 4, 8))
    assert [line["step"] for line in metrics(tmp_path / "resumed")] == [
        line["step"] for line in metrics(tmp_path / "two")
    ]
    assert (
        json.loads((tmp_path / "resumed" / "checkpoints" / "step00000008" / "MANIFEST.json").read_text())["tokens"]
        == 1024
    )
    # The null fork of two processes is the run of two processes.
    held = json.loads((tmp_path / "resumed-fork" / "fork.json").read_text())
    assert held["replay"] == {"from": 0, "compared": [1, 2], "differs": []}
    assert all(weights(tmp_path / "resumed-fork", step) == weights(tmp_path / "two", step) for step in (4, 8))


@pytest.mark.parametrize("device", ["cuda:9", "mps", "gpu"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_written(tmp_path, device):
    with pytest.raises(InputError, match=f"device {device}"):
        train("quickstart", tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()
