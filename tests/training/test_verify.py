"""A sound series raises no alarm; each way of spoiling it is found, at the step where it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from training.checkpoints import CheckpointSeries, step_folder, write_folder

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
    return [(str(Path(p.where).relative_to(root)), p.what) for p in CheckpointSeries.open(root).verify()]


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10**9), bit=st.integers(0, 7), name=st.sampled_from(["config.json", "model.safetensors"]))
def test_any_flipped_bit_is_found(series: Path, where: int, bit: int, name: str) -> None:
    path = series / step_folder(64) / name
    before = path.read_bytes()
    data = bytearray(before)
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    assert [name for name, what in found(series) if "damaged" in what] == [f"step00000064/{name}"]
    path.write_bytes(before)


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
        step: right[step] if step not in changed else right[changed[step]] if changed[step] >= 0 else
        other[step]
        for step in right
    }  # fmt: skip
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
    says = [("step00000017", "differ"), ("step00000064", "another run"), ("step00000100", "5 tokens at step 100"),
            ("step00000200/optimizer.pt", "foreign")]  # fmt: skip
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
