"""The mean of the weights of neighbouring checkpoints, as a series of its own inside the one it is made of."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from copyscope.training.checkpoints.keys import checkpoint_key
from copyscope.training.checkpoints.manifest import check_files, read_manifest
from copyscope.training.checkpoints.series import (
    Checkpoint,
    CheckpointSeries,
    Source,
    local_path,
    step_folder,
)
from copyscope.training.checkpoints.tokenizer_files import TOKENIZER_FILES
from copyscope.training.checkpoints.weights import CHUNK, Weights, model_tensors, read_header
from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST, write_folder, write_json
from copyscope.training.progress import Progress
from copyscope.training.schedule import settings_at

SHARE = 1 / 4
"""Of the steps so far, the last that a mean is taken over."""
MEAN = "mean.safetensors"
"""In the folder of a checkpoint: the mean of the weights since the one before (`training.running_mean`)."""
SINCE = "mean_since"
"""In the manifest of that folder: the step of the checkpoint before."""
ABOUT = "average.json"
"""The file by which a folder of means is known."""
_COPIED = ("config.json", "generation_config.json")
_WHOLE = {
    "I64": "<i8",
    "U64": "<u8",
    "I32": "<i4",
    "U32": "<u4",
    "I16": "<i2",
    "U16": "<u2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "?",
}


class Average(NamedTuple):
    """What `average` did."""

    folder: Path
    """The series of means."""
    written: list[int]
    """Steps whose mean was not there yet."""
    parts: dict[int, dict[int, float]]
    """Step → the steps averaged for it, each with its weight."""
    of_several: list[int]
    """Steps whose mean is of the weights after several updates: of several checkpoints or of a whole stretch."""


def average(source: Source, share: float = SHARE, progress: Progress | None = None) -> Average:
    """Writes a series in which the model of step s is the mean of the weights from step (1 - `share`) s to s.

    `source`: a run or a folder of Hugging Face models with safetensors; its own checkpoints stay as they are, and the
    means go into `average_folder`. Each checkpoint counts for the updates since the one before it, so that a denser
    stretch weighs no more; by the mean of the weights in between where it holds that (`checkpoints.mean_every`), else
    by its own weights. The mean is kept in float32. Means that are there already and are of the same files stay.
    Raises InputError: a share outside (0, 1], a series that is not on this disk, is damaged or of several shapes.

    The mean of late weights as a better model of the same run: Izmailov et al. 2018 (arXiv 1803.05407); of a window
    that moves along: Kaddour 2022 (arXiv 2209.14981). It lags behind the run, so it dates nothing.
    """
    if not 0 < share <= 1:
        raise InputError(f"--share {share:g}: give a share of the steps so far, above 0 and at most 1")
    series, folder = CheckpointSeries.open(source), local_path(os.fspath(source))
    if not folder.is_dir() or any(one.revision is not None for one in series.checkpoints):
        raise InputError(
            f"{series.source}: only folders of safetensors files can be averaged; download the revisions first"
        )
    if (folder / ABOUT).is_file():
        raise InputError(f"{folder}: holds means already; average {folder.parent} with another --share")
    steps = [one.step for one in series.checkpoints]
    parts = {step: shares(steps, step, share) for step in steps}
    if len(parts) < len(steps):
        raise InputError(f"{folder}: two checkpoints of one step; `copyscope verify {folder}` names them")
    before_it = dict(zip(steps[1:], steps, strict=False))
    files = {one.step: _Part(one, before_it.get(one.step)) for one in series.checkpoints}
    target = average_folder(folder, share)
    _label(target, folder, share)
    written: list[int] = []
    before: dict[int, float] = {}
    for done, (step, part) in enumerate(parts.items()):
        for one in before.keys() - part.keys():  # the window moves on, and none comes back
            files[one].close()
        before = part
        labels = {str(one): files[one].label for one in part}
        place = target / "checkpoints" / step_folder(step)
        if not (place / MANIFEST).is_file() or read_manifest(place).get("averaged") != labels:
            run = hashlib.sha256(repr((files[step].run_id, share)).encode()).hexdigest()[:12]
            write_folder(
                place,
                lambda temp, step=step, part=part: _fill(temp, files, step, part),
                step=step,
                tokens=files[step].checkpoint.tokens,
                run_id=run,
                averaged=labels,
            )
            written.append(step)
            if progress:
                progress("averaging checkpoints", done + 1, len(parts))
    several = [step for step, part in parts.items() if len(part) > 1 or files[step].mean]
    return Average(target, written, parts, several)


def average_folder(run: Path, share: float = SHARE) -> Path:
    """Where the means of a run go: inside it, so that they are not taken for a run, and go when it goes."""
    return run / ("average" if share == SHARE else f"average-{share:g}")


def is_mean_of(mean: Path, checkpoint: Checkpoint) -> bool:
    """Whether the mean in this folder is that of the checkpoint's step, made when its weights were what they are."""
    label = read_manifest(mean).get("averaged", {}).get(str(checkpoint.step), "")
    return label.split(" ")[0] == checkpoint_key(checkpoint)  # after it: which mean of the stretch before it


def shares(steps: Sequence[int], step: int, share: float) -> dict[int, float]:
    """Which of these steps (ascending) make up the mean at `step`, and with what weights, which sum to 1."""
    begin = step * (1 - share)
    before = [-math.inf, *steps]
    spans = {
        part: min(part - max(last, begin), step)
        for last, part in zip(before, steps, strict=False)
        if begin < part <= step
    }
    total = sum(spans.values())
    return {part: value / total for part, value in spans.items()} if total else {step: 1.0}


class _Part:
    """A checkpoint that goes into means."""

    def __init__(self, checkpoint: Checkpoint, before: int | None):
        """`before`: the step of the checkpoint before it."""
        self.checkpoint, self.folder = checkpoint, Path(checkpoint.path)
        check_files(self.folder)
        manifest = read_manifest(self.folder) if (self.folder / MANIFEST).is_file() else {}
        self.run_id = str(manifest.get("run_id", ""))
        # In a stretch that was trained again with more checkpoints the one before is another.
        mean = manifest["files"].get(MEAN) if manifest and manifest.get(SINCE) == before else None
        self.mean = self.folder / MEAN if mean else None
        self.label = checkpoint_key(checkpoint) + (f" {mean}" if mean else "")
        self._weights: Weights | None = None

    @property
    def weights(self) -> Weights:
        if self._weights is None:
            self._weights = Weights(read_header(self.mean) if self.mean else model_tensors(self.folder))
        return self._weights

    def close(self) -> None:
        if self._weights is not None:
            self._weights.close()


def _fill(temp: Path, files: dict[int, _Part], step: int, part: dict[int, float]) -> None:
    """A model's folder with the mean of `part`; what is not a weight is that of `step`."""
    own = files[step].folder
    tokenizer = files[step].checkpoint.tokenizer
    held = [folder / name for folder in ([Path(tokenizer)] if tokenizer else [own]) for name in TOKENIZER_FILES]
    for path in [*(own / name for name in _COPIED), *held]:
        if path.is_file():
            shutil.copyfile(path, temp / path.name)
    means = {name: _mean(files, name, step, part) for name in sorted(files[step].weights.places)}
    save_file(means, temp / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((own / "config.json").read_text("utf-8"))
    for field in ("dtype", "torch_dtype"):  # else transformers would round the mean to what the parts were kept in
        if field in config:
            config[field] = "float32"
    (temp / "config.json").write_text(json.dumps(config, indent=2))


def _mean(files: dict[int, _Part], name: str, step: int, part: dict[int, float]) -> np.ndarray:
    """The mean of one tensor; one that is not of floats (a buffer such as a mask) is that of `step`."""
    place = files[step].weights.places[name]
    if not place.is_float:
        if place.dtype not in _WHOLE:
            raise InputError(f"{files[step].folder}: {name} is of {place.dtype}, which has no mean; give float weights")
        values = files[step].weights.bytes_of(name, 0, place.end - place.start)
        return values.view(_WHOLE[place.dtype]).reshape(place.shape)
    for one in part:
        if files[one].weights.shapes.get(name) != place.shape:
            raise InputError(
                f"{files[one].folder}: {name} differs in shape from step {step}'s; they are not one series"
            )
    mean = np.empty(math.prod(place.shape), np.float32)
    for first in range(0, len(mean), CHUNK):
        chunk = np.zeros(min(CHUNK, len(mean) - first))
        for one, weight in part.items():
            values = files[one].weights.values(name, first, CHUNK)
            if not np.isfinite(values).all():
                raise InputError(f"{files[one].folder}: {name} holds values that are not finite; take the step away")
            chunk += weight * values
        mean[first : first + CHUNK] = chunk
    return mean.reshape(place.shape)


def _label(target: Path, source: Path, share: float) -> None:
    """Says what the folder holds, and what prompts measure it: the run's own."""
    if (target / ABOUT).is_file():
        return
    data = source / "data.json"
    if data.is_file():
        held = json.loads(data.read_text("utf-8"))
        if (source / "config.toml").is_file():  # which stays behind: the means are no run that could be trained on
            config = RunConfig.load(source / "config.toml")
            held |= {"eval_seed": config.seeds.eval, "intervention": config.intervention.model_dump(mode="json")}
            if config.fork.until is not None:
                after = settings_at(config, config.fork.until).intervention
                held["later"] = {"from": config.fork.until, "intervention": after.model_dump(mode="json")}
        write_json(target / "data.json", held)
    write_json(target / ABOUT, {"of": source.resolve().name, "share": share})
