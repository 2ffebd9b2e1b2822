"""Revisions of a model on the Hugging Face hub: which there are, which of them a series names, and their files.

What is on this machine already is not asked for again, and with HF_HUB_OFFLINE=1 or without a network what the cache of
huggingface_hub holds is enough.
"""

import contextlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from copyscope.training.checkpoints.names import Named, arrange, natural, read_name
from copyscope.training.checkpoints.tokenizer_files import TOKENIZER_FILES
from copyscope.training.checkpoints.weights import INDEX, SINGLE, UnreadableError, read_index
from copyscope.training.errors import InputError, first_line

logger = logging.getLogger(__name__)

SMALL = ("config.json", "generation_config.json", INDEX, *TOKENIZER_FILES)
"""What is fetched of a revision before its weights."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STAGE = re.compile(r"(stage|ingredient|seed)\d+(-(stage|ingredient|seed)\d+)*")


@dataclass(frozen=True)
class Revision:
    """A revision of a model: its name, the commit it stands for, and what its name says."""

    name: str
    commit: str
    step: int | None
    tokens: int | None
    stage: str


def revisions(repo: str) -> list[Revision]:
    """All branches and tags of a model, those with a step first, by stage and step; with a condition, as in
    `org/model@stage1`, only those that it names (`select`).

    Raises InputError if the hub does not give them and the cache has none.
    """
    repo, _, condition = repo.partition("@")
    there = references(repo)
    names = select(repo, condition)[0] if condition.strip(", ") else list(there)
    revisions = []
    for name, commit in ((name, there[name]) for name in names if name in there):
        named = read_name(name)
        revisions.append(Revision(name, commit, named.number, named.tokens, named.stage))
    return sorted(revisions, key=lambda r: (r.step is None, r.stage, r.step or 0, natural(r.name)))


def references(repo: str) -> dict[str, str]:
    """Name of each branch and tag → its commit. From the cache where the hub cannot be reached."""
    from huggingface_hub import HfApi

    name, _, rest = repo.partition("@")
    if rest or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{repo}: not the name of a model on the hub; give ORG/NAME, as in EleutherAI/pythia-70m")
    try:
        refs = HfApi().list_repo_refs(repo)
    except Exception as error:  # the hub client has a dozen error types, and all mean that there is no list
        refs = _cache(repo) / "refs"
        files = [path for path in sorted(refs.rglob("*")) if path.is_file()]
        cached = {str(path.relative_to(refs)): path.read_text().strip() for path in files}
        if not cached:
            raise InputError(
                f"{repo}: the hub gave no list of revisions ({type(error).__name__}); check the name and the network"
            ) from None
        logger.info(f"{repo}: no connection to the hub; {len(cached)} revisions are in the cache")
        return cached
    return {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}


def select(repo: str, selector: str) -> tuple[list[str], bool]:
    """Names of the revisions that `selector` (what follows the @) stands for, and whether each was named by itself.

    Commas separate names and conditions: `*` (all), `stage1`, `<=step4000`, `>=step100`, `step1000..step4000`,
    `log:24` (that many, spaced evenly in the logarithm of the step, the first and last among them). Conditions narrow
    each other; names are taken besides. Bounds may be in tokens, as in `<=tokens10B`.

    Raises InputError for a condition that is none or that no revision meets.
    """
    parts = [part.strip() for part in selector.split(",") if part.strip()]
    plain = [part for part in parts if not re.search(r"[*<>:]|\.\.", part) and not _STAGE.fullmatch(part)]
    conditions = [part for part in parts if part not in plain]
    if not conditions:
        return plain, True
    there = references(repo)
    names = [part for part in parts if part in there]
    conditions = [part for part in conditions if part not in there]
    if not conditions:
        return [*plain, *(name for name in names if name not in plain)], True
    numbered = list(arrange(there).kept)
    stages = [part for part in conditions if _STAGE.fullmatch(part)]
    if stages:
        numbered = [n for n in map(read_name, there) if n.number is not None and not n.is_copy and _of(n, stages)]
    spaced = None
    for part in conditions:
        if match := re.fullmatch(r"log:(\d+)", part):
            spaced = int(match[1])
        elif part != "*" and part not in stages:
            low, high, unit = _bounds(part)
            numbered = [
                n
                for n in numbered
                if (value := n.tokens if unit == "tokens" else n.number) is not None and low <= value <= high
            ]
    if not numbered:
        some = ", ".join(sorted(there, key=natural)[:4])
        raise InputError(f"{repo}@{selector}: no revision meets this; there are {len(there)}, as {some}")
    if spaced is not None:
        numbered = _spaced(numbered, spaced, f"{repo}@{selector}")
    taken = [n.name for n in numbered]
    return [*taken, *(name for name in plain if name not in taken)], False


def _of(named: Named, stages: Iterable[str]) -> bool:
    held = set(named.stage.split("-"))
    return any(set(stage.split("-")) <= held for stage in stages)


def _bounds(part: str) -> tuple[float, float, str]:
    """Lowest and highest number, and what they count."""
    compared = re.fullmatch(r"(<=|>=|<|>)(.+)", part)
    between = re.fullmatch(r"(.*?)\.\.(.*)", part)
    if compared:
        number = read_name(compared[2].strip())
        if number.number is not None:
            less, strict = compared[1].startswith("<"), len(compared[1]) == 1
            edge = number.number + (0 if not strict else -1 if less else 1)
            return (-math.inf, float(edge), number.unit) if less else (float(edge), math.inf, number.unit)
    elif between and any(between.groups()):
        ends = [read_name(text.strip()) if text.strip() else None for text in between.groups()]
        if all(end is None or end.number is not None for end in ends):
            low, high = ends
            unit = (low or high).unit  # type: ignore[union-attr]
            least = -math.inf if low is None else float(low.number or 0)
            return least, math.inf if high is None else float(high.number or 0), unit
    raise InputError(f"@{part}: no condition; give *, log:24, <=step4000, step1000..step4000 or stage1")


def _spaced(numbered: Sequence[Named], count: int, where: str) -> list[Named]:
    if count < 2:
        raise InputError(f"{where}: log:{count} is too few; give at least log:2")
    by_step = {n.number or 0: n for n in numbered}
    if len(by_step) < len(numbered):
        first = next(n for n in numbered if by_step[n.number or 0] is not n)
        raise InputError(
            f"{where}: {first.name} and {by_step[first.number or 0].name} are both of {first.number}; add a stage, as "
            "in stage1,log:24"
        )
    steps = sorted(by_step)
    positive = [step for step in steps if step > 0]
    kept = {steps[0], steps[-1]}
    if positive:
        low, high = math.log(positive[0]), math.log(positive[-1])
        points = max(2, count - (steps[0] <= 0))
        for i in range(points):
            at = low + (high - low) * i / (points - 1)
            kept.add(min(positive, key=lambda step: abs(math.log(step) - at)))
    return [by_step[step] for step in sorted(kept)]


def commits(repo: str, names: Iterable[str]) -> dict[str, str]:
    """Revision → its commit. Raises InputError naming one that is not there."""
    from huggingface_hub import HfApi

    wanted = list(dict.fromkeys(names))
    known = {name: name for name in wanted if _COMMIT.fullmatch(name)}
    if len(wanted) - len(known) > 2:
        with contextlib.suppress(InputError):
            there = references(repo)
            known |= {name: there[name] for name in wanted if name in there}
    for name in wanted:
        if name in known:
            continue
        try:
            known[name] = str(HfApi().model_info(repo, revision=name).sha)
        except Exception as error:  # as in references
            cached = _cache(repo) / "refs" / name
            if not cached.is_file():
                raise _not_there(repo, name, error) from None
            known[name] = cached.read_text().strip()
    _remember(repo, {name: commit for name, commit in known.items() if name != commit})
    return known


def _remember(repo: str, known: Mapping[str, str]) -> None:
    """Notes in the cache which commits branches stand for, as huggingface_hub does, for when there is no network."""
    for name, commit in known.items():
        path = _cache(repo) / "refs" / name
        with contextlib.suppress(OSError):
            if not path.is_file() or path.read_text().strip() != commit:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(commit)


def fetch_small(repo: str, revision: str | None) -> Path:
    """Fetches a revision's config and tokenizer, not its weights; returns the folder, whose name is the commit."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(SMALL)))
    except Exception as error:  # as in references
        raise _not_there(repo, revision, error) from None


def fetch_weights(repo: str, folder: Path, name: str | None = None, one_by_one: bool = False) -> None:
    """Fetches the weights into the folder that `fetch_small` gave: model.safetensors, or the shards of the index, and
    nothing else. Raises InputError where there are none, saying what there is; `name`: of the revision, for that (None:
    its commit). `one_by_one`: in this thread alone; else huggingface_hub starts threads that outlive an interrupt."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    if has_weights(folder):
        return
    commit = folder.name
    where = f"{repo}@{name or commit}"
    try:
        there = HfApi().list_repo_files(repo, revision=commit)
        names = [SINGLE] if SINGLE in there else sorted(read_index(folder))
        if one_by_one:
            for file in names:
                hf_hub_download(repo, file, revision=commit)
        elif names:
            snapshot_download(repo, revision=commit, allow_patterns=names)
    except UnreadableError as error:
        raise InputError(f"{where}: {INDEX} {error}") from None
    except Exception as error:  # as in references
        raise _not_there(repo, name or commit, error) from None
    if not names:
        pickled = sorted(name for name in there if name.endswith((".bin", ".pt", ".pth")))
        what = f"only pickled weights ({pickled[0]}), which are never read" if pickled else "no safetensors in it"
        raise InputError(f"{where}: {what}; choose another revision")


def has_weights(folder: Path) -> bool:
    """Whether all the files of the weights are in a model's folder."""
    try:
        names = read_index(folder)
    except UnreadableError:
        return False
    return bool(names) and all((folder / name).is_file() for name in names)


class CacheLimit:
    """Deletes the weights that this call fetched, oldest first, as soon as they take more than `gigabytes`; None never.

    What was in the cache before stays. Configs and tokenizers stay too.
    """

    def __init__(self, gigabytes: float | None):
        if gigabytes is not None and not gigabytes >= 0:
            raise InputError(f"--cache-limit {gigabytes}: give gigabytes, 0 or more")
        self._limit = None if gigabytes is None else gigabytes * 1e9
        self._fetched: dict[Path, int] = {}

    def fetched(self, folder: Path) -> None:
        """Says that the weights in a snapshot folder of the cache were fetched by this call."""
        with contextlib.suppress(UnreadableError, OSError):
            self._fetched[folder] = sum((folder / name).stat().st_size for name in read_index(folder))

    def trim(self) -> None:
        """Deletes what is over the limit."""
        while self._limit is not None and self._fetched and sum(self._fetched.values()) > self._limit:
            folder = next(iter(self._fetched))
            del self._fetched[folder]
            _drop_weights(folder)


def _drop_weights(folder: Path) -> None:
    """Takes a snapshot's weights out of the cache; a blob that other snapshots use stays."""
    with contextlib.suppress(UnreadableError):
        for name in read_index(folder):
            link = folder / name
            blob = link.resolve()
            link.unlink(missing_ok=True)
            used = any(other.resolve() == blob for other in folder.parent.glob(f"*/{name}"))
            if blob.parent.name == "blobs" and not used:
                blob.unlink(missing_ok=True)


def _cache(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _not_there(repo: str, revision: str | None, error: Exception) -> InputError:
    at = f"@{revision}" if revision else ""
    reason = first_line(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
    return InputError(
        f"{repo}{at}: neither a local directory nor a model the hub gave ({reason}); check the name and the network"
    )
