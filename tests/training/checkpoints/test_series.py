"""A checkpoint is whole or not there, a series is in order, and `verify` finds every damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import small_config, train_small, write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from copyscope.training.checkpoints.keys import checkpoint_key
from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST, is_disk_full, write_folder, write_text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    return train_small(root / "run", small_config(write_corpus(root / "c.jsonl"), {"train.steps": 4}))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step{step:08d}"


def test_a_run_is_sound_and_in_order(run: Path) -> None:
    series = CheckpointSeries.open(run)
    assert [c.step for c in series.checkpoints] == [0, 1, 2, 4]
    assert [c.tokens for c in series.checkpoints] == [0, 64, 128, 256]
    assert verify(series) == []
    assert len({checkpoint_key(c) for c in series.checkpoints}) == 4
    assert CheckpointSeries.open(folder_of(run, 2)).checkpoints == (series.checkpoints[2],)
    assert CheckpointSeries.open(run / "checkpoints").checkpoints == series.checkpoints


def _flip(run: Path) -> None:
    path = folder_of(run, 2) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(run: Path) -> None:
    path = folder_of(run, 2) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: list[tuple[Callable[[Path], object], str, str]] = [
    (_flip, "model.safetensors", "damaged"),
    (_truncate, "model.safetensors", "damaged"),
    (lambda run: (folder_of(run, 2) / "model.safetensors").unlink(), "model.safetensors", "missing"),
    (lambda run: (folder_of(run, 2) / "tokenizer.json").unlink(), "tokenizer.json", "missing"),
    (lambda run: (folder_of(run, 2) / "config.json").unlink(), "config.json", "missing"),
    (lambda run: (folder_of(run, 2) / "notes.txt").write_text("x"), "notes.txt", "foreign"),
    (lambda run: (folder_of(run, 2) / "config.json").write_text("{}"), "config.json", "damaged"),
    (lambda run: folder_of(run, 2).rename(folder_of(run, 3)), "step00000003", "step 2 differ"),
    (lambda run: shutil.copytree(folder_of(run, 2), folder_of(run, 3)), "step00000003", "same weights as step 2"),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_verify_finds_damage(number: int, copy: Path) -> None:
    damage, where, what = DAMAGE[number]
    damage(copy)
    problems = verify(CheckpointSeries.open(copy))
    assert any(p.where.endswith(where) and what in p.what for p in problems), problems


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [], "step": 1, "tokens": 1, "run_id": ""}', "\udc80"])
def test_an_unreadable_manifest_is_named(text: str, copy: Path) -> None:
    """It hides neither the other checkpoints nor their problems, and nothing is computed from it."""
    (folder_of(copy, 2) / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder_of(copy, 4) / "tokenizer.json").unlink()
    series = CheckpointSeries.open(copy)
    assert [c.step for c in series.checkpoints] == [0, 1, 2, 4]
    first, second = verify(series)
    assert first.where == str(folder_of(copy, 2) / MANIFEST)
    assert "unreadable" in first.what
    assert second.where == str(folder_of(copy, 4) / "tokenizer.json")
    with pytest.raises(InputError, match=MANIFEST):
        checkpoint_key(series.checkpoints[2])


def test_a_half_written_folder_is_no_checkpoint(copy: Path) -> None:
    shutil.copytree(folder_of(copy, 2), copy / "checkpoints" / ".step00000003.partial")
    series = CheckpointSeries.open(copy)
    assert [c.step for c in series.checkpoints] == [0, 1, 2, 4]
    assert verify(series) == []


def test_other_series_are_ordered_by_the_number_in_the_name(run: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-1000", "checkpoint-100", "checkpoint-20"):
        target = Path(shutil.copytree(folder_of(run, 1), tmp_path / name))
        (target / MANIFEST).unlink()
    (tmp_path / "logs").mkdir()
    series = CheckpointSeries.open(tmp_path)
    assert [c.step for c in series.checkpoints] == [20, 100, 1000]
    assert [p.what.partition(";")[0] for p in verify(series)] == ["same weights as step 20"] * 2
    (tmp_path / "checkpoint-100" / "model.safetensors").unlink()
    assert any("model.safetensors is missing" in p.what for p in verify(series))


def test_revisions_of_a_hub_model() -> None:
    series = CheckpointSeries.open("org/model-70m@step2000,step1000,step30")
    assert series.checkpoints == tuple(Checkpoint(n, None, "org/model-70m", f"step{n}") for n in (30, 1000, 2000))
    assert [c.step for c in CheckpointSeries.open("org/model@main").checkpoints] == [0]
    with pytest.raises(InputError, match="later, main"):
        CheckpointSeries.open("org/model@main,later")
    by_name = CheckpointSeries.open("org/model@main,later", order="name").checkpoints
    assert [(c.step, c.revision) for c in by_name] == [(0, "later"), (1, "main")]
    with pytest.raises(InputError, match="org/model-70m@step30"):  # it is in no cache
        verify(series)


@pytest.mark.parametrize("source", ["no/such", "org/model@", "org/model@,", "x@y", "a b/c@step1"])
def test_a_source_that_is_none_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        CheckpointSeries.open(source)
    with pytest.raises(InputError, match="no checkpoint in it"):
        CheckpointSeries.open(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_a_checkpoint_as_it_is(tied: bool, tmp_path: Path) -> None:
    values = {"train.steps": 1, "model.tied_embeddings": tied, "model.n_key_value_heads": 1}
    run = train_small(tmp_path / "run", small_config(write_corpus(tmp_path / "c.jsonl"), values))
    model, info = AutoModelForCausalLM.from_pretrained(folder_of(run, 1), output_loading_info=True)  # type: ignore[misc]
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(folder_of(run, 1))
    assert tokenizer.decode(tokenizer("abc  déf")["input_ids"]).endswith("abc  déf")
    saved = load_file(folder_of(run, 1) / "model.safetensors")
    loaded = dict(model.named_parameters())
    assert loaded.keys() == saved.keys()
    assert ("lm_head.weight" in saved) != tied
    for name, value in saved.items():
        assert torch.equal(loaded[name], value), name
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied


def filled_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "x").write_text(text)

    return fill


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "step00000001"

    def broken(folder: Path) -> None:
        (folder / "x").write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_folder(target, broken, step=1, tokens=1, run_id="r")
    assert list(target.parent.iterdir()) == []
    write_folder(target, filled_with("old"), step=1, tokens=1, run_id="r")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_folder(target, broken, step=1, tokens=1, run_id="r")
    assert (target / "x").read_text() == "old"
    write_folder(target, filled_with("new"), step=1, tokens=1, run_id="r")
    assert (target / "x").read_text() == "new"
    assert read_manifest(target)["files"].keys() == {"x"}
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "none")
    write_text(tmp_path / "new" / "a.txt", "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "new" / "a.txt", "\ud800")
    assert (tmp_path / "new" / "a.txt").read_text() == "one"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_disk_full_is_told_from_other_errors() -> None:
    assert is_disk_full(OSError(28, "No space left on device"))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(13, "Permission denied"))
