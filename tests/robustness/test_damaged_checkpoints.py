"""Five hundred damaged checkpoints, with manifests and without: one line each, no wrong number where it can be known.

What cannot be known without a manifest: that a bit of a weight, or a value of the config that makes another sound
model, is not what was saved. Those load, and `verify` finds them only where the weights leave the way of the series.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from damage import FILES, damage, fresh, write_series

from copyscope.interp.models.hooked import load_hooked
from copyscope.training.checkpoints.series import CheckpointSeries, step_folder
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST

HALF = 250
TOKENS = torch.randint(0, 90, (1, 16), generator=torch.Generator().manual_seed(0))
HIT = step_folder(200)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    logging.disable(logging.WARNING)  # transformers remarks on odd values
    folder = write_series(tmp_path_factory.mktemp("sound"))
    assert verify(CheckpointSeries.open(folder)) == []
    yield folder
    logging.disable(logging.NOTSET)


def one_line_about(folder: Path, message: str) -> None:
    assert "\n" not in message
    assert str(folder) in message


def outcome(folder: Path, wanted: torch.Tensor) -> str:
    """`refused` in one line, else whether the logits are the wanted ones. Anything else raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = load_hooked(folder)(TOKENS)
    except InputError as error:
        one_line_about(folder, str(error))
        return "refused"
    assert torch.isfinite(logits).all()
    return "right" if torch.equal(logits, wanted) else "wrong"


def problems(folder: Path) -> list[str]:
    """Where `verify` finds something wrong."""
    found = verify(CheckpointSeries.open(folder))
    assert all("\n" not in problem.what for problem in found)
    return [problem.where for problem in found]


def test_with_a_manifest_nothing_wrong_passes(sound: Path, tmp_path: Path) -> None:
    wanted = load_hooked(sound / HIT)(TOKENS)
    seen: Counter[str] = Counter()
    for number in range(HALF):
        series = fresh(sound, tmp_path / "run")
        what = damage(series / HIT, number)
        result = outcome(series / HIT, wanted)
        assert result != "wrong", what
        found = problems(series)
        assert found, f"{what}: verify did not see it"
        assert any(HIT in where for where in found), (what, found)  # a wrong label can make others seem out of place
        seen[result] += 1
    assert seen["refused"] > 0.8 * HALF
    assert seen["right"] > 0  # a foreign file, say, or a label: what was loaded is right all the same


def test_without_one_it_is_refused_or_a_sound_model(sound: Path, tmp_path: Path) -> None:
    wanted = load_hooked(sound / HIT)(TOKENS)
    seen: Counter[str] = Counter()
    for number in range(HALF, 2 * HALF):
        series = fresh(sound, tmp_path / "run")
        what = damage(series / HIT, number)
        for path in series.glob(f"*/{MANIFEST}"):
            path.unlink() if path.is_file() else path.rmdir()
        result = outcome(series / HIT, wanted)
        if "missing model" in what or "missing config" in what or "cut model" in what:
            assert result == "refused", what
        problems(series)
        seen[result] += 1
    assert all(seen[kind] > 0 for kind in ("refused", "right", "wrong")), seen


def test_the_damage_is_of_every_kind(sound: Path, tmp_path: Path) -> None:
    seen = Counter(damage(fresh(sound, tmp_path / "run") / HIT, number).split(": ")[1] for number in range(2 * HALF))
    assert {f"{how} {name}" for how in ("flip", "cut", "zero", "missing", "odd_value") for name in FILES} <= seen.keys()


@pytest.mark.parametrize("position", range(0, 8000, 997))
def test_every_flipped_bit_is_found_where_there_is_a_manifest(sound: Path, tmp_path: Path, position: int) -> None:
    series = fresh(sound, tmp_path / "run")
    weights = series / HIT / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1 - position] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match="damaged: its sha256 differs"):
        load_hooked(series / HIT)
