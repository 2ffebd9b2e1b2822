"""From a source to a run: what the source is, and in which folder its results lie."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from copyscope.analyses.tables.run import Run
from copyscope.training.checkpoints.average import ABOUT
from copyscope.training.checkpoints.series import CheckpointSeries, Order, Source, trunk_checkpoints
from copyscope.training.checkpoints.trunk import Trunk, read_trunk
from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.files import write_json

logger = logging.getLogger(__name__)


def open_run(
    source: Source, *, out: Source | None = None, order: Order | None = None, tokenizer: Source | None = None
) -> Run:
    """A run, a folder of Hugging Face models, one model's folder or GGUF file, or `org/model@revisions` of the hub; or
    a folder that holds results of one of these alone.

    Results go into the folder; for a file or a hub series, into `runs/<name>`, or beside it where that is another
    source's; or into `out`. `order` and `tokenizer` as for `CheckpointSeries.open`; None for what the results were
    computed with before. Raises InputError if there is no checkpoint in it, two are of one step, or `out` is of
    another source.
    """
    if isinstance(source, Run):
        return source
    source = os.fspath(source)
    path, out = Path(source), None if out is None else Path(out)
    place = out or (path if path.is_dir() else _own_place(source))
    about = read_about(place)
    if out is None and path.is_dir() and about.source is not None and about.of != identity(source):
        source, path = about.source, Path(about.source)  # a folder of results alone
    elif out is not None:
        _refuse_another(out, source, about)
    order = order or about.order
    tokenizer = Path(tokenizer) if tokenizer else about.tokenizer
    config = RunConfig.load(path / "config.toml") if (path / "config.toml").is_file() else None
    trunk = read_trunk(path)
    bare = config and config.checkpoints.keep == "none" and not any((path / "checkpoints").glob("step*"))
    if bare and (trunk is None or not trunk_checkpoints(path, trunk)[0]):
        series = CheckpointSeries(str(source), ())  # scored while it was trained; what is left is tables
    else:
        series = CheckpointSeries.open(source, order, tokenizer)
        series.refuse_doubles()
    data = {}
    if (path / "data.json").is_file():
        try:
            data = json.loads((path / "data.json").read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{path / 'data.json'}: not JSON ({error}); delete the run and train it again") from None
    name = path.resolve().name if path.is_dir() else _name_of(source)
    if (path / ABOUT).is_file():
        name = f"{path.resolve().parent.name}-{name}"
    run = Run(name=name, folder=place, series=series, config=config, data=data, order=order, tokenizer=tokenizer)
    return run if trunk is None else replace(run, trunk=_trunk_of(run, trunk, path))


def _trunk_of(fork: Run, trunk: Trunk, path: Path) -> Run | None:
    """The parent of a fork with the checkpoints that are the fork's as well; None where it is gone, which is said."""
    place = trunk.parent(path)
    if place is None:
        _warn_once(": ".join(trunk.gone(path)))
        return None
    try:
        parent = open_run(place)
    except (InputError, RecursionError) as error:
        _warn_once(f"{fork.folder}: the tables of its parent cannot be read: {error}")
        return None
    there = {checkpoint.path for checkpoint in fork.series.checkpoints}
    shared = tuple(one for one in parent.series.checkpoints if one.path in there)
    return replace(parent, series=replace(parent.series, checkpoints=shared))


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def open_runs(sources: Source | Sequence[Source]) -> list[Run]:
    """One source or several as runs. Raises InputError for one that is none."""
    return [open_run(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]


def _name_of(source: str) -> str:
    return Path(source).stem if Path(source).is_file() else source.partition("@")[0].replace("/", "--")


def _own_place(source: str) -> Path:
    """Where results of a file or a hub series go: `runs/<name>`, with a hash in it where that is another's."""
    place = Path("runs") / _name_of(source)
    about = read_about(place)
    others = [entry for entry in place.glob("*") if entry.name not in ("results", "figures", "report.html")]
    if about.of == identity(source) or (about.of is None and not others):
        return place
    return place.with_name(f"{place.name}-{hashlib.sha256(identity(source).encode()).hexdigest()[:8]}")


def _refuse_another(out: Path, source: str, about: "About") -> None:
    if out.is_file():
        raise InputError(f"--out {out}: a file; give a folder for the results")
    if out.resolve() == Path(source).resolve():
        return
    if about.of not in (None, identity(source)):
        raise InputError(f"--out {out}: holds results of {about.source}; give another folder")
    if any((out / name).exists() for name in ("config.toml", "checkpoints", "config.json", ABOUT)):
        raise InputError(f"--out {out}: is a run or a model itself; give another folder")


@dataclass(frozen=True)
class About:
    """What results/series.json says the results beside it are of."""

    of: str | None = None
    """Identity of the source; None where the results are of the folder they lie in, or nothing is known."""
    source: str | None = None
    order: Order = "step"
    tokenizer: Path | None = None


def read_about(place: Path) -> About:
    """What the results in a folder are of. Raises InputError for an unreadable file."""
    path = place / "results" / "series.json"
    try:
        held = json.loads(path.read_text("utf-8"))
        order: Order = "name" if held.get("order") == "name" else "step"
        tokenizer = held.get("tokenizer")
        return About(held.get("of"), held.get("source"), order, None if tokenizer is None else Path(tokenizer))
    except FileNotFoundError:
        return About()
    except NotADirectoryError:
        raise InputError(
            f"{place / 'results'}: a file, so no results can go there; choose another place with --out"
        ) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: unreadable ({error}); delete it and score again") from None


def identity(source: str) -> str:
    """What tells sources apart that have one name: a hub id, or where the file or folder lies."""
    return str(Path(source).resolve()) if Path(source).exists() else f"hub:{source.partition('@')[0]}"


def write_about(run: Run) -> None:
    """Notes beside the results what they are of, where their place does not say it."""
    source = run.series.source
    of = identity(source)
    elsewhere = of != identity(os.fspath(run.folder))
    about = About(of if elsewhere else None, source if elsewhere else None, run.order, run.tokenizer)
    if about == read_about(run.folder):
        return
    full = str(Path(source).resolve()) if Path(source).exists() else source
    tokenizer = None if run.tokenizer is None else str(Path(run.tokenizer).resolve())
    held = {"of": about.of, "source": full if elsewhere else None, "order": run.order, "tokenizer": tokenizer}
    write_json(run.folder / "results" / "series.json", held)
