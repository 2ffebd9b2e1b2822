"""Series of checkpoints: which models a run, a folder or a hub id holds, in order."""

import contextlib
import logging
import os
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.names import COPY, AmbiguousError, Named, Unit, arrange, natural, read_name
from copyscope.training.checkpoints.tokenizer_files import has_tokenizer
from copyscope.training.checkpoints.trunk import FAMILY, Trunk, Unfit, read_trunk, why_changed
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST, tidy

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str]
"""A path, a source text such as `EleutherAI/pythia-70m@step1000`, or what names one: a run, a series."""
Order = Literal["step", "name"]
_SHOWN = 5


@dataclass(frozen=True)
class Checkpoint:
    """One model of a series. `path` is its folder or file, or the hub id, which `revision` then goes with."""

    step: int
    tokens: int | None
    path: str
    revision: str | None = None
    tokenizer: str | None = None
    """The folder of the series' tokenizer, where that is not its own folder's; the same for all of a series."""

    @property
    def label(self) -> str:
        """What messages call it: its path, or the hub id with the revision."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


@dataclass(frozen=True)
class CheckpointSeries:
    """Ordered checkpoints of one run or of one public model."""

    source: str
    checkpoints: tuple[Checkpoint, ...]
    left_out: tuple[str, ...] = ()
    """What lies beside the checkpoints and is none of them, each with why."""
    unit: Unit = "steps"
    """What `step` counts: tokens, words or epochs where the names give no steps."""

    def __fspath__(self) -> str:
        """Its source: whatever takes a path or a source text takes a series as well."""
        return self.source

    @classmethod
    def open(cls, source: Source, order: Order = "step", tokenizer: str | Path | None = None) -> "CheckpointSeries":
        """A run folder, a folder of Hugging Face directories, one model's directory or GGUF file, or
        `org/model@revisions` (`training.checkpoints.revisions` says which).

        Steps come from the manifest, else from the folder's or revision's name (`names.read_name`). `order="name"`
        takes all by name instead, with 0, 1, 2, … for steps. `tokenizer`: a folder, for checkpoints that have none;
        without it that of the first checkpoint with one, of the folder itself, or of the one above.

        A fork (`training.fork`) has its parent's checkpoints up to the step at which it begins, as far as they are
        still those it was forked from, and its own after it.

        Raises InputError naming the source if there is no checkpoint, or several without a number in their names.
        """
        if isinstance(source, CheckpointSeries):
            return source
        text = os.fspath(source)
        path = local_path(text)
        given = None if tokenizer is None else _given_tokenizer(local_path(str(tokenizer)))
        if path.is_dir():
            trunk = read_trunk(path)
            series = _local(text, path, order) if trunk is None else _of_fork(text, path, trunk)
            return _with_tokenizer(series, path, given)
        if path.is_file() and path.suffix == ".gguf":
            named = read_name(path.stem)
            checkpoint = Checkpoint(named.number or 0, named.tokens, text, tokenizer=given)
            return cls(text, (checkpoint,))
        name, at, revisions = text.partition("@")
        if at and revisions.strip(", ") and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            return _with_tokenizer(_of_hub(text, name, revisions, order), None, given)
        if path.is_file():
            raise InputError(f"{text}: a single file that is no GGUF model{_pickled([path])}; give the folder it is in")
        raise InputError(f"{text}: no such folder; give a run, a folder of models, or org/model@revision,revision")

    def log_left_out(self) -> None:
        """Says what is left out, what the numbers count where not steps, and whose tokenizer is taken."""
        shown = self.left_out if len(self.left_out) <= _SHOWN else self.left_out[: _SHOWN - 1]
        more = len(self.left_out) - len(shown)
        for line in shown:
            logger.info(f"left out: {line}")
        if more:
            logger.info(f"left out: {more} more of {self.source}")
        if self.unit != "steps":
            logger.info(f"{self.source}: the names count {self.unit}, which stand in place of steps")
        without = [checkpoint for checkpoint in self.checkpoints if checkpoint.tokenizer is not None]
        if without:
            logger.info(f"tokenizer of {without[0].tokenizer}, for all {len(self.checkpoints)} checkpoints")

    def refuse_doubles(self) -> None:
        """Raises InputError naming two checkpoints of one step, since results are kept by step."""
        for first, second in pairwise(self.checkpoints):
            if first.step == second.step:
                names = " and ".join(one.revision or Path(one.path).name for one in (first, second))
                raise InputError(
                    f"{self.source}: two checkpoints of one step: {names} are both of {first.step}; take one away"
                    + (", or name the revisions of one stage" if first.revision else "")
                )


def local_path(text: str) -> Path:
    """The path that a user's text names, with `~` resolved. Raises InputError for one that no disk can have."""
    try:
        path = Path(text).expanduser()
        path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, the home of somebody unknown
        raise InputError(f"{text[:80]!r}: not a path ({getattr(error, 'strerror', None) or error})") from None
    return path


def _local(source: str, path: Path, order: Order) -> CheckpointSeries:
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    tidy(root)  # a hidden folder is one that a kill cut off in the middle of writing
    visible = [entry for entry in sorted(root.iterdir()) if not entry.name.startswith(".")]
    folders = {entry.name: entry for entry in visible if _is_checkpoint(entry)}
    if _is_checkpoint(path) and not any(read_name(name).number is not None for name in folders):
        return CheckpointSeries(source, (_checkpoint(path, read_name(path.name)),))  # else it is the last of a training
    left = [f"{entry} ({why})" for entry in visible if entry.name not in folders and (why := _empty_checkpoint(entry))]
    if not folders and (path / FAMILY).is_file():
        raise InputError(f"{path}: holds several forks; give one of them, or all as {path}/*/")
    if not folders:
        raise InputError(
            f"{path}: no checkpoint in it{_pickled(path.iterdir()) or (f' ({left[0]})' if left else '')}; give a run "
            "folder or a folder of Hugging Face model folders"
        )
    labelled = {name for name, folder in folders.items() if _manifest(folder) is not None}
    numbered, out, unit = _arranged(list(folders), order, path, labelled)
    checkpoints = [_checkpoint(folders[named.name], named) for named in numbered]
    left += [f"{folders[name]} ({why})" for name, why in out.items()]
    return CheckpointSeries(source, _sorted(checkpoints), tuple(left), unit)


def _of_fork(source: str, path: Path, trunk: Trunk) -> CheckpointSeries:
    """The parent's checkpoints, then the fork's own, of which there may be none yet."""
    first, unfit = trunk_checkpoints(path, trunk)
    has_own = any((path / "checkpoints").glob("step*"))
    own = _local(source, path, "step") if has_own or not first else CheckpointSeries(source, ())
    steps = {checkpoint.step for checkpoint in own.checkpoints}
    both = [*(checkpoint for checkpoint in first if checkpoint.step not in steps), *own.checkpoints]
    return replace(
        own, checkpoints=_sorted(both), left_out=(*(f"{one.where} ({one.what})" for one in unfit), *own.left_out)
    )


def trunk_checkpoints(path: Path, trunk: Trunk) -> tuple[list[Checkpoint], list[Unfit]]:
    """The parent's checkpoints that the fork in folder `path` begins with, and those that are not any more what it
    began with, each with why; one line where the parent is gone."""
    parent = trunk.parent(path)
    if parent is None:
        return [], [trunk.gone(path)]
    try:
        there = {checkpoint.step: checkpoint for checkpoint in CheckpointSeries.open(parent).checkpoints}
    except (InputError, RecursionError) as error:
        return [], [Unfit(str(parent), f"the parent of {path} cannot be read: {error}")]
    fit, unfit = [], []
    for step, digest in trunk.checkpoints.items():
        if step not in there:
            unfit.append(Unfit(str(parent), f"the parent of {path} has no checkpoint of step {step} any more"))
        elif why := why_changed(Path(there[step].path), digest):
            unfit.append(Unfit(there[step].path, why))
        else:
            fit.append(there[step])
    return fit, unfit


def _of_hub(source: str, repo: str, selector: str, order: Order) -> CheckpointSeries:
    from copyscope.training.checkpoints.revisions import select

    names, chosen = select(repo, selector)
    numbered, out, unit = _arranged(names, order, repo, (), chosen)
    checkpoints = [Checkpoint(named.number or 0, named.tokens, repo, named.name) for named in numbered]
    left = tuple(f"{repo}@{name} ({why})" for name, why in out.items())
    return CheckpointSeries(source, _sorted(checkpoints), left, unit)


def _sorted(checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    return tuple(sorted(checkpoints, key=lambda one: (one.step, natural(one.revision or one.path))))


def _arranged(
    names: list[str], order: Order, where: object, labelled: Container[str], chosen: bool = False
) -> tuple[list[Named], dict[str, str], Unit]:
    """The names of the series with their numbers, what is left out and why, and what the numbers count."""
    if order == "name":
        left = {name: COPY for name in names if read_name(name).is_copy and not chosen}
        kept = sorted((name for name in names if name not in left), key=natural)
        return [replace(read_name(name), number=number) for number, name in enumerate(kept)], left, "steps"
    try:
        arranged = arrange(names, labelled, chosen)
    except AmbiguousError as error:
        raise InputError(f"{where}: {error}; move one away, or give --order name") from None
    kept = list(arranged.kept)
    if kept:
        return kept, arranged.left_out, arranged.unit
    whole = [name for name, why in arranged.left_out.items() if not read_name(name).is_copy]
    if len(whole) == 1:  # a model alone needs no number
        return [read_name(whole[0])], {n: why for n, why in arranged.left_out.items() if n != whole[0]}, "steps"
    seen = ", ".join(sorted(whole or names, key=natural)[:_SHOWN])
    if not whole:
        raise InputError(f"{where}: only copies or half-written checkpoints in it ({seen}); rename what is whole")
    raise InputError(
        f"{where}: no step in the names of its checkpoints ({seen}); name them step100 and so on, or give --order name"
    )


def _with_tokenizer(series: CheckpointSeries, path: Path | None, given: str | None) -> CheckpointSeries:
    """Every checkpoint with the same tokenizer: the one given, else the first checkpoint's that has one, else that of
    the folder they are in or of the one above."""
    if given is None and path is not None:
        folders = [Path(checkpoint.path) for checkpoint in series.checkpoints]
        above = [path, path.absolute().parent] if (path / "checkpoints").is_dir() else [path]
        if folders == [path] or not folders:
            above = [path.absolute().parent]
        holder = next((folder for folder in (*folders, *above) if has_tokenizer(folder)), None)
        given = None if holder is None else str(holder)
        if all(has_tokenizer(folder) for folder in folders):
            return series
    if given is None:
        return series
    checkpoints = tuple(
        checkpoint if checkpoint.path == given else replace(checkpoint, tokenizer=given)
        for checkpoint in series.checkpoints
    )
    return replace(series, checkpoints=checkpoints)


def _given_tokenizer(folder: Path) -> str:
    if folder.name == "tokenizer.json" and folder.is_file():
        folder = folder.parent
    if not has_tokenizer(folder):
        raise InputError(f"--tokenizer {folder}: no tokenizer in it (tokenizer.json, or vocab.json and merges.txt)")
    return str(folder)


def _pickled(paths: Iterable[Path]) -> str:
    """What to do about pickled weights, where there are any (nanoGPT's ckpt.pt); else nothing."""
    pickles = sorted(path.name for path in paths if path.suffix in (".pt", ".pth", ".ckpt", ".pkl"))
    if not pickles:
        return ""
    return f" ({pickles[0]} is a pickle, which is never opened: save it in Hugging Face format, as in docs/series.md)"


def _is_checkpoint(folder: Path) -> bool:
    """Whether it is or was one: what has lost a file is listed too, so that `verify` can say so."""
    names = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    try:
        if any((folder / name).is_file() for name in names):
            return True
        numbered = read_name(folder.name).number is not None
        return (folder / MANIFEST).is_file() and numbered and folder.parent.name != "resume"
    except PermissionError:  # it may not be entered, which whoever loads it says
        return read_name(folder.name).number is not None


def _empty_checkpoint(entry: Path) -> str:
    """Why something that is named like a checkpoint is none; empty for what is not named so."""
    named = read_name(entry.name)
    if named.number is None or named.around or re.fullmatch(r"[\d_,]+k?", entry.name):
        return ""
    if entry.is_symlink() and not entry.exists():
        return "a link to nowhere"
    return "no model in it" if entry.is_dir() else ""


def _manifest(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(InputError, OSError):  # said by `verify`, and by whatever reads the manifest
        if (folder / MANIFEST).is_file():
            return read_manifest(folder)
    return None


def _checkpoint(folder: Path, named: Named) -> Checkpoint:
    manifest = _manifest(folder)
    if manifest is not None:
        return Checkpoint(manifest["step"], manifest["tokens"], str(folder))
    return Checkpoint(named.number or 0, named.tokens, str(folder))


def step_folder(step: int) -> str:
    return f"step{step:08d}"
