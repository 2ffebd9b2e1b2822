"""The loop is exact: the same run twice, and interrupted anywhere, ends with the same bits."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from training.checkpoints import Checkpoint, CheckpointSeries, sha256_of, step_folder
from training.config import RunConfig
from training.errors import InputError, Stopped
from training.trainer import checkpoint_steps, learning_rate, train

STEPS = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"item {number} weighs {number * 7919} grams and costs {number}. " * 10)
    return folder


def config(corpus: Path, **values: object) -> RunConfig:
    small = {
        "model.n_layers": 2, "model.n_heads": 2, "model.d_model": 16, "model.d_mlp": 24, "model.n_ctx": 16,
        "data.corpus": str(corpus), "data.vocab_size": 300, "data.validation_share": 0.2,
        "train.steps": STEPS, "train.batch_size": 2, "train.validation_sequences": 2, "train.threads": 1,
        "train.log_every": 2, "checkpoints.every": 4, "checkpoints.resume_every": 3, "optimizer.warmup_steps": 3,
    }  # fmt: skip
    return RunConfig().with_values({**small, **values})


def hashes(run: Path) -> dict[str, str]:
    return {path.parent.name: sha256_of(path) for path in (run / "checkpoints").glob("*/model.safetensors")}


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["plain", "dropout"])
def whole(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[RunConfig, Path]:
    wanted = config(corpus, **{"model.attention_dropout": request.param})
    return wanted, train(wanted, tmp_path_factory.mktemp("whole") / "run")


def test_steps_saved_are_log_spaced_then_even(corpus: Path) -> None:
    wanted = config(corpus, **{"train.steps": 50, "checkpoints.every": 20, "checkpoints.steps": [33]})
    assert checkpoint_steps(wanted) == [0, 1, 2, 4, 8, 16, 20, 33, 40, 50]
    assert checkpoint_steps(config(corpus, **{"train.steps": 3})) == [0, 1, 2, 3]


def test_learning_rate_rises_holds_and_falls(corpus: Path) -> None:
    values = {"train.steps": 100, "optimizer.warmup_steps": 10, "optimizer.lr": 1.0, "optimizer.decay_share": 0.5}
    linear = config(corpus, **{**values, "optimizer.schedule": "linear", "optimizer.final_lr_share": 0.2})
    assert [learning_rate(linear, step) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(linear, 75) == pytest.approx(0.6)
    assert learning_rate(linear, 99) == pytest.approx(0.2, abs=0.02)
    assert learning_rate(config(corpus, **values), 99) == 1.0


def test_checkpoints_metrics_and_labels(whole: tuple[RunConfig, Path]) -> None:
    wanted, run = whole
    series = CheckpointSeries.open(run)
    assert [c.step for c in series.checkpoints] == checkpoint_steps(wanted)
    assert [c.tokens for c in series.checkpoints] == [step * 32 for step in checkpoint_steps(wanted)]
    assert series.verify() == []
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert RunConfig.load(run / "config.toml").run_id == wanted.run_id


def test_the_same_run_twice_is_bit_identical(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    assert hashes(train(whole[0], tmp_path / "run")) == hashes(whole[1])


def test_other_seeds_are_other_runs(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    last = step_folder(STEPS)
    for seed in ("seeds.init", "seeds.data"):
        other = train(whole[0].with_values({seed: 1}), tmp_path / seed)
        assert hashes(other)[last] != hashes(whole[1])[last]


@pytest.mark.parametrize("at", [0, 2, 4, 8])
def test_a_run_that_broke_off_ends_bit_identical(whole: tuple[RunConfig, Path], tmp_path: Path, at: int) -> None:
    def break_off(checkpoint: Checkpoint) -> None:
        if checkpoint.step == at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(whole[0], tmp_path / "run", break_off)
    train(whole[0], tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(whole[1])
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    wanted = (whole[1] / "metrics.jsonl").read_text().splitlines()
    validation = [[(d["step"], d.get("validation_loss")) for d in map(json.loads, part)] for part in (lines, wanted)]
    assert validation[0] == validation[1]


def test_sigterm_saves_and_the_run_goes_on_bit_identical(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    def ask(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="step 4 of 12"):
        train(whole[0], tmp_path / "run", ask)
    assert (tmp_path / "run" / "resume" / step_folder(4)).is_dir()
    train(whole[0], tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(whole[1])
    assert threading.current_thread() is threading.main_thread()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_damaged_full_state_is_passed_over_and_said(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    def break_off(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 8:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(whole[0], tmp_path / "run", break_off)
    state = tmp_path / "run" / "resume" / step_folder(6) / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-3] ^= 1
    state.write_bytes(data)
    said: list[str] = []
    train(whole[0], tmp_path / "run", say=said.append)
    assert any(step_folder(6) in text and "going back" in text for text in said)
    assert hashes(tmp_path / "run") == hashes(whole[1])


def test_a_finished_run_is_left_as_it_is(whole: tuple[RunConfig, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole[1] / "checkpoints").rglob("*")}
    train(whole[0], whole[1])
    assert before == {path: path.stat().st_mtime_ns for path in (whole[1] / "checkpoints").rglob("*")}


def test_another_configuration_in_the_folder_is_refused(whole: tuple[RunConfig, Path]) -> None:
    with pytest.raises(InputError, match="choose another --out"):
        train(whole[0].with_values({"optimizer.lr": 0.5}), whole[1])


def test_divergence_is_named_and_what_was_good_is_kept(corpus: Path, tmp_path: Path) -> None:
    wild = config(corpus, **{"optimizer.lr": 1e30, "optimizer.warmup_steps": 0, "train.precision": "fp32"})
    with pytest.raises(InputError, match="diverged at step"):
        train(wild, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "diverged.json").read_text())["step"] > 0
    assert CheckpointSeries.open(tmp_path / "run").checkpoints[0].step == 0
    assert load_file(tmp_path / "run" / "checkpoints" / step_folder(0) / "model.safetensors")


def test_sigkill_at_any_moment_needs_no_hand(corpus: Path, whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    wanted = whole[0].with_values({"checkpoints.resume_every": 1})
    (tmp_path / "config.toml").write_text(wanted.to_toml())
    out = tmp_path / "run"
    command = [sys.executable, "-m", "analyses.cli", "train", str(tmp_path / "config.toml"), "--out", str(out)]
    for kill in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen = len(list(out.rglob("step*")))
        while process.poll() is None and len(list(out.rglob("step*"))) <= seen:
            time.sleep(0.001)
        time.sleep(0.003 * kill)
        process.kill()
        process.wait()
        if (out / "checkpoints").is_dir() and list((out / "checkpoints").glob("step*")):
            assert CheckpointSeries.open(out).verify() == []
    train(wanted, out)
    assert hashes(out) == hashes(whole[1])
    assert CheckpointSeries.open(out).verify() == []


def test_a_full_disk_is_one_line_and_the_run_goes_on_after(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(whole[0].to_toml())
    out = tmp_path / "run"

    def stop_once(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 4:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError):
        train(whole[0], out, stop_once)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "analyses.cli", "train", str(tmp_path / "config.toml"), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 2, result.stderr
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr
    assert CheckpointSeries.open(out).verify() == []
    train(whole[0], out)
    assert hashes(out) == hashes(whole[1])


def test_no_checkpoint_of_a_diverged_model_and_no_line_that_is_not_json(corpus: Path, tmp_path: Path) -> None:
    wild = config(corpus, **{"optimizer.lr": 1e39, "optimizer.warmup_steps": 0, "train.precision": "fp32"})
    with pytest.raises(InputError, match=r"diverged at step 1 \(validation loss nan\)"):
        train(wild, tmp_path / "run")
    assert [c.step for c in CheckpointSeries.open(tmp_path / "run").checkpoints] == [0]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_file_in_the_place_of_the_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    for out in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(InputError, match="not a folder"):
            train(config(corpus), out)
