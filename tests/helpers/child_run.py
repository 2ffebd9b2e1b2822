"""A run small enough to train in a second, for a process of its own that a test kills or starves of disk."""

import json
import os
import random
import resource
import signal
import traceback
from pathlib import Path
from typing import Any

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError, Stopped
from copyscope.training.trainer import train

STEPS = 40


def write_corpus(path: Path) -> Path:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config(corpus: Path) -> RunConfig:
    return RunConfig.parse(
        {
            "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_mlp": 48, "n_ctx": 32, "attention_dropout": 0.1},
            "data": {"corpus": str(corpus), "vocab_size": 300, "validation_share": 0.2},
            "optimizer": {"warmup_steps": 4},
            "train": {
                "steps": STEPS,
                "batch_size": 2,
                "precision": "fp32",
                "log_every": 1,
                "validate_every": 5,
                "validation_sequences": 4,
                "threads": 1,
            },
            "checkpoints": {"every": 4, "resume_every": 3},
        }
    )


def _limit(size: int) -> None:
    """No file may grow past `size` bytes from now on, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def run_child(
    out: str,
    corpus: str,
    pipe: Any,
    full: tuple[int, int] | None = None,
    stop_at: int | None = None,
    tell_writes: bool = False,
) -> None:
    """Trains, and sends each finished checkpoint's step and then how it ended. `full` (step, bytes): the disk is full
    for files of more than `bytes` once that step is logged (-1: from the start, on the token store). `tell_writes`:
    sends "writing" just before each fsync, that is, several times in the middle of every save."""
    if tell_writes:
        real = os.fsync

        def told(descriptor: int) -> None:
            pipe.send("writing")
            real(descriptor)

        os.fsync = told

    def progress(what: str, step: int, total: int, note: str = "") -> None:
        if full is not None and step == full[0]:
            _limit(full[1])
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        if full is not None and full[0] < 0:
            _limit(full[1])
        train(config(Path(corpus)), out, lambda checkpoint: pipe.send(checkpoint.step), progress)
        pipe.send("finished")
    except (InputError, Stopped) as error:
        pipe.send(f"{type(error).__name__}: {error}")
    except BaseException:
        pipe.send(traceback.format_exc())
