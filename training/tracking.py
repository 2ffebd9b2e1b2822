"""Where the numbers of training go: metrics.jsonl always, and TensorBoard, Weights & Biases or trackio if asked."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.files import disk_full, is_disk_full, write_text
from copyscope.training.progress import Progress


def check_trackers(config: RunConfig) -> None:
    """Raises InputError for a tracker that is not installed; accelerate would leave it out without a word."""
    for name in config.train.track:
        if find_spec(name) is None:
            raise InputError(f'train.track: {name} is not installed; pip install "copyscope[track]", or leave it out')


class RunLog:
    """Appends lines to metrics.jsonl of the run in folder `out`, after dropping those past `step`, where the run goes
    on (they will be written again), and a last one cut off by a kill."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        step: int,
        last: int,
        accelerator: Accelerator,
        progress: Progress | None,
    ):
        self._path, self._last, self._accelerator, self._progress = out / "metrics.jsonl", last, accelerator, progress
        if self._path.is_file():
            write_text(self._path, "".join(line + "\n" for line in _lines_until(self._path, step)))
        if config.train.track:
            fields = config.model_dump(mode="json")
            flat = {f"{section}.{name}": value for section, of in fields.items() for name, value in of.items()}
            scalars = {name: value for name, value in flat.items() if isinstance(value, bool | int | float | str)}
            accelerator.init_trackers(
                "copyscope", scalars | {"run_id": config.run_id}, init_kwargs={"wandb": {"name": out.name}}
            )

    def write(self, **line: Any) -> None:
        """One line; `step` among its values. Raises InputError when the disk is full."""
        try:
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise disk_full(self._path) if is_disk_full(error) else error from None
        self._accelerator.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])
        if self._progress:
            self._progress("training", line["step"], self._last, _note(line))


def _note(line: dict[str, Any]) -> str:
    if "loss" in line:
        return f"loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s"
    return f"validation loss {line['validation_loss']:.3f}" if "validation_loss" in line else ""


def _lines_until(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
