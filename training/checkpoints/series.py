"""Series of checkpoints: which models a run, a folder or a hub id holds, in order."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST, sha256_of, tidy

Source = str | os.PathLike[str]
"""A path, a source text such as `EleutherAI/pythia-70m@step1000`, or what names one: a run, a series."""

_STEP = re.compile(r"(?:step|checkpoint|global_step)[-_]?(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One model of a series. `path` is its folder, or the hub id, which `revision` then goes with."""

    step: int
    tokens: int | None
    path: str
    revision: str | None = None


@dataclass(frozen=True)
class CheckpointSeries:
    """Ordered checkpoints of one run or of one public model."""

    source: str
    checkpoints: tuple[Checkpoint, ...]

    def __fspath__(self) -> str:
        """Its source: whatever takes a path or a source text takes a series as well."""
        return self.source

    @classmethod
    def open(cls, source: Source) -> "CheckpointSeries":
        """A run folder, a folder of Hugging Face directories, one model's directory or GGUF file, or
        `org/model@rev,rev`.

        Steps come from the manifest, else from the folder's or revision's name (`step100`, `checkpoint-100`), else
        from their order. Raises InputError naming the source if there is no checkpoint.
        """
        if isinstance(source, CheckpointSeries):
            return source
        text = os.fspath(source)
        path = local_path(text)
        if path.is_dir():
            return cls(text, tuple(sorted(_local(path), key=lambda checkpoint: checkpoint.step)))
        if path.is_file() and path.suffix == ".gguf":
            return cls(text, (Checkpoint(step_of(path.stem, 0), None, text),))
        name, at, revisions = text.partition("@")
        if at and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            found = [
                Checkpoint(step_of(revision, order), None, name, revision)
                for order, revision in enumerate(filter(None, revisions.split(",")))
            ]
            if found:
                return cls(text, tuple(sorted(found, key=lambda checkpoint: checkpoint.step)))
        if path.is_file():
            raise InputError(f"{text}: a single file that is no GGUF model{_pickled([path])}; give the folder it is in")
        raise InputError(f"{text}: no such folder; give a run, a folder of models, or org/model@revision,revision")


def local_path(text: str) -> Path:
    """The path that a user's text names, with `~` resolved. Raises InputError for one that no disk can have."""
    try:
        path = Path(text).expanduser()
        path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, the home of somebody unknown
        raise InputError(f"{text[:80]!r}: not a path ({getattr(error, 'strerror', None) or error})") from None
    return path


def _local(path: Path) -> list[Checkpoint]:
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    tidy(root)  # a hidden folder is one that a kill cut off in the middle of writing
    folders = sorted(folder for folder in root.iterdir() if _is_checkpoint(folder) and not folder.name.startswith("."))
    if _is_checkpoint(path) and not any(step_of(folder.name, -1) >= 0 for folder in folders):
        return [_checkpoint(path, 0)]  # else it is the last model of a training, saved beside its checkpoints
    if not folders:
        raise InputError(
            f"{path}: no checkpoint in it{_pickled(path.iterdir())}; give a run folder or a folder of Hugging Face "
            "model folders"
        )
    return [_checkpoint(folder, order) for order, folder in enumerate(folders)]


def _pickled(paths: Iterable[Path]) -> str:
    """What to do about pickled weights, where there are any (nanoGPT's ckpt.pt); else nothing."""
    found = sorted(path.name for path in paths if path.suffix in (".pt", ".pth", ".ckpt", ".pkl"))
    if not found:
        return ""
    return f" ({found[0]} is a pickle, which is never opened: save it in Hugging Face format, as in docs/series.md)"


def _is_checkpoint(folder: Path) -> bool:
    """Whether it is or was one: what has lost a file is listed too, so that `verify` can say so."""
    names = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    if any((folder / name).is_file() for name in names):
        return True
    return (folder / MANIFEST).is_file() and step_of(folder.name, -1) >= 0 and folder.parent.name != "resume"


def _checkpoint(folder: Path, order: int) -> Checkpoint:
    if (folder / MANIFEST).is_file():
        with contextlib.suppress(InputError):  # said by `verify`, and by whatever reads the manifest
            manifest = read_manifest(folder)
            return Checkpoint(manifest["step"], manifest["tokens"], str(folder))
    return Checkpoint(step_of(folder.name, order), None, str(folder))


def step_of(name: str, otherwise: int) -> int:
    match = _STEP.search(name)
    return int(match[1]) if match else otherwise


def step_folder(step: int) -> str:
    return f"step{step:08d}"


def manifest_hash(checkpoint: Checkpoint) -> str:
    """What results of a checkpoint are keyed by: the hash of its manifest, or of its weights where it has none.

    Raises InputError for a manifest that is unreadable.
    """
    folder = Path(checkpoint.path)
    if (folder / MANIFEST).is_file():
        read_manifest(folder)
        return sha256_of(folder / MANIFEST)
    for weights in (folder / "model.safetensors", folder):
        if weights.is_file():
            return sha256_of(weights)
    return hashlib.sha256(f"{checkpoint.path}@{checkpoint.revision}".encode()).hexdigest()
