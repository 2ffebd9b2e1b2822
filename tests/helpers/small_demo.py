"""A whole demo in miniature, on text made here: a few seconds, no network, nothing of the embedded corpus."""

import random
from pathlib import Path

from copyscope.training.config import RunConfig


def write_corpus(folder: Path, documents: int = 120) -> Path:
    """Documents of made-up words that repeat within a document, as names in source code do."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 7))) for _ in range(40)]
        text = " ".join(draw.choice(words) for _ in range(400))
        (folder / f"{number:03}.txt").write_text(text)
    return folder


def small_config(corpus: Path, **values: object) -> RunConfig:
    changes = {
        "model.n_layers": 2,
        "model.n_heads": 2,
        "model.d_model": 32,
        "model.d_mlp": 64,
        "model.n_ctx": 64,
        "data.corpus": str(corpus),
        "data.vocab_size": 320,
        "data.validation_share": 0.2,
        "train.steps": 16,
        "train.batch_size": 2,
        "train.threads": 1,
        "train.validation_sequences": 4,
        "checkpoints.every": 4,
        "checkpoints.resume_every": 4,
    }
    return RunConfig().with_values({**changes, **values})
