"""Every common way to name checkpoints gives its step, in the order of numbers; what is none is left out, and said."""

import logging
from pathlib import Path

import pytest

from copyscope.training.checkpoints.names import arrange, natural, read_name
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.tokenizer_files import has_tokenizer, missing_tokenizer_file
from copyscope.training.errors import InputError

B = 10**9
READ = {  # name: number, what it counts, tokens, stage
    "step100": (100, "steps", None, ""),
    "Step_100": (100, "steps", None, ""),
    "step 100": (100, "steps", None, ""),
    "steps_100": (100, "steps", None, ""),
    "step_10_000": (10_000, "steps", None, ""),
    "global_step100": (100, "steps", None, ""),
    "checkpoint-100": (100, "steps", None, ""),
    "Checkpoint_0005000": (5000, "steps", None, ""),
    "ckpt_100": (100, "steps", None, ""),
    "ckpt100": (100, "steps", None, ""),
    "model-100": (100, "steps", None, ""),
    "100-checkpoint": (100, "steps", None, ""),
    "iter_0001000": (1000, "steps", None, ""),
    "hf_iter_0053000": (53_000, "steps", None, ""),
    "iter-000500-ckpt": (500, "steps", None, ""),
    "update_100": (100, "steps", None, ""),
    "batch100": (100, "steps", None, ""),
    "0000500": (500, "steps", None, ""),
    "20k": (20_000, "steps", None, ""),
    "step-10k": (10_000, "steps", None, ""),
    "step-1.5k": (1500, "steps", None, ""),
    "epoch=0-step=200": (200, "steps", None, ""),
    "checkpoint-epoch1-step200": (200, "steps", None, ""),
    "epoch_10": (10, "epochs", None, ""),
    "step-480k-token-1007B": (480_000, "steps", 1007 * B, ""),
    "step10000-tokens42B": (10_000, "steps", 42 * B, ""),
    "step-50K-105b": (50_000, "steps", 105 * B, ""),
    "TinyLlama-1.1B-intermediate-step-1431k-3T": (1_431_000, "steps", 3000 * B, ""),
    "stage2-ingredient1-step11931-tokens50B": (11_931, "steps", 50 * B, "stage2-ingredient1"),
    "seed3-step100": (100, "steps", None, "seed3"),
    "tokens-10B": (10 * B, "tokens", 10 * B, ""),
    "10.49B": (10_490_000_000, "tokens", 10_490_000_000, ""),
    "chck_10M": (10_000_000, "words", None, ""),
    "main": (None, "steps", None, ""),
    "handpicked": (None, "steps", None, ""),
    "step1.5": (None, "steps", None, ""),
    "model-7b": (None, "steps", None, ""),
    "pythia-70m": (None, "steps", None, ""),
}


@pytest.mark.parametrize("name", READ)
def test_a_name_is_read(name: str) -> None:
    named = read_name(name)
    assert (named.number, named.unit, named.tokens, named.stage) == READ[name]


COPIES = [
    "tmp-checkpoint-100",
    "checkpoint-100-backup",
    "old-checkpoint-100",
    "checkpoint-100.bak",
    "step100~",
    "checkpoint-100 (copy)",
    "checkpoint-100.incomplete",
    "Copy of step100",
    "step100.partial",
    "step100_tmp",
]


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_known(name: str) -> None:
    assert read_name(name).is_copy


@pytest.mark.parametrize(
    "name", ["step100", "gold-step100", "template-step5", "checkpoint-100", "mold_3", "stage1-step2"]
)
def test_what_is_no_copy(name: str) -> None:
    assert not read_name(name).is_copy


def test_numbers_sort_as_numbers() -> None:
    names = [f"{name}{n}" for n in (1000, 20, 3) for name in ("ckpt-",)]
    assert [n.name for n in arrange(names).kept] == ["ckpt-3", "ckpt-20", "ckpt-1000"]
    assert sorted(["v10", "v9", "V1"], key=natural) == ["V1", "v9", "v10"]


@pytest.mark.parametrize("odd", ["checkpoint-100_merged", "zz_checkpoint-100-lora", "mid-step2-experiment"])
def test_what_is_named_otherwise_is_left_out(odd: str) -> None:
    found = arrange(["checkpoint-100", "checkpoint-200", odd])
    assert [n.number for n in found.kept] == [100, 200]
    assert list(found.left_out) == [odd]


def test_a_common_prefix_is_no_reason() -> None:
    found = arrange(["my-run-v2-step100", "my-run-v2-step1000", "my-run-v2-step20", "main"])
    assert [n.number for n in found.kept] == [20, 100, 1000]
    assert list(found.left_out) == ["main"]


def test_coarser_units_are_left_out() -> None:
    found = arrange(["step100", "step200", "epoch-1", "tokens-3B"])
    assert [n.number for n in found.kept] == [100, 200]
    assert found.unit == "steps"
    assert arrange(["chck_1M", "chck_10M", "main"]).unit == "words"


def models(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text("{}")
    return root


def steps(root: Path, **how: object) -> list[tuple[int, str]]:
    return [(c.step, Path(c.path).name) for c in CheckpointSeries.open(root, **how).checkpoints]  # type: ignore[arg-type]


def test_what_is_beside_the_checkpoints_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models(tmp_path, "checkpoint-200", "checkpoint-1000", "final", "tmp-checkpoint-1000")
    (tmp_path / "checkpoint-300").symlink_to("nowhere")
    (tmp_path / "checkpoint-400").mkdir()
    (tmp_path / "logs").mkdir()
    series = CheckpointSeries.open(tmp_path)
    assert [c.step for c in series.checkpoints] == [200, 1000]
    with caplog.at_level(logging.INFO, "copyscope"):
        series.log_left_out()
    for name in ("final", "tmp-checkpoint-1000", "checkpoint-300", "checkpoint-400"):
        assert sum(name in line for line in caplog.messages) == 1
    assert not any("logs" in line for line in caplog.messages)


def test_names_that_say_nothing_are_refused_unless_by_name(tmp_path: Path) -> None:
    models(tmp_path, "alpha10", "alpha9", "beta", "tmp-x")
    with pytest.raises(InputError, match="alpha9, alpha10, beta"):
        CheckpointSeries.open(tmp_path)
    assert steps(tmp_path, order="name") == [(0, "alpha9"), (1, "alpha10"), (2, "beta")]


def test_one_model_needs_no_number(tmp_path: Path) -> None:
    assert steps(models(tmp_path / "a", "final")) == [(0, "final")]
    assert steps(models(tmp_path, "b/ckpt_700") / "b" / "ckpt_700") == [(700, "ckpt_700")]
    with pytest.raises(InputError, match="tmp-checkpoint-5"):
        CheckpointSeries.open(models(tmp_path / "c", "tmp-checkpoint-5"))


def test_two_of_one_step_are_named(tmp_path: Path) -> None:
    series = CheckpointSeries.open(models(tmp_path, "step100", "checkpoint-100", "step5"))
    with pytest.raises(InputError, match="checkpoint-100 and step100 are both of 100"):
        series.refuse_doubles()
    CheckpointSeries.open(models(tmp_path / "b", "step100", "step200")).refuse_doubles()


def tokenizer(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or ("tokenizer.json",):
        (folder / name).write_text("{}")


def test_all_take_the_tokenizer_of_the_first_that_has_one(tmp_path: Path) -> None:
    models(tmp_path, "step0", "step1", "step2")
    tokenizer(tmp_path / "step1")
    taken = [c.tokenizer for c in CheckpointSeries.open(tmp_path).checkpoints]
    assert taken == [str(tmp_path / "step1"), None, str(tmp_path / "step1")]
    tokenizer(tmp_path / "other", "vocab.json", "merges.txt")
    given = CheckpointSeries.open(tmp_path, tokenizer=tmp_path / "other")
    assert {c.tokenizer for c in given.checkpoints} == {str(tmp_path / "other")}
    for step in (0, 2):
        tokenizer(tmp_path / f"step{step}")
    assert {c.tokenizer for c in CheckpointSeries.open(tmp_path).checkpoints} == {None}


def test_the_tokenizer_above(tmp_path: Path) -> None:
    models(tmp_path, "checkpoint-1", "checkpoint-2")
    assert {c.tokenizer for c in CheckpointSeries.open(tmp_path).checkpoints} == {None}
    tokenizer(tmp_path, "tokenizer.model")
    assert {c.tokenizer for c in CheckpointSeries.open(tmp_path).checkpoints} == {str(tmp_path)}
    assert CheckpointSeries.open(tmp_path / "checkpoint-2").checkpoints[0].tokenizer == str(tmp_path)
    with pytest.raises(InputError, match="--tokenizer"):
        CheckpointSeries.open(tmp_path, tokenizer=tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        (["tokenizer.json"], True),
        (["vocab.json"], False),
        (["vocab.json", "merges.txt"], True),
        (["spiece.model"], True),
        (["tokenizer_config.json"], False),
        ([], False),
    ],
)
def test_forms_of_tokenizers(names: list[str], whole: bool, tmp_path: Path) -> None:
    tmp_path.joinpath("x").mkdir()
    for name in names:
        (tmp_path / "x" / name).write_text("{}")
    assert has_tokenizer(tmp_path / "x") == whole


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["vocab.json", "tokenizer_config.json"], "merges.txt"),
        (["merges.txt"], "vocab.json"),
        (["vocab.json", "merges.txt"], None),
        (["vocab.json", "tokenizer.json"], None),
        (["tokenizer_config.json"], None),
    ],
)
def test_half_a_tokenizer_names_what_is_missing(names: list[str], missing: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    assert missing_tokenizer_file(tmp_path) == missing
