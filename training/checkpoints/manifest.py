"""The manifest of a checkpoint: which files it has, with their hashes, its step and its tokens."""

import json
from pathlib import Path
from typing import Any

from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST, sha256_of


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


def weights_hash(folder: Path) -> str | None:
    """The sha256 of a checkpoint of ours' weights, as its manifest says it; None where it lists none.

    Raises InputError for a manifest that is unreadable.
    """
    digest = read_manifest(folder)["files"].get("model.safetensors")
    return None if digest is None else str(digest)


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
