"""Named corpora to texts: the only place that knows where text comes from."""

import hashlib
import logging
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from copyscope.training.data.text_files import FORMATS, Reading, file_texts, kind_of
from copyscope.training.errors import InputError, first_line

logger = logging.getLogger(__name__)
EMBEDDED = "python"
_SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What archives and file browsers leave beside files, besides what is hidden."""


@dataclass(frozen=True)
class Source:
    """The texts of a corpus as they come, a book in pieces."""

    texts: Generator[str, None, None]
    position: Callable[[], Any]
    """Where to resume reading after the last text taken, for `open_source`; as JSON."""
    endless: bool
    """Whether to stop reading when there is enough: a data set may be larger than anyone has time for."""


def open_source(name: str, position: Any = None, reading: Reading = Reading()) -> Source:
    """The corpus of this name, from `position` on (None: from its beginning).

    `name` is `python` (the embedded default: the .py files of this Python's library and of the packages that
    copyscope needs, whatever else is installed), a file or folder of text files (`text_files.FORMATS`), or `hf:<data
    set>[:<subset>]` for the split `train` of a Hugging Face data set, which is streamed. `reading` names the field
    and the encoding of the text.
    Hidden files and those of the operating system are skipped; what else is not read is logged. Taking texts raises
    InputError for a missing or unreadable source.
    """
    if name.startswith("hf:"):
        return _hugging_face(name, position, reading.field)
    taken = position or 0

    def counted() -> Generator[str, None, None]:
        nonlocal taken
        for text in islice(_texts(name, reading), taken, None):
            taken += 1
            yield text

    return Source(counted(), lambda: taken, endless=False)


def file_signature(name: str) -> str:
    """Changes when files of the corpus are added, removed or written; empty for a data set by name."""
    if name.startswith("hf:"):
        return ""
    paths = _python_paths() if name == EMBEDDED else _corpus_files(name)
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def check_corpus(name: str) -> None:
    """Raises InputError for a file or folder that is not there or has no text. Data sets by name are not looked up."""
    if name != EMBEDDED and not name.startswith("hf:"):
        _corpus_files(name)


def _texts(name: str, reading: Reading) -> Iterator[str]:
    if name == EMBEDDED:
        yield from _python_sources()
        return
    paths = _corpus_files(name)
    _log_unread(Path(name).expanduser())
    for path in paths:
        yield from file_texts(path, reading)


def _corpus_files(name: str) -> list[Path]:
    root = Path(name).expanduser()
    if not root.exists():
        raise InputError(
            f"corpus {name}: no such file or folder; give one, or {EMBEDDED!r}, or hf:<data set> with a network"
        )
    paths = [root] if root.is_file() else [path for path in _visible_files(root) if kind_of(path)]
    if not paths or not kind_of(paths[0]):
        raise InputError(f"corpus {name}: holds nothing that is read; give {FORMATS}")
    return paths


def _visible_files(root: Path) -> list[Path]:
    """The files under a folder that are neither hidden nor the operating system's, sorted."""

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") or part in _SYSTEM for part in path.relative_to(root).parts)

    return sorted(path for path in root.rglob("*") if path.is_file() and not is_hidden(path))


def _log_unread(root: Path) -> None:
    """How many files of a folder are not read, by their endings."""
    if root.is_dir():
        unread = Counter(path.suffix.lower() or path.name for path in _visible_files(root) if not kind_of(path))
        if unread:
            listed = ", ".join(f"{count:,} {ending}" for ending, count in unread.most_common(8))
            logger.warning(f"corpus {root}: {unread.total():,} files are left out ({listed}); read are {FORMATS}")


def _python_paths() -> Iterator[Path]:
    library = Path(sysconfig.get_paths()["stdlib"])
    installed = {"site-packages", "dist-packages"}
    yield from (path for path in sorted(library.rglob("*.py")) if not installed & set(path.parts))
    try:
        listed = [metadata.files(package) or [] for package in _needed_packages()]
    except metadata.PackageNotFoundError as error:
        raise InputError(f"corpus {EMBEDDED}: the package {error.name} is not installed; run pip install") from None
    for files in listed:
        kept = sorted(file for file in files if file.suffix == ".py" and ".." not in file.parts)  # no scripts of bin
        yield from (Path(str(file.locate())) for file in kept)


def _needed_packages() -> list[str]:
    """Those that copyscope itself asks for, sorted: not those of extras, nor those that these packages bring."""
    needs = [need for need in metadata.requires("copyscope") or [] if "extra ==" not in need]
    return sorted({re.split(r"[^\w.-]", need, maxsplit=1)[0].lower() for need in needs})


def _python_sources() -> Iterator[str]:
    for path in _python_paths():
        try:
            yield path.read_text("utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a few test files are in other encodings on purpose


def _hugging_face(name: str, position: Any, column: str) -> Source:
    data_set, _, subset = name.removeprefix("hf:").partition(":")
    if ":" in subset:
        raise InputError(f"corpus {name}: write hf:<data set>[:<subset>], and name the column by data.field")
    with _one_line(name):
        from datasets import load_dataset

        rows: Any = load_dataset(data_set, subset or None, split="train", streaming=True)
        if position is not None:
            rows.load_state_dict(position)

    def texts() -> Generator[str, None, None]:
        with _one_line(name):
            for row in rows:
                if column not in row:
                    raise InputError(
                        f"corpus {name}: no column {column!r}; its columns are {', '.join(row)}; name one, as in "
                        f"--set data.field={next(iter(row), 'text')}"
                    )
                if isinstance(row[column], str):
                    yield row[column]

    return Source(texts(), rows.state_dict, endless=True)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """The library raises many kinds of error for a missing set, a gated one and no network."""
    try:
        yield
    except InputError:
        raise
    except ImportError:
        raise InputError(f"corpus {name}: the package 'datasets' is missing; install it") from None
    except Exception as error:
        raise InputError(
            f"corpus {name}: cannot be streamed ({first_line(error, 200)}); check the name and the network, and "
            "run the same command again to resume from what was read"
        ) from None
