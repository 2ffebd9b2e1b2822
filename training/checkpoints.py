"""Checkpoints on disk: written atomically, listed in order, verified. The only place that touches checkpoint files."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.errors import InputError as InputError

MANIFEST = "MANIFEST.json"
_STEP = re.compile(r"(?:step|checkpoint|global_step)[-_]?(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """One model of a series. `path` is its folder, or the hub id, which `revision` then goes with."""

    step: int
    tokens: int | None
    path: str
    revision: str | None = None


class Problem(NamedTuple):
    """What `CheckpointSeries.verify` found wrong, where, in one line."""

    where: str
    what: str


@dataclass(frozen=True)
class CheckpointSeries:
    """Ordered checkpoints of one run or of one public model."""

    source: str
    checkpoints: tuple[Checkpoint, ...]

    @classmethod
    def open(cls, source: str | Path) -> "CheckpointSeries":
        """A run folder, a folder of Hugging Face directories, one model directory, or `org/model@rev,rev`.

        Steps come from the manifest, else from the folder's or revision's name (`step100`, `checkpoint-100`), else
        from their order. Raises InputError naming the source if there is no checkpoint.
        """
        text = str(source)
        path = Path(text).expanduser()
        if path.is_dir():
            return cls(text, tuple(sorted(_local(path), key=lambda checkpoint: checkpoint.step)))
        name, at, revisions = text.partition("@")
        if at and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            found = [
                Checkpoint(_step_of(revision, order), None, name, revision)
                for order, revision in enumerate(filter(None, revisions.split(",")))
            ]
            if found:
                return cls(text, tuple(sorted(found, key=lambda checkpoint: checkpoint.step)))
        raise InputError(f"{text}: no such folder; give a run, a folder of models, or org/model@revision,revision")

    def verify(self) -> list[Problem]:
        """Checks every file of every local checkpoint against its manifest; empty when sound.

        Found: a missing, damaged or foreign file, a step label that differs from the manifest, two steps with equal
        weights. Without a manifest only what can be seen without one is checked.
        """
        problems: list[Problem] = []
        weights: dict[str, int] = {}
        for checkpoint in self.checkpoints:
            folder = Path(checkpoint.path)
            if checkpoint.revision is not None or not folder.is_dir():
                continue
            problems += _check_folder(folder)
            model = folder / "model.safetensors"
            if model.is_file():
                digest = sha256_of(model)
                if digest in weights:
                    problems.append(Problem(str(folder), f"same weights as step {weights[digest]}"))
                weights.setdefault(digest, checkpoint.step)
        return problems


def _check_folder(folder: Path) -> list[Problem]:
    if not (folder / MANIFEST).is_file():
        missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
        return [Problem(str(folder), f"{name} is missing") for name in missing]
    manifest = read_manifest(folder)
    problems = []
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file():
            problems.append(Problem(str(folder / name), "missing, though the manifest lists it"))
        elif sha256_of(folder / name) != digest:
            problems.append(Problem(str(folder / name), "damaged: its sha256 differs from the manifest's"))
    for extra in sorted(path.name for path in folder.iterdir() if path.name not in {*manifest["files"], MANIFEST}):
        problems.append(Problem(str(folder / extra), "foreign: the manifest does not list it"))
    if _step_of(folder.name, -1) not in (-1, manifest["step"]):
        problems.append(Problem(str(folder), f"the folder's name and the manifest's step {manifest['step']} differ"))
    return problems


def _local(path: Path) -> list[Checkpoint]:
    if (path / "config.json").is_file():
        return [_checkpoint(path, 0)]
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    # A hidden folder is one that a kill cut off in the middle of writing.
    folders = sorted(
        folder for folder in root.iterdir() if (folder / "config.json").is_file() and not folder.name.startswith(".")
    )
    if not folders:
        raise InputError(f"{path}: no checkpoint in it; give a run folder or a folder of Hugging Face model folders")
    return [_checkpoint(folder, order) for order, folder in enumerate(folders)]


def _checkpoint(folder: Path, order: int) -> Checkpoint:
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        return Checkpoint(manifest["step"], manifest["tokens"], str(folder))
    return Checkpoint(_step_of(folder.name, order), None, str(folder))


def _step_of(name: str, otherwise: int) -> int:
    match = _STEP.search(name)
    return int(match[1]) if match else otherwise


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: `files` (name to sha256), `step`, `tokens`, `run_id`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if not {"files", "step", "tokens", "run_id"} <= manifest.keys():
            raise ValueError("a field is missing")
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["step"], int):
            raise ValueError("a field is of the wrong kind")
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{folder / MANIFEST}: unreadable ({error}); delete the folder {folder}") from None
    return manifest


def manifest_hash(checkpoint: Checkpoint) -> str:
    """What results of a checkpoint are keyed by: the hash of its manifest, or of its weights where it has none."""
    folder = Path(checkpoint.path)
    for name in (MANIFEST, "model.safetensors"):
        if (folder / name).is_file():
            return sha256_of(folder / name)
    return hashlib.sha256(f"{checkpoint.path}@{checkpoint.revision}".encode()).hexdigest()


def step_folder(step: int) -> str:
    return f"step{step:08d}"


def write_folder(target: Path, fill: Callable[[Path], None], **labels: Any) -> None:
    """Writes a folder that is either whole or not there: temp folder, manifest, fsync, rename, fsync of the parent.

    `fill` puts the files into the folder it is given; `labels` (step, tokens, run_id) go into the manifest.
    """
    temp = target.with_name(f".{target.name}.partial")
    if temp.exists():
        shutil.rmtree(temp)
    try:
        temp.mkdir(parents=True)
        fill(temp)
        files = {path.name: sha256_of(path) for path in sorted(temp.iterdir())}
        (temp / MANIFEST).write_text(json.dumps({**labels, "files": files}, indent=1))
        for path in temp.iterdir():
            _fsync(path)
        _fsync(temp)
        if target.exists():
            shutil.rmtree(target)
        temp.rename(target)
        _fsync(target.parent)
    except Exception as error:
        shutil.rmtree(temp, ignore_errors=True)
        if is_disk_full(error):
            raise disk_full(target) from None
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or as it was: temp file, fsync, rename."""
    temp = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp.write_bytes(data)
        _fsync(temp)
        temp.rename(path)
    except OSError as error:
        temp.unlink(missing_ok=True)
        if is_disk_full(error):
            raise disk_full(path) from None
        raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space. safetensors passes the system's error on as text only."""
    code = getattr(error, "errno", None)
    signs = ("No space left", "File too large", "os error 28", "os error 27")
    return code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(sign in str(error) for sign in signs)


def disk_full(path: Path) -> InputError:
    return InputError(
        f"no space left while writing {path}: free some and run the same command again; it goes on from there"
    )


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
