"""A tiny series on disk and five hundred ways to damage one of its checkpoints, each from its number alone."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from copyscope.training.checkpoints.series import step_folder
from copyscope.training.files import MANIFEST, write_folder

FILES = ("model.safetensors", "config.json", "tokenizer.json", MANIFEST)
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 90,
    "max_position_embeddings": 64,
}
ODD = ["0", "-1", "7", "1e400", "1000000000000", "null", "true", '"x"', "[]", "{}", "NaN", "0.5", '"\\ud800"', "16.0"]
TEXTS = ["", "null", "[]", "{}", "[" * 100_000, '{"a": ' * 2_000, "\ufeff{}", "\x00\x00", "9" * 5_000, '{"files": 3}']


def write_series(folder: Path, steps: tuple[int, ...] = (0, 100, 200, 300)) -> Path:
    """A run's checkpoints: one model that moves on, with a tokenizer and manifests."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))  # type: ignore[arg-type]
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(90)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1")
    way = [torch.randn_like(parameter) * 0.05 for parameter in model.parameters()]

    def fill(place: Path) -> None:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)

    for step in steps:
        with torch.no_grad():
            for parameter, by in zip(model.parameters(), way, strict=True):
                parameter.add_(by + 0.01 * torch.randn_like(by))
        write_folder(folder / step_folder(step), fill, step=step, tokens=step * 512, run_id="0123456789ab")
    return folder


def damage(folder: Path, number: int) -> str:
    """Damages the checkpoint; says how. The same number does the same to the same folder."""
    draw = random.Random(number)
    name = draw.choice(FILES)
    how = draw.choice([flip, flip, flip, cut, zero, append, replace, odd_value, odd_value, missing, to_folder, foreign])
    how(folder / name, draw)
    return f"{number}: {how.__name__} {name}"


Damage = Callable[[Path, random.Random], None]


def _edit(path: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(path: Path, draw: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: draw.choice([0, 1, 8, 9, draw.randrange(len(data)), len(data) - 1])])


def zero(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start, length = draw.randrange(len(data)), draw.choice([1, 64, 4096])
    data[start : start + length] = bytes(len(data[start : start + length]))
    path.write_bytes(data)


def append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice([1, 8, 1000])))


def replace(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice([draw.randbytes(500), draw.choice(TEXTS).encode()]))


def odd_value(path: Path, draw: random.Random) -> None:
    """One value of the JSON, or of the header of a safetensors file, becomes something else."""
    if path.suffix != ".json":
        size = draw.choice([0, 1, 2**20, 2**40, 2**63, 2**64 - 1])
        path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
        return
    values = json.loads(path.read_text())
    place, key = values, ""
    while isinstance(place, dict) and place:
        key = draw.choice(sorted(place))
        if not isinstance(place[key], dict) or not place[key] or draw.random() < 0.3:
            break
        place = place[key]
    place[key] = "ODD"
    path.write_text(json.dumps(values).replace('"ODD"', draw.choice(ODD)))


def missing(path: Path, draw: random.Random) -> None:
    path.unlink()


def to_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def foreign(path: Path, draw: random.Random) -> None:
    """A file that is not the checkpoint's, and perhaps one that replaces its own."""
    (path.parent / draw.choice(["x.bin", "adapter_config.json", "model-00001-of-00002.safetensors"])).write_text("{}")
    if draw.random() < 0.5:
        (path.parent / "model.safetensors.index.json").write_text(draw.choice(TEXTS))


def fresh(source: Path, target: Path) -> Path:
    """A copy of the series in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
