"""The tiny model and text on which the commands of the docs run."""

import random
from pathlib import Path

from training.config import RunConfig


def write_text_folder(folder: Path) -> Path:
    """Documents of made-up words that repeat."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(150):
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(40)]
        (folder / f"{number:03}.txt").write_text(" ".join(draw.choice(words) for _ in range(400)))
    return folder


def small_preset(corpus: Path) -> RunConfig:
    """Four layers of four heads, as the quickstart has them, and everything else small."""
    return RunConfig().with_values(
        {
            "model.n_layers": 4,
            "model.n_heads": 4,
            "model.d_model": 32,
            "model.d_mlp": 32,
            "model.n_ctx": 64,
            "data.corpus": str(corpus),
            "data.vocab_size": 320,
            "data.validation_share": 0.2,
            "train.steps": 12,
            "train.batch_size": 2,
            "train.threads": 1,
            "train.validation_sequences": 4,
            "checkpoints.every": 4,
            "checkpoints.resume_every": 4,
        }
    )
