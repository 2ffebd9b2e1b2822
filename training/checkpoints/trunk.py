"""What a fork's fork.json says: whose first steps are its own, and by which hashes they are known."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from copyscope.training.checkpoints.manifest import weights_hash
from copyscope.training.errors import InputError

TRUNK = "fork.json"
FAMILY = "forks.json"
"""In the folder of several forks: which they are."""
NULL, PLACEBO, CHANGED = "null", "placebo", "changed"
"""The kinds of forks: in which nothing differs, the order of the text, or something else."""
ORDER = "seeds.data"
"""All that differs in a placebo."""
RECORDING = frozenset(
    {
        *(f"train.{name}" for name in ("log_every", "validate_every", "track")),
        *(f"checkpoints.{name}" for name in ("every", "steps", "keep", "resume_every", "state_every", "mean_every")),
    }
)
"""Fields of what is written down; with these alone a fork is still the null fork."""


class Unfit(NamedTuple):
    """What of a parent is not as it was when the fork began."""

    where: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The part of a fork that is its parent's."""

    step: int
    """The fork's first own update is the one from this step on."""
    tokens: int
    """Consumed by then."""
    run_id: str
    """Of the parent."""
    place: Mapping[str, str]
    """`relative` (to the fork) and `absolute` path of the parent."""
    store: Mapping[str, str]
    """The same of the parent's tokens."""
    text: Mapping[str, str] | None
    """The same of the tokens that are read from `step` on, where they are others."""
    changes: Mapping[str, tuple[Any, Any]]
    """Field → its value in the parent and here."""
    until: int | None
    """The first update at which what can be limited (`schedule.settings_at`) is the parent's again; None: none is."""
    kind: str
    """`NULL`, `PLACEBO` or `CHANGED`."""
    label: str
    """What differs, in a word or two."""
    state: str | None
    """sha256 of the full state at `step`; None at step 0, which follows from the seed."""
    replay: Mapping[str, Any]
    """From which step the parent was trained again to reach `step`; at which steps the replay could be `compared`
    with it, and at which it `differs`."""
    checkpoints: Mapping[int, str]
    """Step → sha256 of the weights of each checkpoint of the parent up to `step`."""

    def parent(self, fork: Path) -> Path | None:
        """The parent's folder; None where it is not there any more."""
        return next((place for place in places(fork, self.place) if place.is_dir()), None)

    def gone(self, fork: Path) -> Unfit:
        """Says that the fork in folder `fork` has no parent any more."""
        what = (
            f"the parent of {fork} is not there any more (moved or deleted), so steps 0 to {self.step} are left out; "
            f'put it back, or write where it is now as "absolute" under "parent" into {fork / TRUNK}'
        )
        return Unfit(self.place["absolute"], what)


def read_trunk(path: Path) -> Trunk | None:
    """What the fork in this folder begins with; None for a folder of anything else. Raises InputError for a damaged
    fork.json."""
    file = path / TRUNK
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text("utf-8"))
        parent = held["parent"]
        trunk = Trunk(
            step=int(held["step"]),
            tokens=int(held["tokens_at_step"]),
            run_id=str(parent["run_id"]),
            place=_place(parent),
            store=_place(held["tokens"]),
            text=None if held["text"] is None else _place(held["text"]),
            changes={str(name): (before, after) for name, (before, after) in held["changes"].items()},
            until=None if held.get("until") is None else int(held["until"]),
            kind=str(held["kind"]),
            label=str(held["label"]),
            state=held["state"],
            replay=dict(held["replay"]),
            checkpoints={int(step): str(digest) for step, digest in held["checkpoints"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: damaged ({type(error).__name__}: {error}); rerun the `copyscope fork` that wrote it into another "
            "--out"
        ) from None
    return trunk


def as_json(trunk: Trunk) -> dict[str, Any]:
    """The content of fork.json, which `read_trunk` reads."""
    return {
        "parent": {**trunk.place, "run_id": trunk.run_id},
        "step": trunk.step,
        "tokens_at_step": trunk.tokens,
        "kind": trunk.kind,
        "label": trunk.label,
        "changes": {name: list(values) for name, values in trunk.changes.items()},
        "until": trunk.until,
        "state": trunk.state,
        "replay": dict(trunk.replay),
        "tokens": dict(trunk.store),
        "text": None if trunk.text is None else dict(trunk.text),
        "checkpoints": {str(step): digest for step, digest in trunk.checkpoints.items()},
    }


def place_of(target: Path, fork: Path) -> dict[str, str]:
    """A path as fork.json notes it: relative to the fork, so that both can be moved together, and absolute."""
    full = target.resolve()
    return {"relative": os.path.relpath(full, fork.resolve()), "absolute": str(full)}


def places(fork: Path, place: Mapping[str, str]) -> list[Path]:
    """Where to look for what `place_of` noted."""
    beside = Path(os.path.normpath(fork.absolute() / place["relative"]))
    return [Path(os.path.relpath(beside)) if not fork.is_absolute() else beside, Path(place["absolute"])]


def why_changed(folder: Path, digest: str) -> str | None:
    """Why the checkpoint in `folder` is not the one with weights of this sha256; None where it is, by its manifest."""
    try:
        now = weights_hash(folder)
    except InputError as error:
        return str(error)
    return None if now == digest else "its weights are not those that the fork began with"


def tokens_of(run: Path, name: str) -> Path:
    """The folder of a run's tokens: beside the run, or of a fork that lies elsewhere where its parent's are."""
    beside = run.parent / "tokens" / name
    if (beside / "index.json").is_file():
        return beside
    trunk = read_trunk(run)
    found = [] if trunk is None else places(run, trunk.store)
    return next((place for place in found if place.name == name and (place / "index.json").is_file()), beside)


def _place(held: Mapping[str, Any]) -> dict[str, str]:
    return {"relative": str(held["relative"]), "absolute": str(held["absolute"])}
