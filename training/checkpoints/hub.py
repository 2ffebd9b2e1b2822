"""Uploads a series to the Hugging Face hub, a revision a checkpoint. The only place that writes to the hub."""

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries, Source
from copyscope.training.checkpoints.verify import verify
from copyscope.training.errors import InputError, first_line
from copyscope.training.files import MANIFEST, sha256_of
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)


class Pushed(NamedTuple):
    """What `push` did, by revision."""

    uploaded: list[str]
    skipped: list[str]
    """Those that the hub had already, file by file the same."""


def push(
    source: Source,
    repo: str,
    private: bool = True,
    api: Any = None,
    progress: Progress | None = None,
) -> Pushed:
    """Uploads each checkpoint as revision `step<N>` of the model repository `repo` (org/name), the last as `main` too.

    `source`: a run, a series, or its folder. The repository is made if it is not there; `private` says how, and changes
    nothing about one that is. A revision is one commit, so that it is whole or not there; those that are there already
    are skipped, so that a call that was cut off can be repeated. `api` is a `huggingface_hub.HfApi` (none given: one
    with the token of this machine).

    Raises InputError: a series that is not on this disk or that `verify` finds unsound, two checkpoints of one step, no
    token, no network, a token that may not write there.
    """
    series = CheckpointSeries.open(source)
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", repo):
        raise InputError(f"{repo}: not the name of a repository; give ORG/NAME, as in my-lab/my-run")
    api = api or _api()  # what is quickly found to be missing is said first
    _check(series, progress)
    revisions = [(f"step{checkpoint.step}", checkpoint) for checkpoint in series.checkpoints]
    revisions.append(("main", series.checkpoints[-1]))
    done = Pushed([], [])
    with _in_one_line(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        there = {branch.name for branch in api.list_repo_refs(repo).branches}
        for number, (revision, checkpoint) in enumerate(revisions):
            folder = Path(checkpoint.path)
            if revision in there and _is_there(api, repo, revision, folder):
                done.skipped.append(revision)
            else:
                if revision not in there:
                    api.create_branch(repo, branch=revision, exist_ok=True)
                api.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    revision=revision,
                    commit_message=f"step {checkpoint.step}",
                    allow_patterns=_names(folder),
                    delete_patterns="*",  # what an earlier upload held and this one does not
                )
                done.uploaded.append(revision)
                logger.info(f"{revision}: uploaded ({number + 1} of {len(revisions)})")
    return done


def _check(series: CheckpointSeries, progress: Progress | None) -> None:
    for checkpoint in series.checkpoints:
        if checkpoint.revision is not None:
            raise InputError(f"{series.source}: is on a hub already; give a folder of checkpoints on this disk")
    problems = verify(series, progress)
    if problems:
        more = f" (and {len(problems) - 1} more; `copyscope verify {series.source}` lists them)" * (len(problems) > 1)
        raise InputError(f"not uploaded, since {problems[0].where}: {problems[0].what}{more}")
    seen: dict[int, Checkpoint] = {}
    for checkpoint in series.checkpoints:
        other = seen.setdefault(checkpoint.step, checkpoint)
        if other is not checkpoint:
            raise InputError(f"not uploaded, since {other.path} and {checkpoint.path} are both of step {other.step}")


def _api() -> Any:
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise InputError("no token for the hub: run `hf auth login` with one that may write, or set HF_TOKEN")
    return HfApi()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _is_there(api: Any, repo: str, revision: str, folder: Path) -> bool:
    """Whether the revision holds these very files. Reads their hashes, not the files."""
    remote = {entry.path: entry for entry in api.list_repo_tree(repo, revision=revision, recursive=True)}
    remote.pop(".gitattributes", None)  # the hub's own
    if remote.keys() != set(_names(folder)):
        return False
    known = read_manifest(folder)["files"] if (folder / MANIFEST).is_file() else {}
    for name, entry in remote.items():
        if getattr(entry, "lfs", None) is not None:
            if entry.lfs.sha256 != (known.get(name) or sha256_of(folder / name)):
                return False
        elif getattr(entry, "blob_id", None) != _git_hash(folder / name):
            return False
    return True


def _git_hash(path: Path) -> str:
    """What git, and so the hub, calls a file that is not kept as a large one."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    # HTTPError is of whichever HTTP library this version of huggingface_hub is built on.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    then = "; the same command continues from there"
    try:
        yield
    except OfflineModeIsEnabled:
        raise InputError(f"{repo}: the hub may not be reached, since HF_HUB_OFFLINE is set; unset it") from None
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403, 404):
            how = "run `hf auth login` with a token that may write there"
            raise InputError(f"{repo}: the hub refuses (status {code}); {how}") from None
        raise InputError(f"{repo}: the hub failed ({first_line(error)}){then}") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise InputError(f"{repo}: no connection to the hub ({first_line(error)}){then}") from None
