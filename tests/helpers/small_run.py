"""A corpus and a configuration small enough to train in a second."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from copyscope.training.config import RunConfig
from copyscope.training.trainer import train


def write_corpus(path: Path, n: int = 40, seed: int = 0) -> Path:
    """`n` documents of about 1,000 characters, made of a few words each."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(n)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def small_config(corpus: Path, values: Mapping[str, Any] | None = None) -> RunConfig:
    return RunConfig.parse(
        {
            "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_mlp": 48, "n_ctx": 32},
            "data": {"corpus": str(corpus), "vocab_size": 300, "validation_share": 0.2},
            "optimizer": {"warmup_steps": 4, "schedule": "cosine"},
            "train": {
                "steps": 20,
                "batch_size": 2,
                "precision": "fp32",
                "log_every": 2,
                "validate_every": 5,
                "validation_sequences": 4,
                "threads": 1,
            },
            "checkpoints": {"every": 4, "resume_every": 6},
        }
    ).with_values(values or {})


def weights(run: Path, step: int) -> dict[str, bytes]:
    """The exact bytes of every weight of a checkpoint."""
    state = load_file(run / "checkpoints" / f"step{step:08d}" / "model.safetensors")
    return {name: value.numpy().tobytes() for name, value in state.items()}


def metrics(run: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def train_small(out: Path, config: RunConfig, on_checkpoint: Callable[[Any], None] | None = None) -> Path:
    return train(config, out, on_checkpoint)
