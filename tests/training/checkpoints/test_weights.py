"""Weight files read a chunk at a time give what the safetensors library and torch give, and no damage gets past."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file

from copyscope.training.checkpoints import weights as module
from copyscope.training.checkpoints.weights import UnreadableError, Weights, distance, read_header, read_index, scan

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def tensors(seed: int, dtypes: list[torch.dtype] = DTYPES) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(3, 5), (7,), (), (2, 3, 4), (0, 3), (1, 1), (31,)]
    return {
        f"t{i}.{dtype}": (4 * torch.randn(shapes[i % len(shapes)], generator=draw)).to(dtype)
        for i, dtype in enumerate([*dtypes, *dtypes])
    }


def opened(path: Path) -> Weights:
    return Weights(read_header(path))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)


def test_values_are_those_of_the_library(tmp_path: Path) -> None:
    save_file(tensors(0), tmp_path / "a.safetensors")
    with opened(tmp_path / "a.safetensors") as weights:
        for name, value in load_file(tmp_path / "a.safetensors").items():
            assert weights.places[name].shape == tuple(value.shape)
            if value.is_floating_point():
                read = weights.values(name, 0, 10**6)
                assert np.array_equal(read, value.flatten().to(torch.promote_types(value.dtype, torch.float32)).numpy())
                assert np.array_equal(weights.values(name, 2, 3), read[2:5])


def test_the_distance_is_that_of_torch(tmp_path: Path) -> None:
    first, second = tensors(0), tensors(1)
    save_file(first, tmp_path / "a.safetensors")
    save_file(second, tmp_path / "b.safetensors")
    floats = [name for name, value in first.items() if value.is_floating_point()]
    apart = math.sqrt(sum(float((first[name].double() - second[name].double()).square().sum()) for name in floats))
    with opened(tmp_path / "a.safetensors") as a, opened(tmp_path / "b.safetensors") as b:
        result = scan(b, [a, b])
        assert result.distances == (pytest.approx(apart), 0.0)
        assert distance(a, b) == pytest.approx(apart)


def test_equal_weights_have_one_fingerprint_in_any_file(tmp_path: Path) -> None:
    """In other files, order and precision, with another header, and with -0 for 0."""
    values = tensors(0, [torch.bfloat16, torch.float32, torch.int64])
    first, *rest = values
    values["t1.torch.float32"][0] = 0.0
    save_file(values, tmp_path / "one.safetensors")
    other = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in values.items()}
    other["t1.torch.float32"] = values["t1.torch.float32"].clone()
    other["t1.torch.float32"][0] = -0.0
    save_file({first: other[first]}, tmp_path / "x.safetensors", {"long": "header" * 99})
    save_file({name: other[name] for name in rest}, tmp_path / "y.safetensors")
    with (
        opened(tmp_path / "one.safetensors") as one,
        Weights(read_header(tmp_path / "x.safetensors") | read_header(tmp_path / "y.safetensors")) as two,
    ):
        assert scan(one).fingerprint == scan(two).fingerprint
        assert distance(one, two) == 0


@examples(30)
@given(seed=st.integers(0, 10**6))
def test_any_other_value_has_another_fingerprint(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder, draw = tmp_path_factory.mktemp("w"), random.Random(seed)
    values = tensors(seed)
    save_file(values, folder / "a.safetensors")
    name = draw.choice([name for name, value in values.items() if value.numel() and value.dtype != torch.bool])
    flat = values[name].flatten()
    flat[draw.randrange(len(flat))] += 1
    save_file(values | {name: flat.reshape(values[name].shape)}, folder / "b.safetensors")
    with opened(folder / "a.safetensors") as a, opened(folder / "b.safetensors") as b:
        assert scan(a).fingerprint != scan(b).fingerprint


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    values = {"a": torch.ones(9), "b": torch.ones(3, 3, dtype=torch.bfloat16), "c": torch.ones(2)}
    values["b"][2, 1] = value
    save_file(values, tmp_path / "a.safetensors")
    with opened(tmp_path / "a.safetensors") as weights:
        assert scan(weights).not_finite == "b"


@pytest.mark.parametrize(("size", "zeros"), [(9, 0), (9, 1), (9, 4), (9, 5), (9, 9), (8, 4), (8, 8), (8, 5)])
def test_zeros_at_the_end_are_counted_over_chunks(tmp_path: Path, size: int, zeros: int) -> None:
    values = torch.ones(size)
    values[0] = values[size - zeros :] = 0
    save_file({"a": values, "b": torch.ones(5)}, tmp_path / "a.safetensors")
    with opened(tmp_path / "a.safetensors") as weights:
        assert scan(weights).zeros == ({"a": zeros} if zeros else {})


@examples(200)
@given(seed=st.integers(0, 10**9))
def test_a_damaged_header_never_gets_past_nor_breaks_anything(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """What the library refuses, this refuses; nothing but UnreadableError comes out."""
    draw = random.Random(seed)
    data = bytearray(save({"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}))
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(draw.randint(0, 2)):
        data[draw.randrange(header)] ^= 1 << draw.randrange(8)
    if draw.random() < 0.3:
        del data[draw.randrange(len(data)) :]
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    path.write_bytes(data)
    try:
        load(bytes(data))
    except (SafetensorError, ValueError, KeyError, TypeError):
        with pytest.raises(UnreadableError):
            read_header(path)
    else:
        assert read_header(path).keys() == load(bytes(data)).keys()


def test_how_much_is_missing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(100)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-30])
    with pytest.raises(UnreadableError, match=rf"cut off: 30 of {len(data)} bytes are missing"):
        read_header(path)
    path.write_bytes(data + b"12")
    with pytest.raises(UnreadableError, match="2 bytes too long"):
        read_header(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableError, match="cut off"):
        read_header(path)


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}', "[" * 10**5]
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UnreadableError, match="unreadable"):
        read_index(tmp_path)


def test_the_files_of_a_checkpoint(tmp_path: Path) -> None:
    assert read_index(tmp_path) == {}
    index: dict[str, Any] = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_index(tmp_path) == {"1.safetensors": ["a", "c"], "2.safetensors": ["b"]}
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_index(tmp_path) == {"model.safetensors": []}
