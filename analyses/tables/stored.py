"""Result tables as files: what a stored table depends on, and what it was computed with."""

import hashlib
import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from copyscope.training.files import write_bytes

SCORES_VERSION = 7
"""Raised when a measure or its prompts change, so that stored scores are computed again."""


def result_key(checkpoint: str, *parts: object) -> str:
    """What a stored result depends on: the checkpoint (`checkpoint_key`) and everything in `parts`."""
    return hashlib.sha256(repr((checkpoint, *parts)).encode()).hexdigest()


def is_stored(path: Path, key: str) -> bool:
    """Whether the table at `path` is whole and was computed under `key`."""
    try:
        return path.is_file() and pl.read_parquet_metadata(path).get("key") == key
    except (pl.exceptions.PolarsError, OSError):
        return False


def store_table(table: pl.DataFrame, path: Path, key: str, facts: Mapping[str, Any]) -> None:
    """Writes a table, whole or not at all, with `facts` and the versions of programs as `computed_with`."""
    versions = {name: version(name) for name in ("copyscope", "torch")}
    data = io.BytesIO()
    table.write_parquet(data, metadata={"key": key, "computed_with": json.dumps({**facts, **versions})})
    write_bytes(path, data.getvalue())


def computed_with(path: Path) -> dict[str, Any]:
    """What the table at `path` was computed with; empty for one of before this was written down."""
    return json.loads(pl.read_parquet_metadata(path).get("computed_with", "{}"))


PROMPTS = ("seed", "seeds", "copying_samples", "samples", "prompts", "head_prompts", "loss_prompts", "windows")
"""What of `computed_with` says on which prompts values rest; values on others differ by chance."""


def prompts_otherwise(path: Path, other: Path) -> str:
    """How the prompts behind two tables differ, as `copying_samples 500 and 20`; empty where they do not."""
    one, two = computed_with(path), computed_with(other)
    names = [name for name in PROMPTS if name in one and name in two and one[name] != two[name]]
    return ", ".join(f"{name} {one[name]} and {two[name]}" for name in names)


def scored_otherwise(path: Path) -> bool:
    """Whether the scores at `path` are by the definitions of another version."""
    return computed_with(path).get("version", 2) != SCORES_VERSION  # tables without the fact: of 2 at the latest


def steps_of(folder: Path) -> set[int]:
    """The steps that have a table in the folder."""
    return {int(path.stem.removeprefix("step")) for path in folder.glob("step*.parquet")}
