"""Means of checkpoints: the right weights of the right steps, labelled so, in a series of their own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import small_config, train_small, write_corpus
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from copyscope.analyses.tables.opening import open_run
from copyscope.training.checkpoints.average import SHARE, average, shares
from copyscope.training.checkpoints.keys import checkpoint_key
from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError
from copyscope.training.zoom import zoom

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averages")
    return train_small(folder / "run", small_config(write_corpus(folder / "text.jsonl"), {"seeds.eval": 7}))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(trained.parent / "tokens", tmp_path / "tokens")
    return tmp_path / "run"


def test_shares() -> None:
    steps = [0, 1, 2, 4, 8, 12, 16, 20]
    assert shares(steps, 0, SHARE) == {0: 1}
    assert shares(steps, 8, SHARE) == {8: 1}
    assert shares(steps, 20, 0.5) == {12: pytest.approx(0.2), 16: pytest.approx(0.4), 20: pytest.approx(0.4)}
    everything = shares(steps, 20, 1.0)  # each for the updates since the one before; step 0 is not trained
    assert everything == {s: pytest.approx(w / 20) for s, w in zip(steps[1:], [1, 1, 2, 4, 4, 4, 4], strict=True)}
    dense = shares([*range(10), 10, 20], 20, 1.0)
    assert dense[20] == pytest.approx(0.5)  # a dense stretch weighs no more
    for step in steps:
        assert sum(shares(steps, step, 0.7).values()) == pytest.approx(1)


def test_the_means_are_of_the_steps_they_name(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = average(run)
    assert found.folder == run / "average"
    series = CheckpointSeries.open(run)
    files = {one.step: Path(one.path) for one in series.checkpoints}
    made = CheckpointSeries.open(found.folder)
    assert [one.step for one in made.checkpoints] == found.written == list(files)
    assert [one.tokens for one in made.checkpoints] == [one.tokens for one in series.checkpoints]
    assert verify(made) == []
    for one in made.checkpoints:
        part = found.parts[one.step]
        names = read_manifest(Path(one.path))["averaged"]
        assert names == {str(o.step): checkpoint_key(o) for o in series.checkpoints if o.step in part}
        got = load_file(Path(one.path) / WEIGHTS)
        own = {step: load_file(files[step] / WEIGHTS) for step in part}
        for name, value in got.items():
            wanted = sum(weight * own[step][name].double() for step, weight in part.items())
            torch.testing.assert_close(value, wanted.float())  # type: ignore[union-attr]
    assert found.parts[20] == {16: pytest.approx(0.2), 20: pytest.approx(0.8)}
    assert found.of_several == [20]
    assert {path: path.read_bytes() for path in before} == before  # the run stays as it was


def test_a_stretch_counts_by_its_own_mean_where_it_has_one(tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "text.jsonl")
    each = train_small(tmp_path / "each", small_config(text, {"checkpoints.every": 1}))
    run = train_small(tmp_path / "run", small_config(text, {"checkpoints.mean_every": 1}))

    def is_mean_of(folder: Path, steps: dict[int, float]) -> None:
        got = load_file(folder / "checkpoints" / "step00000020" / WEIGHTS)
        own = {step: load_file(each / "checkpoints" / f"step{step:08d}" / WEIGHTS) for step in steps}
        for name, value in got.items():
            wanted = sum(weight * own[step][name].double() for step, weight in steps.items())
            torch.testing.assert_close(value, wanted.float())  # type: ignore[union-attr]

    found = average(run, 0.4)
    is_mean_of(found.folder, dict.fromkeys(range(13, 21), 1 / 8))  # 16 and 20, with all in between
    assert average(run, 0.4).written == []
    zoom(run, 17, 18)
    assert 20 in average(run, 0.4).written
    # The mean of 20 is of the stretch since 16, but 18 is now before it: its own weights count for 19 and 20.
    is_mean_of(found.folder, {**dict.fromkeys(range(13, 19), 1 / 8), 20: 2 / 8})
    held = run / "checkpoints" / "step00000020" / "mean.safetensors"
    held.write_bytes(held.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"mean\.safetensors: damaged"):
        average(run, 0.4)


def test_it_goes_on_and_notices_what_changed(run: Path) -> None:
    assert len(average(run).written) > 5
    assert average(run).written == []
    shutil.rmtree(run / "average" / "checkpoints" / "step00000016")
    assert average(run).written == [16]
    last = run / "checkpoints" / "step00000020"
    manifest = json.loads((last / "MANIFEST.json").read_text())
    (last / "MANIFEST.json").write_text(json.dumps(manifest | {"more": 1}))
    assert average(run).written == [20]
    other = average(run, 1.0)
    assert other.folder == run / "average-1"
    assert len(other.parts[20]) == 7


def test_the_same_prompts_measure_both_and_it_is_no_run(run: Path) -> None:
    mine, means = open_run(run), open_run(average(run).folder)
    assert means.store == mine.store
    assert (means.eval_seed, means.name, means.config) == (7, "run-average", None)
    with pytest.raises(InputError, match="which are not trained on"):
        train_small(run / "average", small_config(run.parent / "text.jsonl"))
    assert open_run(run).series == mine.series  # its own checkpoints are all that it has


def test_somebody_elses_series(tmp_path: Path) -> None:
    """GPT-2 in bf16, with a buffer that is no weight: kept in float32, as transformers loads it."""
    kept = {}
    for step in (10, 12):
        torch.manual_seed(step)
        model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)).bfloat16()
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
        path = tmp_path / f"checkpoint-{step}" / WEIGHTS
        kept[step] = load_file(path)
        save_file(kept[step] | {"mask": torch.ones(3, dtype=torch.bool)}, path, metadata={"format": "pt"})
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"a pickle")
    found = average(tmp_path)
    folder = found.folder / "checkpoints" / "step00000012"
    assert "optimizer.pt" not in {path.name for path in folder.iterdir()}
    assert load_file(folder / WEIGHTS)["mask"].all()
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    name = "transformer.h.0.mlp.c_fc.weight"
    wanted = kept[10][name].float() / 3 + kept[12][name].float() * 2 / 3
    torch.testing.assert_close(loaded.state_dict()[name], wanted)


def damage(run: Path, change: str) -> None:
    last = run / "checkpoints" / "step00000020"
    if change == "flipped":
        data = bytearray((last / WEIGHTS).read_bytes())
        data[-9] ^= 4
        (last / WEIGHTS).write_bytes(data)
        return
    if change == "twice":
        shutil.copytree(last, last.with_name("step00000021"))
        return
    (last / "MANIFEST.json").unlink()
    if change == "gone":
        (last / WEIGHTS).unlink()
        return
    if change == "cut":
        (last / WEIGHTS).write_bytes((last / WEIGHTS).read_bytes()[:-8])
        return
    weights = load_file(last / WEIGHTS)
    name = sorted(weights)[-1]
    if change == "shape":
        weights[name] = torch.ones(3)
    else:
        weights[name].view(-1)[0] = np.nan
    save_file(weights, last / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("flipped", "damaged: its sha256"),
        ("cut", "bytes are missing"),
        ("gone", "model.safetensors is missing"),
        ("twice", "two checkpoints of one step"),
        ("shape", "differs in shape"),
        ("nan", "values that are not finite"),
    ],
)
def test_a_damaged_series_is_refused_in_one_line(run: Path, change: str, message: str) -> None:
    damage(run, change)
    with pytest.raises(InputError, match=message) as error:
        average(run)
    assert "\n" not in str(error.value)
    left = [path.name for path in (run / "average").rglob("*") if path.name.startswith(".")]
    assert not left  # nothing half-written


def test_what_cannot_be_averaged(run: Path) -> None:
    for share in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="--share"):
            average(run, share)
    with pytest.raises(InputError, match="only folders of safetensors"):
        average("somebody/model@step1,step2")
    with pytest.raises(InputError, match="holds means already"):
        average(average(run).folder)
    (run / "average" / "average.json").write_text("[")
    with pytest.raises(InputError, match="holds means already"):
        average(run / "average")
