"""Where the numbers of training go: metrics.jsonl always, and TensorBoard, Weights & Biases or trackio if asked."""

import json
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.files import disk_full, is_disk_full, write_json, write_text
from copyscope.training.progress import Progress


def check_trackers(config: RunConfig) -> None:
    """Raises InputError for a tracker that is not installed; accelerate would leave it out without a word."""
    for name in config.train.track:
        if find_spec(name) is None:
            raise InputError(f'train.track: {name} is not installed; pip install "copyscope[track]", or leave it out')


class RunLog:
    """Appends lines to metrics.jsonl of the run in folder `out`, and gives them to the trackers of `accelerator`.

    Where a run resumes at `step`, lines past it are dropped first (they will be written again), and a last one that a
    kill cut off. A run that is stopped and resumed is one run in each tracker; one that has nothing left to do (`step`
    is `last`) starts none.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        step: int,
        last: int,
        accelerator: Accelerator,
        progress: Progress | None,
    ):
        self._path, self._last, self._progress = out / "metrics.jsonl", last, progress
        self._tracked_until = -1
        """Steps up to here are in the trackers already; those that take each step once do not get them again."""
        if self._path.is_file():
            lines = _lines(self._path)
            self._tracked_until = max((at for at, _ in lines), default=-1)
            write_text(self._path, "".join(line + "\n" for at, line in lines if at <= step and step > 0))
        self._trackers: list[Any] = []
        if accelerator.log_with and step < last:
            self._trackers = _start_trackers(config, out, step, accelerator)

    def write(self, **line: Any) -> None:
        """One line; `step` among its values. Raises InputError when the disk is full."""
        try:
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise disk_full(self._path) if is_disk_full(error) else error from None
        step = line["step"]
        for tracker in self._trackers:
            if step > self._tracked_until or tracker.name == "tensorboard":
                tracker.log({name: value for name, value in line.items() if name != "step"}, step=step)
        if self._progress:
            self._progress("training", step, self._last, _note(line))

    def close(self) -> None:
        """Lets the trackers write what they hold. They can be resumed afterwards."""
        for tracker in self._trackers:
            tracker.finish()


def _start_trackers(config: RunConfig, out: Path, step: int, accelerator: Accelerator) -> list[Any]:
    """Starts or resumes the run in each tracker, under the id that the run's folder keeps."""
    path = out / "tracking.json"
    is_new = not path.is_file()
    if is_new:
        write_json(path, {"id": secrets.token_hex(4)})
    try:
        run_id = str(json.loads(path.read_text("utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it, and the trackers begin a new run") from None
    accelerator.init_trackers(
        "copyscope",
        init_kwargs={
            "wandb": {"name": out.name, "id": run_id, "resume": "allow"},
            "trackio": {"name": f"{out.name}-{run_id}", "resume": "allow"},  # which knows runs by name
            "tensorboard": {"purge_step": step + 1 if step else None},  # what was logged past it is replaced
        },
    )
    fields = config.model_dump(mode="json")
    flat = {f"{section}.{name}": value for section, of in fields.items() for name, value in of.items()}
    scalars = {name: value for name, value in flat.items() if isinstance(value, bool | int | float | str)}
    scalars["run_id"] = config.run_id
    for tracker in accelerator.trackers:
        if tracker.name != "tensorboard":
            tracker.store_init_configuration(scalars)
        elif is_new:
            _store_for_tensorboard(tracker, scalars)
    return accelerator.trackers


def _store_for_tensorboard(tracker: Any, scalars: dict[str, Any]) -> None:
    """Into the run itself; accelerate would make a second one for them, each time."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(scalars, {}):
        tracker.writer.file_writer.add_summary(summary)


def _note(line: dict[str, Any]) -> str:
    if "loss" in line:
        share = f", MFU {line['mfu']:.0%}" if "mfu" in line else ""
        return f"loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s{share}"
    return f"validation loss {line['validation_loss']:.3f}" if "validation_loss" in line else ""


def _lines(path: Path) -> list[tuple[int, str]]:
    """The step of each whole line, and the line."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append((int(json.loads(line)["step"]), line))
        except (ValueError, KeyError, TypeError):
            continue
    return lines
