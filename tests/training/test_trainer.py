"""The loop is exact: the same run twice, and interrupted anywhere, ends with the same bits."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from copyscope.training import trainer
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries, step_folder
from copyscope.training.checkpoints.verify import verify
from copyscope.training.config import RunConfig
from copyscope.training.engines.locks import held
from copyscope.training.errors import InputError, Stopped
from copyscope.training.files import sha256_of
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.trainer import train

STEPS = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"item {number} weighs {number * 7919} grams and costs {number}. " * 10)
    return folder


def config(corpus: Path, **values: object) -> RunConfig:
    small = {
        "model.n_layers": 2,
        "model.n_heads": 2,
        "model.d_model": 16,
        "model.d_mlp": 24,
        "model.n_ctx": 16,
        "data.corpus": str(corpus),
        "data.vocab_size": 300,
        "data.validation_share": 0.2,
        "train.steps": STEPS,
        "train.batch_size": 2,
        "train.validation_sequences": 2,
        "train.threads": 1,
        "train.log_every": 2,
        "checkpoints.every": 4,
        "checkpoints.resume_every": 3,
        "optimizer.warmup_steps": 3,
    }
    return RunConfig().with_values({**small, **values})


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def hashes(run: Path) -> dict[str, str]:
    """Of the weights of each checkpoint, and of their means (`…/mean`) where there are any."""
    found = {path.parent.name: sha256_of(path) for path in (run / "checkpoints").glob("*/model.safetensors")}
    means = (run / "checkpoints").glob("*/mean.safetensors")
    return found | {f"{path.parent.name}/mean": sha256_of(path) for path in means}


@pytest.fixture(
    scope="module",
    params=[("adamw", 0.0, None), ("adamw", 0.1, None), ("muon", 0.0, 2)],
    ids=["plain", "dropout", "muon and means"],
)
def whole(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[RunConfig, Path]:
    name, dropout, mean_every = request.param
    values = {"model.attention_dropout": dropout, "optimizer.name": name, "checkpoints.mean_every": mean_every}
    wanted = config(corpus, **values)
    return wanted, train(wanted, tmp_path_factory.mktemp("whole") / "run")


def test_checkpoints_metrics_and_labels(whole: tuple[RunConfig, Path]) -> None:
    wanted, run = whole
    series = CheckpointSeries.open(run)
    assert [c.step for c in series.checkpoints] == checkpoint_steps(wanted)
    assert [c.tokens for c in series.checkpoints] == [step * 32 for step in checkpoint_steps(wanted)]
    assert verify(series) == []
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert RunConfig.load(run / "config.toml").run_id == wanted.run_id


def test_the_same_run_twice_is_bit_identical(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    assert hashes(train(whole[0], tmp_path / "run")) == hashes(whole[1])


def test_a_checkpoint_holds_the_mean_of_the_weights_since_the_one_before(corpus: Path, tmp_path: Path) -> None:
    wanted = config(corpus, **{"checkpoints.mean_every": 2, "checkpoints.every": 6})
    run = train(wanted, tmp_path / "run")
    each = train(config(corpus, **{"checkpoints.every": 1}), tmp_path / "each")
    known = {path.parent.name: path for path in (run / "checkpoints").glob("*/mean.safetensors")}
    parts = {2: [2], 4: [4], 6: [6], 12: [8, 10, 12]}  # 1 is no turn of theirs
    assert sorted(known) == [step_folder(step) for step in parts]
    for step, part in parts.items():
        held = load_file(known[step_folder(step)])
        own = [load_file(each / "checkpoints" / step_folder(one) / "model.safetensors") for one in part]
        for name, value in held.items():
            torch.testing.assert_close(value, torch.stack([weights[name] for weights in own]).mean(0))
    assert {name for name, _ in own[0].items()} == held.keys()
    assert verify(run) == []
    whole, plain = (RunConfig.load(one / "config.toml") for one in (run, each))
    assert whole.run_id != plain.run_id
    assert "mean_every" not in plain.to_toml()


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
    before = signal.getsignal(signal.SIGTERM)

    def ask(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="step 4 of 12"):
        train(whole[0], tmp_path / "run", ask)
    assert (tmp_path / "run" / "resume" / step_folder(4)).is_dir()
    train(whole[0], tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(whole[1])
    assert threading.current_thread() is threading.main_thread()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_full_state_is_passed_over_and_said(
    whole: tuple[RunConfig, Path], tmp_path: Path, logged: list[str]
) -> None:
    def break_off(checkpoint: Checkpoint) -> None:
        if checkpoint.step == 8:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(whole[0], tmp_path / "run", break_off)
    state = tmp_path / "run" / "resume" / step_folder(6) / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-3] ^= 1
    state.write_bytes(data)
    train(whole[0], tmp_path / "run")
    assert any(step_folder(6) in text and "going back" in text for text in logged)
    assert hashes(tmp_path / "run") == hashes(whole[1])


def test_a_run_that_another_process_trains_is_refused(whole: tuple[RunConfig, Path], tmp_path: Path) -> None:
    config, reference = whole
    out = tmp_path / "run"
    with (
        held(out / "resume" / "lock", lost=lambda: None),
        pytest.raises(InputError, match=rf"process {os.getpid()} .* is training this run"),
    ):
        train(config, out)
    assert not (out / "metrics.jsonl").exists()
    assert not (out / "checkpoints").exists()
    train(config, out)
    assert hashes(out) == hashes(reference)


def test_a_finished_run_is_left_as_it_is(whole: tuple[RunConfig, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole[1] / "checkpoints").rglob("*")}
    train(whole[0], whole[1])
    assert before == {path: path.stat().st_mtime_ns for path in (whole[1] / "checkpoints").rglob("*")}


def test_another_configuration_in_the_folder_is_refused(whole: tuple[RunConfig, Path]) -> None:
    other = "adamw" if whole[0].optimizer.name == "muon" else "muon"
    for field, value in (("optimizer.lr", 0.5), ("optimizer.name", other)):
        with pytest.raises(InputError, match=field) as refused:
            train(whole[0].with_values({field: value}), whole[1])
        assert "\n" not in str(refused.value)


def test_divergence_is_named_and_what_was_good_is_kept(corpus: Path, tmp_path: Path) -> None:
    wild = config(corpus, **{"optimizer.lr": 1e30, "optimizer.warmup_steps": 0, "train.precision": "fp32"})
    with pytest.raises(InputError, match="diverged at step"):
        train(wild, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "diverged.json").read_text())["step"] > 0
    assert CheckpointSeries.open(tmp_path / "run").checkpoints[0].step == 0
    assert load_file(tmp_path / "run" / "checkpoints" / step_folder(0) / "model.safetensors")


def test_no_checkpoint_of_a_diverged_model_and_no_line_that_is_not_json(corpus: Path, tmp_path: Path) -> None:
    wild = config(corpus, **{"optimizer.lr": 1e39, "optimizer.warmup_steps": 0, "train.precision": "fp32"})
    with pytest.raises(InputError, match=r"diverged at step 1 \(validation loss nan\)"):
        train(wild, tmp_path / "run")
    assert [c.step for c in CheckpointSeries.open(tmp_path / "run").checkpoints] == [0]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("lr", [1e30, 1e39])
def test_divergence_seen_late_is_the_same_divergence(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lr: float
) -> None:
    """As on a GPU, where an update is queued before its gradient's norm is read."""

    class Late(trainer._Finite):
        def __init__(self, run: Any):
            super().__init__(run)
            self.is_late = True

    wild = config(corpus, **{"optimizer.lr": lr, "optimizer.warmup_steps": 0, "train.precision": "fp32"})
    said = []
    for name in ("at once", "late"):
        with pytest.raises(InputError) as error:
            train(wild, tmp_path / name)
        said.append(str(error.value).removeprefix(str(tmp_path / name)))
        monkeypatch.setattr(trainer, "_Finite", Late)
    assert said[0] == said[1]
    once, late = tmp_path / "at once", tmp_path / "late"
    assert hashes(late) == hashes(once)
    assert (late / "diverged.json").read_text() == (once / "diverged.json").read_text()
    assert [line["step"] for line in lines(late)] == [line["step"] for line in lines(once)]
    assert not list(late.glob("resume/step*"))


def test_compiling_is_refused_where_there_is_no_gpu(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"train\.compile: .* leave it out") as error:
        train(config(corpus, **{"train.compile": True}), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    for out in (tmp_path / "run", tmp_path / "run" / "below"):
        with pytest.raises(InputError, match="not a folder"):
            train(config(corpus), out)


def test_gradient_accumulation_gives_the_same_update(corpus: Path, tmp_path: Path) -> None:
    values = {"train.batch_size": 6, "train.precision": "fp32", "train.steps": 3}
    one = train(config(corpus, **values), tmp_path / "one")
    three = train(config(corpus, **values, **{"train.gradient_accumulation": 3}), tmp_path / "three")
    first, second = (load_file(run / "checkpoints" / step_folder(1) / "model.safetensors") for run in (one, three))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4
    losses = [[line["loss"] for line in lines(run) if "loss" in line] for run in (one, three)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize(("keep", "stay"), [("all", [0, 1, 2, 4, 5, 8, 12]), ("subset", [5, 12]), ("none", [])])
def test_every_checkpoint_is_seen_and_those_kept_stay(corpus: Path, tmp_path: Path, keep: str, stay: list[int]) -> None:
    seen = []

    def measure(checkpoint: Checkpoint) -> None:
        seen.append((checkpoint.step, (Path(checkpoint.path) / "model.safetensors").is_file()))

    values = {"checkpoints.keep": keep, "checkpoints.steps": [5]}
    run = train(config(corpus, **values), tmp_path / "run", measure)
    assert seen == [(step, True) for step in (0, 1, 2, 4, 5, 8, 12)]
    assert sorted(path.name for path in (run / "checkpoints").glob("*")) == [step_folder(step) for step in stay]


def test_full_states_are_kept_for_good_where_asked(corpus: Path, tmp_path: Path) -> None:
    run = train(config(corpus, **{"checkpoints.resume_every": 2, "checkpoints.state_every": 4}), tmp_path / "run")
    assert sorted(path.name for path in (run / "resume").glob("step*")) == [step_folder(s) for s in (4, 8, 10, 12)]


def test_residual_dropout_changes_training_and_not_validation(corpus: Path, tmp_path: Path) -> None:
    plain, dropped = (
        train(config(corpus, **{"model.residual_dropout": p, "train.steps": 2}), tmp_path / str(p)) for p in (0.0, 0.5)
    )
    assert lines(plain)[0]["validation_loss"] == lines(dropped)[0]["validation_loss"]
    assert lines(plain)[-1]["loss"] != lines(dropped)[-1]["loss"]


def test_tensorboard_gets_the_numbers_of_the_log(corpus: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(config(corpus, **{"train.track": ["tensorboard"]}), tmp_path / "run")
    events = reader.EventAccumulator(str(run / "tracking" / "copyscope"))
    events.Reload()
    logged = {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
    assert {event.step: event.value for event in events.Scalars("loss")} == pytest.approx(logged)


def test_a_tracker_that_is_not_there_is_named(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copyscope.training.tracking.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"trackio is not installed; pip install"):
        train(config(corpus, **{"train.track": ["trackio"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
