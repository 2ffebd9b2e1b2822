"""Checkpoints on disk: written atomically, listed in order, verified. The only place that touches checkpoint files."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import InputError as InputError
from training.leftovers import partial, put, tidy

if TYPE_CHECKING:
    from training.verify import Problem

MANIFEST = "MANIFEST.json"
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

    @classmethod
    def open(cls, source: str | Path) -> "CheckpointSeries":
        """A run folder, a folder of Hugging Face directories, one model's directory or GGUF file, or
        `org/model@rev,rev`.

        Steps come from the manifest, else from the folder's or revision's name (`step100`, `checkpoint-100`), else
        from their order. Raises InputError naming the source if there is no checkpoint.
        """
        text = str(source)
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

    def verify(self, progress: Callable[[str, int, int], None] | None = None) -> "list[Problem]":
        """Everything wrong with the local checkpoints, one line each, by step; empty when sound.

        With a manifest: any damaged, missing or foreign file, a label that differs from it, another run's checkpoint.
        Without one: files cut off or ending in zeros, values that are not finite, missing parts, other shapes. Either
        way: two steps with equal weights, and weights that lie off the way of the series (`training.verify`).
        `progress(what, done, total)` is told how far it is. Raises InputError for a GGUF file or a hub series.
        """
        for checkpoint in self.checkpoints:
            if Path(checkpoint.path).is_file() or checkpoint.revision is not None:
                raise InputError(
                    f"{self.source}: verify checks folders of safetensors files; a GGUF file or hub revision is "
                    "checked as it is read"
                )
        from training.verify import problems_of

        return problems_of(self.checkpoints, progress)


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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint: `files` (name to sha256), `step`, `tokens`, `run_id`.

    Raises InputError naming it if it is unreadable.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if not {"files", "step", "tokens", "run_id"} <= manifest.keys():
            raise ValueError("a field is missing")
        files, step, tokens = manifest["files"], manifest["step"], manifest["tokens"]
        names = isinstance(files, dict) and all(name == Path(name).name for name in files)
        if not names or type(step) is not int or step < 0 or type(tokens) not in (int, type(None)):
            raise ValueError("a field is of the wrong kind")
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"{folder / MANIFEST}: unreadable ({error}); delete the folder {folder}") from None
    return manifest


def check_files(folder: Path) -> None:
    """Compares every file that the checkpoint's manifest lists with its hash; a folder without a manifest passes.

    Raises InputError naming the first that is missing or damaged, and for a manifest that is unreadable.
    """
    if not (folder / MANIFEST).is_file():
        return
    for name, digest in read_manifest(folder)["files"].items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing, though the manifest lists it; see `copyscope verify`")
        if sha256_of(folder / name) != digest:
            raise InputError(
                f"{folder / name}: damaged: its sha256 differs from the manifest's; see `copyscope verify`"
            )


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


def step_folder(step: int) -> str:
    return f"step{step:08d}"


def write_folder(target: Path, fill: Callable[[Path], None], **labels: Any) -> None:
    """Writes a folder that is either whole or not there: temp folder, manifest, fsync, rename, fsync of the parent.

    `fill` puts the files into the folder it is given; `labels` (step, tokens, run_id) go into the manifest. A folder
    that is there already is replaced, and stays what it was if this fails. Raises InputError if the place is full or
    cannot be written.
    """
    temp = partial(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target.parent)
        temp.mkdir()
        fill(temp)
        files = {path.name: sha256_of(path) for path in sorted(temp.iterdir())}
        (temp / MANIFEST).write_text(json.dumps({**labels, "files": files}, indent=1))
        mode = temp.stat().st_mode & 0o666
        for path in temp.iterdir():
            path.chmod(mode)  # safetensors lets nobody but the owner read its files
            _fsync(path)
        _fsync(temp)
        put(temp, target)
        _fsync(target.parent)
    except BaseException as error:
        shutil.rmtree(temp, ignore_errors=True)
        raise _in_one_line(error, target) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or as it was: temp file, fsync, rename, fsync of the parent.

    Raises InputError if the place is full or cannot be written.
    """
    if not path.name:  # as `--out .` or an empty one
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    temp = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
        temp.write_bytes(data)
        _fsync(temp)
        temp.replace(path)
        _fsync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        raise _in_one_line(error, path) from None


def _in_one_line(error: BaseException, path: Path) -> BaseException:
    """An InputError where the place is at fault, else the error itself."""
    if is_disk_full(error):
        return disk_full(path)
    codes = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
    if isinstance(error, OSError) and error.errno in codes:
        return InputError(f"cannot write {path}: {error.strerror}; choose another place")
    return error


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
