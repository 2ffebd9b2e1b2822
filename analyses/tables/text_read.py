"""What a run has read of its text, as kept in results/text.json. Needs no torch."""

import json
from dataclasses import dataclass

from copyscope.analyses.tables.run import Run, read_metrics
from copyscope.training.errors import InputError

FILE = "text.json"
"""Where it is kept, under results/."""


@dataclass(frozen=True, kw_only=True)
class TextRead:
    """What a run had read by its last scored checkpoint. Losses in nats a token, None where they do not apply."""

    step: int
    tokens: int
    """Read so far, repetitions included."""
    text_tokens: int
    """In the training part of the corpus."""
    passes: float
    """How often the stream of windows has gone over the text; with `repeat_choice` k it keeps one window in k."""
    distinct_share: float
    """Of the training text, the share that was read at least once."""
    seen_before: float
    """Of the tokens read, the share that had been read before."""
    loss_training_text: float | None = None
    """On windows of the training text at random, read or not."""
    loss_held_out_chosen: float | None = None
    """On held-out windows chosen as the training windows are; None where training takes every window."""


def stored_text(run: Run) -> TextRead | None:
    """What `measure_text` kept; None where it has not been called, or for an earlier checkpoint."""
    path = run.folder / "results" / FILE
    if not path.is_file() or not run.series.checkpoints:
        return None
    try:
        fields = json.loads(path.read_text("utf-8"))
        read = TextRead(**{name: value for name, value in fields.items() if name != "key"})
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run `copyscope score {run.folder}` again") from None
    return read if read.step == run.series.checkpoints[-1].step else None


def training_loss(run: Run, step: int) -> float | None:
    """Mean loss of the training windows over the last twentieth of the updates up to `step`, from metrics.jsonl."""
    metrics = read_metrics(run).drop_nulls("loss")
    late = metrics.filter((metrics["step"] <= step) & (metrics["step"] > 0.95 * step - 1))
    return float(late["loss"].mean()) if late.height else None  # type: ignore[arg-type]
