"""What is wrong with a series of checkpoints: damaged files, wrong labels, weights that do not belong where they are.

With a manifest every byte is checked. Without one (somebody else's series) what can be seen from the files is: whether
they are whole, hold numbers, and whether the weights lie where those of a training run would.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from training.checkpoints import MANIFEST, Checkpoint, read_manifest, sha256_of, step_of
from training.errors import InputError

if TYPE_CHECKING:
    import torch

DETOUR = 2.2
"""Largest ratio of the way over a checkpoint to the way past it, (d(a, b) + d(b, c)) / d(a, c), that training gives:
1 on a line, 1.41 for a random walk, 2 for noise about a fixed point. Two steps that changed places give 2.4."""
LEAP = 2.5
"""Largest ratio of a distance between neighbours to the distances before and after it, each divided by the square root
of its steps. Runs of 9,000 steps at a constant rate after warm-up gave at most 1.1 here, and at most 1.7 above."""
_WRONG = "wrong weights or a wrong label"
_TAIL = 512
"""Zero bytes at the end of a file that no trained tensor ends with."""


class Problem(NamedTuple):
    """What `CheckpointSeries.verify` found wrong, where, in one line."""

    where: str
    what: str


def problems_of(
    checkpoints: Sequence[Checkpoint], progress: Callable[[str, int, int], None] | None = None
) -> list[Problem]:
    """Everything wrong with the local ones of these checkpoints, by step. Reads every file once or twice."""
    local = [c for c in checkpoints if c.revision is None and Path(c.path).is_dir()]
    found: list[tuple[int, Problem]] = []
    readable: list[tuple[Checkpoint, list[Path]]] = []
    same: dict[str, int] = {}
    for done, checkpoint in enumerate(local):
        folder = Path(checkpoint.path)
        problems = _check_manifest(folder) if (folder / MANIFEST).is_file() else _check_bare(folder)
        files = _sound_files(folder, problems)
        if files:
            digest = _content(files)
            if digest in same:
                problems.append(
                    Problem(str(folder), f"same weights as step {same[digest]}; {_WRONG} of one of the two")
                )
            else:
                readable.append((checkpoint, files))
            same.setdefault(digest, checkpoint.step)
        found += [(checkpoint.step, problem) for problem in problems]
        if progress:
            progress("checking files", done + 1, len(local))
    found += _check_labels(local)
    found += _check_distances(readable, progress)
    return [problem for _, problem in sorted(found, key=lambda pair: pair[0])]


def _mend(folder: Path) -> str:
    return f"delete the folder and make it again with `copyscope zoom`, or fetch {folder.name} anew"


def _check_manifest(folder: Path) -> list[Problem]:
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        return [Problem(str(folder), str(error))]
    problems = []
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file():
            problems.append(Problem(str(folder / name), f"missing, though the manifest lists it; {_mend(folder)}"))
        elif sha256_of(folder / name) != digest:
            problems.append(
                Problem(str(folder / name), f"damaged: its sha256 differs from the manifest's; {_mend(folder)}")
            )
    for extra in sorted(path.name for path in folder.iterdir() if path.name not in {*manifest["files"], MANIFEST}):
        problems.append(Problem(str(folder / extra), "foreign: the manifest does not list it; take it away"))
    if step_of(folder.name, -1) not in (-1, manifest["step"]):
        problems.append(
            Problem(str(folder), f"the folder's name and the manifest's step {manifest['step']} differ; rename it")
        )
    return problems


def _check_labels(local: Sequence[Checkpoint]) -> list[tuple[int, Problem]]:
    """Manifests that do not agree with the rest of the series on the run, or on the tokens of a step."""
    runs: dict[str, str] = {}
    for checkpoint in local:
        try:
            runs[checkpoint.path] = read_manifest(Path(checkpoint.path))["run_id"]
        except InputError:
            continue
    found = []
    usual = Counter(runs.values()).most_common(1)[0][0] if runs else None
    rates = {c.path: c.tokens / c.step for c in local if c.tokens is not None and c.step}
    rate = Counter(rates.values()).most_common(1)[0][0] if rates else None
    for c in local:
        if c.path in runs and runs[c.path] != usual:
            found.append((c.step, Problem(c.path, f"of another run, {runs[c.path]}, than the rest ({usual})")))
        if c.path in rates and rates[c.path] != rate:
            found.append(
                (c.step, Problem(c.path, f"{c.tokens} tokens at step {c.step}; the rest have {rate:g} a step"))
            )
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, those that its index lists if it is sharded."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [path for path in [folder / "model.safetensors"] if path.is_file()]
    return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]


def _sound_files(folder: Path, problems: list[Problem]) -> list[Path]:
    """The weight files, if there is nothing wrong with any of them."""
    wrong = {problem.where for problem in problems}
    try:
        files = weight_files(folder)
    except (OSError, ValueError, KeyError, AttributeError):
        return []
    return [] if any(str(path) in wrong or not path.is_file() for path in files) else files


def _check_bare(folder: Path) -> list[Problem]:
    """A checkpoint without a manifest."""
    problems = []
    try:
        json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem(str(folder / "config.json"), f"unreadable ({error}); fetch it anew"))
    try:
        files = weight_files(folder)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return [*problems, Problem(str(folder / "model.safetensors.index.json"), f"unreadable ({error!r})")]
    if not files:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        what = f"only {pickled[0]}, a pickle, which is never opened: convert it" if pickled else "model.safetensors is missing"
        problems.append(Problem(str(folder), f"weights not checked: {what}"))
    for path in files:
        if not path.is_file():
            problems.append(Problem(str(path), "missing, though the index lists it; fetch it anew"))
        else:
            problems += _check_weights(path)
    return problems


def _check_weights(path: Path) -> list[Problem]:
    import torch
    from safetensors import SafetensorError, safe_open

    problems = []
    try:
        with safe_open(path, "pt") as file:  # the header must match the size, so a cut-off file does not open
            for name in file.keys():  # noqa: SIM118 # not a dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    problems.append(Problem(str(path), f"{name} holds values that are not finite; fetch it anew"))
    except (SafetensorError, OSError) as error:
        return [Problem(str(path), f"damaged or cut off ({error}); fetch it anew")]
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - _TAIL))
        if not any(stream.read()):
            problems.append(Problem(str(path), "ends in zeros: cut off while it was copied; fetch it anew"))
    return problems


def _content(files: list[Path]) -> str:
    """Equal for equal tensors, whatever the order and the header."""
    import torch
    from safetensors import safe_open

    digests = []
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                data = tensor.reshape(-1).view(torch.uint8).numpy()
                digests.append((name, str(tensor.dtype), hashlib.sha256(data).hexdigest()))
    return hashlib.sha256(repr(sorted(digests)).encode()).hexdigest()


def _check_distances(
    readable: Sequence[tuple[Checkpoint, list[Path]]], progress: Callable[[str, int, int], None] | None
) -> list[tuple[int, Problem]]:
    """Weights that lie off the way from the checkpoint before to the one after."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {c.path: _shapes(files) for c, files in readable}
    found = []
    usual = Counter(tuple(sorted(shape.items())) for shape in shapes.values()).most_common(1)
    kept = [pair for pair in readable if tuple(sorted(shapes[pair[0].path].items())) == usual[0][0]]
    for c, _ in readable:
        if tuple(sorted(shapes[c.path].items())) != usual[0][0]:
            found.append((c.step, Problem(c.path, "its tensors have other names or shapes than the rest")))
    near: list[float] = []  # distance of each to the next
    past: list[float] = []  # distance of each to the one after the next
    for i in range(len(kept) - 1):
        here = [files for _, files in kept[i : i + 3]]
        distances = _distances(here)
        near.append(distances[0])
        past += distances[1:]
        if progress:
            progress("comparing weights", i + 1, len(kept) - 1)
    steps = [c.step for c, _ in kept]
    for i in range(1, len(kept) - 1):
        detour = (near[i - 1] + near[i]) / max(past[i - 1], 1e-300)
        if detour > DETOUR:
            c = kept[i][0]
            what = (
                f"a jump in weight distance: {detour:.1f} times as far over it as past it, from step {steps[i - 1]} to "
            )
            found.append((c.step, Problem(c.path, f"{what}{steps[i + 1]}; wrong weights or a wrong label")))
    rate = [d / math.sqrt(max(1, steps[i + 1] - steps[i])) for i, d in enumerate(near)]
    for i, value in enumerate(rate):
        beside = max([*rate[max(0, i - 1) : i], *rate[i + 1 : i + 2]], default=value)
        if value > LEAP * beside:
            c = kept[i + 1][0]
            what = f"a jump in weight distance from step {steps[i]}: {value / beside:.1f} times those beside it"
            found.append((c.step, Problem(c.path, f"{what}; on one side, {_WRONG}")))
    return found


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def _distances(checkpoints: list[list[Path]]) -> list[float]:
    """Euclidean distance over all weights from the first of two or three checkpoints to each other."""
    totals = [0.0] * (len(checkpoints) - 1)
    tensors = [_Reader(files) for files in checkpoints]
    for name in tensors[0].names:
        first = tensors[0].get(name)
        if first.is_floating_point():
            for i, other in enumerate(tensors[1:]):
                totals[i] += float((other.get(name).double() - first.double()).square().sum())
    return [math.sqrt(total) for total in totals]


class _Reader:
    def __init__(self, files: list[Path]):
        from safetensors import safe_open

        self._files = [safe_open(path, "pt") for path in files]
        self._of = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118
        self.names = sorted(self._of)

    def get(self, name: str) -> "torch.Tensor":
        return self._of[name].get_tensor(name)
