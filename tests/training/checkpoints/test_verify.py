"""A sound series raises no alarm; each way of spoiling it is found, at the step where it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from copyscope.training.checkpoints.series import CheckpointSeries, step_folder
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError
from copyscope.training.files import write_folder

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500]


def walk(seed: int, pull: float = 0.0, drift: float = 0.0) -> dict[int, dict[str, torch.Tensor]]:
    """Weights of a noisy training run: a random walk, drawn back to its start by `pull`, with a steady `drift`."""
    draw = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(60, 50, generator=draw) for name in ("a.weight", "b.weight")}
    start = {name: value.clone() for name, value in weights.items()}
    way = {name: torch.randn(60, 50, generator=draw) for name in weights}
    saved = {}
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            saved[step] = {name: value.clone() for name, value in weights.items()}
        for name, value in weights.items():
            value += 0.03 * torch.randn(60, 50, generator=draw) + drift * way[name] - pull * (value - start[name])
    return saved


def write(root: Path, series: dict[int, dict[str, torch.Tensor]], manifest: bool) -> Path:
    for step, weights in series.items():

        def fill(folder: Path, weights: dict[str, torch.Tensor] = weights) -> None:
            (folder / "config.json").write_text("{}")
            save_file(weights, folder / "model.safetensors")

        write_folder(root / step_folder(step), fill, step=step, tokens=step * 64, run_id="a" * 12)
        if not manifest:
            (root / step_folder(step) / "MANIFEST.json").unlink()
    return root


def found(root: Path) -> list[tuple[str, str]]:
    """Folder or file, relative, and what."""
    return [(str(Path(p.where).relative_to(root)), p.what) for p in verify(CheckpointSeries.open(root))]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"), walk(0), manifest=True)


@pytest.fixture
def series(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "series"))


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(("pull", "drift"), [(0.0, 0.0), (0.3, 0.0), (0.01, 0.0), (0.0, 0.1)])
def test_no_false_alarm(tmp_path: Path, manifest: bool, pull: float, drift: float) -> None:
    assert found(write(tmp_path, walk(1, pull, drift), manifest)) == []


@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10**9), bit=st.integers(0, 7), data=st.data())
def test_any_flipped_bit_is_found(series: Path, where: int, bit: int, data: st.DataObject) -> None:
    folder = series / step_folder(64)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    before = path.read_bytes()
    spoilt = bytearray(before)
    spoilt[where % len(spoilt)] ^= 1 << bit
    path.write_bytes(spoilt)
    problems = found(series)
    path.write_bytes(before)
    folders = {Path(place).parts[0] for place, _ in problems}
    assert folder.name in folders
    if path.name != "MANIFEST.json":  # in which a bit can make a step wrong, and with it the order, or a name or a hash
        assert folders == {folder.name}
        assert [place for place, what in problems if "damaged" in what] == [f"{folder.name}/{path.name}"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def zero_tail(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096] + bytes(4096))


def not_finite(path: Path) -> None:
    weights = load_file(path)
    weights["b.weight"][3, 4] = float("nan")
    save_file(weights, path)


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    ("spoil", "says"), [(cut, "cut off"), (zero_tail, "ends in zeros"), (not_finite, "not finite"), (Path.unlink, "")]
)
def test_spoilt_weights(series: Path, manifest: bool, spoil: Callable[[Path], None], says: str) -> None:
    spoil(series / step_folder(200) / "model.safetensors")
    if not manifest:
        for path in series.glob("*/MANIFEST.json"):
            path.unlink()
    problems = found(series)
    assert len(problems) == 1
    where, what = problems[0]
    assert where.startswith("step00000200")
    assert (says if not manifest else "manifest") in what


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({200: 300, 300: 200}, {200, 300}),  # two that changed places
        ({100: 500}, {100, 200, 500}),  # equal weights; the later one is named, the other lies off the way
        ({300: -1}, {300}),  # another seed's
        ({500: -1}, {500}),
        ({0: -1}, {0, 1}),
        ({200: -1, 300: -1}, {200, 300, 400}),  # two in a row of another run
    ],
    ids=str,
)
def test_weights_in_the_wrong_place(tmp_path: Path, manifest: bool, changed: dict[int, int], at: set[int]) -> None:
    """As with 86 of 154 revisions of pythia-2.8b (EleutherAI/pythia#205)."""
    right, other = walk(2), walk(3)
    spoilt = {
        step: right[step] if step not in changed else right[changed[step]] if changed[step] >= 0 else other[step]
        for step in right
    }
    problems = found(write(tmp_path, spoilt, manifest))
    assert problems
    assert {int(where.removeprefix("step")) for where, _ in problems} <= at
    assert all("jump in weight distance" in what or "same weights" in what for _, what in problems)


def test_labels_that_disagree(series: Path) -> None:
    (series / step_folder(16)).rename(series / step_folder(17))
    for step, change in ((64, {"run_id": "b" * 12}), (100, {"tokens": 5})):
        path = series / step_folder(step) / "MANIFEST.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (series / step_folder(200) / "optimizer.pt").write_text("x")
    says = [
        ("step00000017", "differ"),
        ("step00000064", "another run"),
        ("step00000100", "5 tokens at step 100"),
        ("step00000200/optimizer.pt", "foreign"),
    ]
    problems = found(series)
    assert [(where, part in what) for (where, what), (_, part) in zip(problems, says, strict=True)] == [
        (where, True) for where, _ in says
    ]


def test_somebody_elses_series(series: Path) -> None:
    for path in series.glob("*/MANIFEST.json"):
        path.unlink()
    pickled, sharded, shapes, broken = (series / step_folder(step) for step in (100, 200, 300, 400))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    save_file({"a.weight": weights["a.weight"]}, sharded / "one.safetensors")
    index = {"weight_map": {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"c": torch.ones(3)}, shapes / "model.safetensors")
    (broken / "config.json").write_text("{")
    problems = dict(found(series))
    assert "never opened" in problems.pop("step00000100")
    assert "missing" in problems.pop("step00000200/two.safetensors")
    assert "other names or shapes" in problems.pop("step00000300")
    assert "unreadable" in problems.pop("step00000400/config.json")
    assert problems == {}
    save_file({"b.weight": weights["b.weight"]}, sharded / "two.safetensors")
    assert "step00000200/two.safetensors" not in dict(found(series))


def without_manifests(series: Path) -> Path:
    for path in series.glob("*/MANIFEST.json"):
        path.unlink()
    return series


def test_zeros_that_training_leaves_are_no_damage(tmp_path: Path) -> None:
    """Tensors that begin as zeros, and rows that stay zero."""
    saved = walk(5)
    for step, weights in saved.items():
        weights["z.bias"] = torch.zeros(600) if step < 2 else torch.full((600,), float(step))
        weights["y.padded"] = torch.cat([weights["a.weight"][0], torch.zeros(500)])
    assert found(write(tmp_path, saved, manifest=False)) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_zeroed_tail_at_any_step(series: Path, step: int) -> None:
    path = without_manifests(series) / step_folder(step) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-512] + bytes(512))
    assert [(where, what.partition(";")[0]) for where, what in found(series)] == [
        (f"{step_folder(step)}/model.safetensors", "ends in zeros: the last 128 values of b.weight")
    ]
    alone = verify(CheckpointSeries.open(path.parent))
    assert [problem.where for problem in alone] == [str(path)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    """As others publish them: two files and an index a step, in half precision, with other tensors among them."""
    for step, weights in walk(0).items():
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        for file, name in (("one", "a.weight"), ("two", "b.weight")):
            mask = {"mask": torch.ones(5, dtype=torch.bool)} if file == "one" else {}
            save_file({name: weights[name].to(dtype)} | mask, folder / f"{file}.safetensors")
        index = {
            "weight_map": {"a.weight": "one.safetensors", "mask": "one.safetensors", "b.weight": "two.safetensors"}
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert found(tmp_path) == []
    cut(tmp_path / "step200" / "two.safetensors")
    (tmp_path / "step300" / "one.safetensors").unlink()
    (tmp_path / "step8" / "model.safetensors.index.json").write_text("[")
    shutil.copy(tmp_path / "step100" / "one.safetensors", tmp_path / "step64" / "two.safetensors")
    problems = dict(found(tmp_path))
    assert "cut off: 100 of" in problems.pop("step200/two.safetensors")
    assert "missing, though the index lists it" in problems.pop("step300/one.safetensors")
    assert "unreadable" in problems.pop("step8/model.safetensors.index.json")
    assert "b.weight is not in it" in problems.pop("step64/two.safetensors")
    assert problems == {}


def test_one_shard_of_another_step(tmp_path: Path) -> None:
    """As at two steps of pythia-12b, which hold the first shard of the last (EleutherAI/pythia#206)."""
    saved = walk(0, drift=0.01)
    saved[200]["a.weight"] = saved[500]["a.weight"]
    assert [where for where, _ in found(write(tmp_path, saved, manifest=False))] == [step_folder(200)]


def test_most_revisions_are_the_last(tmp_path: Path) -> None:
    """As in pythia-2.8b (EleutherAI/pythia#205): the whole early series, step 0 included, is the final model; later
    steps are mostly their own."""
    saved = walk(0, drift=0.01)
    wrong = [step for step in STEPS if step < 100] + [300]
    for step in wrong:
        saved[step] = saved[500]
    problems = found(write(tmp_path, saved, manifest=False))
    same = [where for where, what in problems if "same weights as step 0;" in what]
    assert same == [step_folder(step) for step in [*wrong[1:], 500]]
    assert [where for where, what in problems if "jump in weight distance" in what] == [step_folder(0)]


def test_a_manifest_over_wrong_weights(tmp_path: Path) -> None:
    """Sound files, which hold what no training run should."""
    saved = walk(0)
    saved[100]["b.weight"][3, 4] = float("inf")
    saved[200] = {"a.weight": saved[200]["a.weight"]}
    problems = dict(found(write(tmp_path, saved, manifest=True)))
    assert "b.weight holds values that are not finite" in problems.pop(f"{step_folder(100)}/model.safetensors")
    assert "b.weight is not there, elsewhere [60, 50]" in problems.pop(step_folder(200))
    assert problems == {}


def test_whatever_is_gone_is_said(series: Path) -> None:
    (series / step_folder(1) / "config.json").unlink()
    for name in ("config.json", "model.safetensors"):
        (series / step_folder(2) / name).unlink()
    shutil.copytree(series / step_folder(500), series / "step500")
    problems = found(series)
    assert [where for where, what in problems if "missing" in what] == [
        f"{step_folder(1)}/config.json",
        f"{step_folder(2)}/config.json",
        f"{step_folder(2)}/model.safetensors",
    ]
    assert [what.partition(";")[0] for where, what in problems if where == "step500"] == [
        f"step 500 once more, beside {step_folder(500)}",
        "same weights as step 500",
    ]
    without_manifests(series)
    shutil.rmtree(series / "step500")
    (series / step_folder(4) / "model.safetensors").unlink()
    problems = found(series)
    assert [(where, what.partition(" ")[0]) for where, what in problems] == [
        (f"{step_folder(1)}/config.json", "missing;"),
        (step_folder(4), "model.safetensors"),
    ]


def test_progress_and_one_line_each(series: Path) -> None:
    (series / step_folder(2) / "two\nlines").write_text("x")
    told: list[tuple[str, int, int]] = []
    opened = CheckpointSeries.open(series)
    problems = verify(opened, lambda what, done, total, note="": told.append((what, done, total)))
    assert [entry for entry in told if entry[0] == "checking files"] == [
        ("checking files", i, len(STEPS)) for i in range(1, len(STEPS) + 1)
    ]
    assert len(problems) == 1
    assert all("\n" not in problem.what for problem in problems)


def test_a_gguf_file_is_not_called_sound(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="GGUF"):
        verify(tmp_path / "model.gguf")
