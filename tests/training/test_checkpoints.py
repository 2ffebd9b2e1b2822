"""A checkpoint is whole or not there, and every kind of damage is found and named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from training.checkpoints import CheckpointSeries, is_disk_full, step_folder, write_folder, write_text
from training.config import RunConfig
from training.errors import InputError
from training.model import build_model


def save(folder: Path, step: int, seed: int = 0, **values: object) -> LlamaForCausalLM:
    small = {"model.n_layers": 1, "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 16, "seeds.init": seed}
    model = build_model(RunConfig().with_values({**small, **values}), 50)
    write_folder(folder, lambda temp: model.save_pretrained(temp), step=step, tokens=step * 8, run_id="abc")
    return model


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for step in (0, 1, 20):
        save(tmp_path / "run" / "checkpoints" / step_folder(step), step, seed=step)
    return tmp_path / "run"


def test_a_sound_series_has_no_problems_and_is_in_order(series: Path) -> None:
    opened = CheckpointSeries.open(series)
    assert [(c.step, c.tokens) for c in opened.checkpoints] == [(0, 0), (1, 8), (20, 160)]
    assert opened.verify() == []


def test_transformers_loads_a_checkpoint_as_it_is(tmp_path: Path) -> None:
    model = save(tmp_path / "one", 3)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "one")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def test_every_damage_is_found_and_named(series: Path) -> None:
    damages = {
        "damaged": lambda folder: flip(folder / "model.safetensors"),
        "damaged ": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
        "missing": lambda folder: (folder / "generation_config.json").unlink(),
        "foreign": lambda folder: (folder / "stray.bin").write_bytes(b"x"),
        "differ": lambda folder: folder.rename(folder.with_name(step_folder(7))),
    }
    for what, damage in damages.items():
        copy = series.with_name("copy")
        shutil.copytree(series, copy)
        damage(copy / "checkpoints" / step_folder(20))
        problems = CheckpointSeries.open(copy).verify()
        assert len(problems) == 1, (what, problems)
        assert what.strip() in problems[0].what
        assert "step000000" in problems[0].where
        shutil.rmtree(copy)


def test_equal_weights_under_two_steps_are_found(tmp_path: Path) -> None:
    for step in (5, 6):
        save(tmp_path / "run" / "checkpoints" / step_folder(step), step, seed=1)
    assert ["same weights" in p.what for p in CheckpointSeries.open(tmp_path / "run").verify()] == [True]


def test_a_damaged_manifest_is_one_clear_line(series: Path) -> None:
    (series / "checkpoints" / step_folder(1) / "MANIFEST.json").write_text('{"step": 1')
    with pytest.raises(InputError, match=r"MANIFEST\.json: unreadable.*delete the folder"):
        CheckpointSeries.open(series)


def test_somebody_elses_folder_and_revisions_are_in_order_of_step(tmp_path: Path) -> None:
    for number in (1000, 200, 30):
        save(tmp_path / "theirs" / f"checkpoint-{number}", number, seed=number)
        (tmp_path / "theirs" / f"checkpoint-{number}" / "MANIFEST.json").unlink()
    assert [c.step for c in CheckpointSeries.open(tmp_path / "theirs").checkpoints] == [30, 200, 1000]
    assert [c.step for c in CheckpointSeries.open(tmp_path / "theirs" / "checkpoint-30").checkpoints] == [30]
    hub = CheckpointSeries.open("org/model@step2000,step16")
    assert [(c.step, c.revision) for c in hub.checkpoints] == [(16, "step16"), (2000, "step2000")]
    with pytest.raises(InputError, match="no such folder"):
        CheckpointSeries.open("nowhere")


def test_a_write_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    write_folder(target, lambda temp: temp.joinpath("a").write_text("old") and None, step=1, tokens=1, run_id="x")

    def fail(temp: Path) -> None:
        temp.joinpath("a").write_text("new")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_folder(target, fail, step=1, tokens=1, run_id="x")
    assert target.joinpath("a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.json", json.dumps({"a": 1}))
    write_text(tmp_path / "deep" / "a.json", json.dumps({"a": 2}))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"a": 2}


def test_disk_full_is_told_from_other_errors() -> None:
    assert is_disk_full(OSError(28, "No space left on device"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(13, "Permission denied"))
