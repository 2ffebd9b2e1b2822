"""What a page that is sent to others does not say: where on its maker's disk things lay."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from copyscope.analyses.tables.run import Run


def without_places(content: Any, runs: Sequence[Run]) -> Any:
    """A copy of `content` (what JSON holds) in which the path of each run, of the run it was forked from, of its text
    and of its tokenizer is its last part alone. Paths that go down from the current folder stay: `runs/demo` tells
    nothing of the disk, and can be typed."""
    names = {path: Path(path).name for run in runs for path in _paths(run) if _tells(Path(path))}
    longest_first = dict(sorted(names.items(), key=lambda item: -len(item[0])))
    return _replaced(content, longest_first) if longest_first else content


def _tells(path: Path) -> bool:
    return bool(path.name) and (path.is_absolute() or path.parts[0] in ("..", "~"))


def _paths(run: Run) -> list[str]:
    found = [str(run.folder), str(run.folder.resolve()), run.series.source]
    found += [str(run.tokenizer)] if run.tokenizer else []
    found += [run.config.data.corpus] if run.config else []
    found += [str(run.data["corpus"])] if "corpus" in run.data else []
    return found + (_paths(run.trunk) if run.trunk else [])


def _replaced(content: Any, names: Mapping[str, str]) -> Any:
    if isinstance(content, str):
        for path, name in names.items():
            content = content.replace(path, name)
        return content
    if isinstance(content, Mapping):
        return {key: _replaced(value, names) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_replaced(value, names) for value in content]
    return content
