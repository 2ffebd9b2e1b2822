"""What is wrong with a series of checkpoints: damaged files, wrong labels, weights that do not belong where they are.

With a manifest every byte is checked. Without one (public series, on the hub too) what can be seen from the files is:
whether they are whole, hold numbers, fit the config, and whether the weights lie where those of a training run would
(`trajectory`).
"""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.names import read_name
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries, Source, trunk_checkpoints
from copyscope.training.checkpoints.sizes import why_sizes_differ
from copyscope.training.checkpoints.trajectory import find_misplaced
from copyscope.training.checkpoints.trunk import read_trunk
from copyscope.training.checkpoints.unfit import why_no_weights, why_unfit
from copyscope.training.checkpoints.weights import (
    INDEX,
    Scan,
    UnreadableError,
    Weights,
    by_plain_name,
    distance,
    read_header,
    read_index,
    scan,
)
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST, sha256_of
from copyscope.training.progress import Progress

ZEROS = 16
"""Zeros in a row at a tensor's end that values do not come to by chance."""
ZERO_BYTES = 512
"""The same where there is no other checkpoint to compare with: the least that a disk loses."""


class Problem(NamedTuple):
    """What `verify` reports wrong, where, in one line."""

    where: str
    what: str


class _Member:
    """A checkpoint while it is checked."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, is_last: bool):
        self.checkpoint, self.step, self.is_last = checkpoint, checkpoint.step, is_last
        self.folder = folder
        self.problems: list[Problem] = []
        self.manifest: dict[str, Any] | None = None
        self.weights: Weights | None = None
        """None once they are known to be unfit to compare others with."""
        self.scan: Scan | None = None

    def add(self, what: str, where: Path | None = None) -> None:
        path = self.folder if where is None else where
        name = str(path)
        if self.checkpoint.revision is not None:  # rather than a place in the cache
            name = "/".join((self.checkpoint.label, *path.relative_to(self.folder).parts))
        self.problems.append(Problem(name, " ".join(what.split())))

    @property
    def place(self) -> Path | None:
        """Where it lies with others of its run; None for all revisions of a hub."""
        return None if self.checkpoint.revision is not None else self.folder.parent

    @property
    def name(self) -> str:
        """A word for it among the others."""
        return self.checkpoint.revision or self.folder.name

    @property
    def fix(self) -> str:
        if self.manifest is None:
            return "fetch it again"
        run = self.folder.parent.parent if self.folder.parent.name == "checkpoints" else "RUN"
        # With no later step to compare a replay with, zoom does not put it among the run's own.
        place = f" in {run}/zoom, to be moved from there" if self.is_last else ""
        return f"delete the folder; `copyscope zoom {run} --from {self.step} --to {self.step}` makes it again{place}"


def verify(source: Source, progress: Progress | None = None) -> list[Problem]:
    """Everything wrong with the checkpoints of a series, one line each, by step; empty when sound.

    With a manifest: any damaged, missing or foreign file, a label that differs from it, another run's checkpoint.
    Without one: truncated files or files that end in zeros, values that are not finite, missing parts, sizes that are
    not the config's, other shapes than the rest.
    Either way: two steps with equal weights, and weights that lie off the path of the series (`trajectory`). Of a fork:
    a parent that is gone, or has other weights than the fork began with. Every file is read once or twice. Revisions on
    the hub are fetched, all of them, and stay in the cache. Raises InputError for a GGUF file, or if no revision can be
    had.
    """
    series = CheckpointSeries.open(source)
    if any(Path(checkpoint.path).is_file() for checkpoint in series.checkpoints):
        raise InputError(f"{series.source}: verify checks safetensors files; a GGUF file is checked as it is read")
    last = max((checkpoint.step for checkpoint in series.checkpoints), default=0)
    members: list[_Member] = []
    absent = _trunk_problems(series)
    first: InputError | None = None
    for number, checkpoint in enumerate(series.checkpoints):
        try:
            folder = _fetched(checkpoint) if checkpoint.revision is not None else Path(checkpoint.path)
        except InputError as error:
            first = first or error
            absent.append(Problem(checkpoint.label, str(error).removeprefix(f"{checkpoint.label}: ")))
            continue
        if checkpoint.revision is not None and progress:
            progress("fetching revisions", number + 1, len(series.checkpoints))
        if folder.is_dir():
            members.append(_Member(checkpoint, folder, checkpoint.step == last))
    if first is not None and not members:
        raise first
    for member in members:
        _check_manifest(member)
        _check_layout(member)
    _check_labels(members)
    _check_shapes(members)
    distances = _check_contents(members, progress)
    _check_zeros(members)
    _check_trajectory(members, distances, progress)
    return [*absent, *(problem for member in members for problem in member.problems)]


def _trunk_problems(series: CheckpointSeries) -> list[Problem]:
    path = Path(series.source)
    trunk = read_trunk(path) if path.is_dir() else None
    return [] if trunk is None else [Problem(*one) for one in trunk_checkpoints(path, trunk)[1]]


def _fetched(checkpoint: Checkpoint) -> Path:
    """The folder of a hub's revision in the cache, with its weights."""
    from copyscope.training.checkpoints.revisions import fetch_small, fetch_weights

    folder = fetch_small(checkpoint.path, checkpoint.revision)
    fetch_weights(checkpoint.path, folder, checkpoint.revision)
    return folder


def _check_manifest(member: _Member) -> None:
    folder = member.folder
    if not (folder / MANIFEST).is_file():
        return
    try:
        member.manifest = read_manifest(folder)
    except InputError as error:
        member.add(str(error).removeprefix(f"{folder / MANIFEST}: "), folder / MANIFEST)
        return
    for name in member.manifest["files"]:
        if not (folder / name).is_file():
            member.add(f"missing, though the manifest lists it; {member.fix}", folder / name)
    for extra in sorted(path.name for path in folder.iterdir()):
        if extra not in member.manifest["files"] and extra != MANIFEST:
            member.add("foreign: the manifest does not list it; take it away", folder / extra)
    if read_name(folder.name).number not in (None, member.step):
        member.add(f"the folder's name and the manifest's step {member.step} differ; rename it")


def _check_layout(member: _Member) -> None:
    """Whether the weights are there and whole, as far as their sizes show, and the config can be read."""
    folder = member.folder
    listed = member.manifest["files"] if member.manifest else {}
    config = {}
    if "config.json" not in listed:  # else its hash says more
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            if not isinstance(config, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            member.add(f"missing; {member.fix}", folder / "config.json")
        except (OSError, ValueError, RecursionError) as error:
            member.add(f"unreadable ({error}); {member.fix}", folder / "config.json")
    try:
        files = read_index(folder)
    except UnreadableError as error:
        member.add(f"{error}; {member.fix}", folder / INDEX)
        return
    if not files:
        if not any(name.endswith(".safetensors") for name in listed):  # else it is listed, and said to be missing
            member.add(why_no_weights(folder))
        return
    headers, whole = [], True
    for name, tensors in files.items():
        path = folder / name
        try:
            header = read_header(path)
        except FileNotFoundError:
            whole = False
            if name not in listed:
                member.add(f"missing, though the index lists it; {member.fix}", path)
            continue
        except (UnreadableError, OSError) as error:
            whole = False
            if name not in listed:
                member.add(f"{error}; {member.fix}", path)
            continue
        for tensor in sorted(set(tensors) - header.keys())[:1]:
            whole = False
            member.add(f"{tensor} is not in it, though the index says so; {member.fix}", path)
        headers.append(header)
    if not whole:
        return
    try:
        places = by_plain_name(headers)
    except UnreadableError as error:
        member.add(f"{error}; {member.fix}")
        return
    why = why_unfit(folder, {name: place.dtype for name, place in places.items()})
    if why:
        member.add(why)
        return
    member.weights = Weights(places)
    differ = why_sizes_differ(config, member.weights.shapes) if isinstance(config, dict) else None
    if differ:
        member.add(f"{differ}; one of the two is not of this model: {member.fix}")


def _check_labels(members: Sequence[_Member]) -> None:
    """Manifests that do not agree with the rest of the series on the run or on the tokens of a step; steps twice."""
    labelled = [member for member in members if member.manifest is not None]
    for member in members:
        if labelled and not (member.folder / MANIFEST).is_file():
            member.add(f"has no {MANIFEST}, though others have one, so that its files cannot be checked; {member.fix}")
    by_place: dict[Path | None, list[_Member]] = {}  # a fork's are in two places: its parent's, and its own
    for member in labelled:
        by_place.setdefault(member.place, []).append(member)
    for some in by_place.values():
        _check_run_and_tokens(some)
    first: dict[int, _Member] = {}
    for member in members:
        other = first.setdefault(member.step, member)
        if other is not member:
            member.add(f"step {member.step} once more, beside {other.name}; take one of the two away")


def _check_run_and_tokens(labelled: Sequence[_Member]) -> None:
    """Of checkpoints in one folder; those of a fork count from what its parent had consumed."""
    place = labelled[0].place
    trunk = None if place is None else read_trunk(place.parent)
    step, tokens = (0, 0) if trunk is None else (trunk.step, trunk.tokens)
    run = _usual(member.manifest["run_id"] for member in labelled if member.manifest)
    since = [(m.step - step, m.checkpoint.tokens - tokens) for m in labelled if m.checkpoint.tokens is not None]
    rate = _usual(count / updates for updates, count in since if updates)
    for member in labelled:
        manifest, count = member.manifest or {}, member.checkpoint.tokens
        if manifest["run_id"] != run:
            member.add(f"of another run, {manifest['run_id']}, than the rest ({run}); take it away")
        if count is not None and rate is not None and count != tokens + rate * (member.step - step):
            member.add(f"{count} tokens at step {member.step}; the rest have {rate:g} a step; {member.fix}")


def _check_shapes(members: Sequence[_Member]) -> None:
    shapes = {id(m): tuple(m.weights.shapes.items()) for m in members if m.weights is not None}
    usual = dict(_usual(shapes.values()) or ())
    for member in members:
        if member.weights is None or member.weights.shapes == usual:
            continue
        own = member.weights.shapes
        name = min(name for name in own.keys() | usual.keys() if own.get(name) != usual.get(name))
        has, rest = (f"{list(s[name])}" if name in s else "not there" for s in (own, usual))
        member.add(f"its tensors have other names or shapes than the rest: {name} is {has}, elsewhere {rest}")
        member.weights = None


def _usual(values: Iterable[Hashable]) -> Any:
    """The most frequent value, the earliest of equally frequent ones; None of none."""
    counted = Counter(values).most_common(1)
    return counted[0][0] if counted else None


def _check_contents(members: Sequence[_Member], progress: Progress | None) -> dict[tuple[int, int], float]:
    """Reads all files. Returns the distances taken on the way, by places in `members`."""
    distances: dict[tuple[int, int], float] = {}
    near: list[int] = []  # the last two fit to compare with
    seen: dict[str, list[_Member]] = {}
    for place, member in enumerate(members):
        kept = near
        _check_hashes(member)
        if member.weights is not None:
            others = [weights for i in near if (weights := members[i].weights) is not None]
            try:
                with member.weights:
                    member.scan = scan(member.weights, others)
            except (OSError, ValueError) as error:
                member.add(f"cannot be read to its end ({error}); {member.fix}")
                member.weights = None
            else:
                _check_scan(member, seen)
        if member.weights is not None and member.scan is not None:
            distances |= dict(zip(((i, place) for i in near), member.scan.distances, strict=True))
            kept = [*near[-1:], place]
        for i in {*near} - {*kept}:
            weights = members[i].weights
            if weights is not None:
                weights.close()
        near = kept
        if progress:
            progress("checking files", place + 1, len(members))
    return distances


def _check_hashes(member: _Member) -> None:
    for name, digest in (member.manifest["files"] if member.manifest else {}).items():
        path = member.folder / name
        if path.is_file() and sha256_of(path) != digest:
            member.add(f"damaged: its sha256 differs from the manifest's; {member.fix}", path)
            if name.endswith(".safetensors"):
                member.weights = None


def _check_scan(member: _Member, seen: dict[str, list[_Member]]) -> None:
    """Values that are not finite, and weights seen before; either makes the checkpoint unfit to compare with."""
    assert member.scan is not None
    assert member.weights is not None
    if member.scan.not_finite is not None:
        path = member.weights.places[member.scan.not_finite].path
        member.add(f"{member.scan.not_finite} holds values that are not finite; {member.fix}", path)
        member.weights = None
        return
    for other in seen.get(member.scan.fingerprint, []):
        assert other.weights is not None
        with other.weights, member.weights:
            if distance(other.weights, member.weights) == 0:
                member.add(f"same weights as step {other.step}; one of the two is mislabelled: {member.fix}")
                member.weights = None
                return
    seen.setdefault(member.scan.fingerprint, []).append(member)


def _check_zeros(members: Sequence[_Member]) -> None:
    """Tensors that end in zeros where those of the checkpoints beside it do not."""
    fit = [member for member in members if member.weights is not None and member.scan is not None]
    for i, member in enumerate(fit):
        assert member.scan is not None
        assert member.weights is not None
        beside = [other.scan.zeros for other in (*fit[max(0, i - 1) : i], *fit[i + 1 : i + 2]) if other.scan]
        for name, zeros in sorted(member.scan.zeros.items()):
            place = member.weights.places[name]
            values = max(1, (place.end - place.start) // place.value_bytes)
            at_end = place.end == place.path.stat().st_size
            fewer = all(other.get(name, 0) < zeros / 2 for other in beside)
            # Zeros are how some tensors begin, and how padded ones end.
            enough = zeros >= ZEROS if beside else zeros * place.value_bytes >= ZERO_BYTES
            if fewer and enough and ((i > 0 and len(beside) > 0) or (zeros < values and at_end)):
                member.add(f"ends in zeros: the last {zeros} values of {name}; {member.fix}", place.path)
                member.weights = None
                break


def _check_trajectory(
    members: Sequence[_Member], distances: dict[tuple[int, int], float], progress: Progress | None
) -> None:
    by_place: dict[Path | None, list[tuple[int, Weights]]] = {}  # a fork may go another way, at another speed
    for i, member in enumerate(members):
        if member.weights is not None:
            by_place.setdefault(member.place, []).append((i, member.weights))
    for fit in by_place.values():
        _check_path(members, fit, distances, progress)


def _check_path(
    members: Sequence[_Member],
    fit: Sequence[tuple[int, Weights]],
    distances: dict[tuple[int, int], float],
    progress: Progress | None,
) -> None:
    """Of checkpoints in one folder, each with its place in `members`."""
    asked = 0

    def between(first: int, second: int) -> float:
        nonlocal asked
        (i, one), (j, other) = fit[min(first, second)], fit[max(first, second)]
        if (i, j) not in distances:
            with one, other:
                distances[i, j] = distance(one, other)
            asked += 1
            if progress:
                progress("comparing weights", asked, asked + 1)
        return distances[i, j]

    for misplaced in find_misplaced([members[i].step for i, _ in fit], between):
        member = members[fit[misplaced.place][0]]
        member.add(f"a jump in weight distance: {misplaced.what}; {member.fix}")
    if progress and asked:
        progress("comparing weights", asked, asked)
