"""The models of a series one after another in one place in memory, and the prompts that measure them all.

Each checkpoint is loaded by its own config. Prompts are drawn from what all of them share: one tokenizer, the shortest
context, the smallest vocabulary; so that they are the same whatever order checkpoints are measured in.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from copyscope.analyses.tables.as_trained import held_key
from copyscope.analyses.tables.fetch_ahead import FetchAhead
from copyscope.analyses.tables.opening import write_about
from copyscope.analyses.tables.run import Run
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES, LOSS_PROMPTS, Prompts, run_prompts
from copyscope.analyses.tables.stored import result_key
from copyscope.interp.forward.memory import limit_memory
from copyscope.interp.models.config import read_config
from copyscope.interp.models.devices import Compute, dtype_named, has_room_for_another
from copyscope.interp.models.hooked import load_hooked, load_weights_into
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.models.tokenizer import read_tokenizer
from copyscope.interp.models.vocabulary import vocabulary_of
from copyscope.training.checkpoints.keys import checkpoint_key, tokenizer_key
from copyscope.training.checkpoints.revisions import CacheLimit, commits, fetch_small, has_weights
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.checkpoints.tokenizer_files import has_tokenizer
from copyscope.training.devices import device_named
from copyscope.training.errors import InputError
from copyscope.training.files import alone_in, check_writable, together_in

logger = logging.getLogger(__name__)

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_IDLE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}
"""Fields of a config that do not change what a model computes."""


@dataclass(frozen=True)
class Shared:
    """What the prompts of a series are drawn from."""

    n_ctx: int | None
    """The shortest context where they differ; None where all are the same, or of a run of ours."""
    d_vocab: int | None
    """Likewise the smallest vocabulary."""
    tokenizer: Path | None
    """The folder, or GGUF file, whose tokenizer it is."""
    config: Path | None
    """The folder, or GGUF file, of a checkpoint whose config can be read."""

    @property
    def key(self) -> tuple[object, ...]:
        """For the keys of results, besides the checkpoint's own files."""
        held = None if self.tokenizer is None or self.tokenizer.is_file() else tokenizer_key(self.tokenizer)
        return (self.n_ctx, self.d_vocab, held)


class SeriesModels:
    """Loads the checkpoints of one series, in any order, into one model where their configs agree."""

    def __init__(
        self,
        seeds: Sequence[int] | None = None,
        samples: int = COPYING_SAMPLES,
        loss_prompts: int = LOSS_PROMPTS,
        cache_limit: float | None = None,
        compute: Compute | None = None,
    ) -> None:
        """`cache_limit`: gigabytes that downloaded weights may take, for a series on the hub; None for no limit."""
        self.compute = Compute() if compute is None else compute
        self._seeds, self._samples, self._loss_prompts = seeds, samples, loss_prompts
        self._cache = CacheLimit(cache_limit)
        self._model: HookedModel | None = None
        self._config: dict[str, Any] | None = None
        self._prompts: Prompts | None = None
        self._shared: Shared | None = None
        self._commits: dict[str, str] = {}
        self._ahead = FetchAhead()
        self.next: Checkpoint | None = None
        """What is to be loaded after the checkpoint at hand: of a hub series, its weights are fetched meanwhile."""

    def key_of(self, run: Run, checkpoint: Checkpoint) -> str:
        """What results of the checkpoint depend on, prompts included, but for how they are measured."""
        if checkpoint.revision is not None and checkpoint.revision not in self._commits:
            names = [c.revision for c in run.series.checkpoints if c.revision is not None]
            self._commits |= _those_there(checkpoint.path, names, checkpoint.revision)
        shared = () if run.config else self.shared(run, checkpoint).key
        self._ahead.wait_for(checkpoint)
        return repr((checkpoint_key(checkpoint, self._commits), *shared))

    def result_key(self, run: Run, checkpoint: Checkpoint, *parts: object) -> str:
        """The key of a stored result: what `key_of` says, `parts` (what is measured, and how), heads that were held,
        and the precision."""
        more = (*held_key(run, checkpoint), *self.compute.key)
        return result_key(self.key_of(run, checkpoint), *parts, *more)

    def shared(self, run: Run, checkpoint: Checkpoint) -> Shared:
        """What prompts are drawn from: of all checkpoints of the series, and of this one."""
        if self._shared is None:
            held = list(run.series.checkpoints)
            held = held if checkpoint in held else [*held, checkpoint]
            # Those of a run of ours are alike, and of a run that keeps none the one at hand alone is there.
            self._shared = _shared([checkpoint] if run.config else held, self._commits)
        return self._shared

    def known(self, run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
        """What was asked of the hub and read of all checkpoints, as JSON: workers need not ask again (`take_over`)."""
        with suppress(InputError):  # said by whoever loads it
            self.key_of(run, checkpoint)
        shared = None if self._shared is None else asdict(self._shared)
        for name in ("tokenizer", "config"):
            if shared and shared[name] is not None:
                shared[name] = str(shared[name])
        return {"commits": self._commits, "shared": shared}

    def take_over(self, known: Mapping[str, Any]) -> None:
        """Begins with what another process knew of the series, except for a cache that is not on this machine."""
        self._commits |= known["commits"]
        if (held := known["shared"]) is not None:
            places = {name: None if held[name] is None else Path(held[name]) for name in ("tokenizer", "config")}
            if all(place is None or place.exists() for place in places.values()):
                self._shared = Shared(held["n_ctx"], held["d_vocab"], **places)

    def load(self, run: Run, checkpoint: Checkpoint, prove: bool = True) -> tuple[HookedModel, Prompts]:
        """The model of a checkpoint, and the prompts of the series. `prove`: compare logits with transformers'.

        Raises InputError for one that cannot be measured, whatever is wrong with it; the next can be loaded all the
        same."""
        try:
            return self._load(run, checkpoint, prove)
        except InputError as error:
            raise InputError(self._naming(checkpoint, str(error))) from None
        except OSError as error:
            raise InputError(f"{error.filename or checkpoint.label}: {error.strerror or error}") from None

    def _load(self, run: Run, checkpoint: Checkpoint, prove: bool) -> tuple[HookedModel, Prompts]:
        revision = checkpoint.revision and self._commits.get(checkpoint.revision, checkpoint.revision)
        place = _place(checkpoint, self._commits)
        config = _plain_config(place)
        fetched = revision is not None and (self._ahead.fetched(checkpoint.path, revision) or not has_weights(place))
        before = self._model
        try:
            same = config is not None and config == self._config
            if before is not None and same and has_room_for_another(before):
                self._model = load_weights_into(before, checkpoint.path, revision, prove=prove)
            else:
                before = self._model = None  # two at a time may be more than the memory holds
                where = {"device": self.compute.device, "dtype": dtype_named(self.compute.dtype)}
                self._model = load_hooked(checkpoint.path, revision, **where, prove=prove)
                self._config = config
            if self._model is not before:  # also a bridge, which loads anew each time
                limit_memory(self._model, self.compute.max_bytes)
        finally:  # what cannot be measured takes room in the cache too
            if fetched:
                self._cache.fetched(place)
        if self._prompts is None:
            self._prompts = self._draw(run, checkpoint, self._model)
        self._fetch_next()
        return self._model, self._prompts

    def _fetch_next(self) -> None:
        """Of another config nothing is fetched ahead: it may be of a model that is refused before its weights are."""
        after, config = self.next, self._config
        if after is not None and after.revision is not None and config is not None:
            commit = self._commits.get(after.revision, after.revision)
            self._ahead.start(after.path, commit, lambda place: _plain_config(place) == config)
        elif after is not None and after.revision is None and device_named(self.compute.device).type != "cpu":
            self._ahead.start_reading(after)  # while a GPU computes, the processor has nothing else to do

    def _naming(self, checkpoint: Checkpoint, message: str) -> str:
        """The message by the revision's name, where it has the commit."""
        commit = self._commits.get(checkpoint.revision or "")
        if commit:
            message = message.replace(f"{checkpoint.path}@{commit}", checkpoint.label)
        named = checkpoint.revision is None or checkpoint.revision in message
        return message if named else f"{checkpoint.label}: {message}"

    def done_with(self, checkpoint: Checkpoint) -> None:
        """Its weights may be taken out of the cache, where that has a limit."""
        self._cache.trim()

    def _draw(self, run: Run, checkpoint: Checkpoint, model: HookedModel) -> Prompts:
        shared = self.shared(run, checkpoint)
        n_ctx = min(model.cfg.n_ctx, shared.n_ctx or model.cfg.n_ctx)
        d_vocab = min(model.cfg.d_vocab, shared.d_vocab or model.cfg.d_vocab)
        tokenizer = None if shared.tokenizer is None else _tokenizer(shared.tokenizer)
        config = None if shared.config is None else _config(shared.config)
        vocabulary = vocabulary_of(tokenizer, d_vocab, config)
        prompts = run_prompts(run, n_ctx, vocabulary, self._seeds, self._samples, self._loss_prompts)
        return replace(prompts, tokenizer=tokenizer)


@contextmanager
def measuring(run: Run) -> Iterator[None]:
    """Holds the run's results while the body writes them. Raises InputError at once if they cannot be written."""
    place = run.folder / "results"
    check_writable(place)
    with alone_in(place, lambda: _tell_waiting(place)):
        write_about(run)
        yield


@contextmanager
def measuring_together(run: Run, first: Callable[[], object], last: Callable[[], object]) -> Iterator[None]:
    """As `measuring`, but other drivers of workers may do the same meanwhile (`training.files.together_in`)."""
    place = run.folder / "results"
    check_writable(place)
    with together_in(place, lambda: _tell_waiting(place), first, last):
        write_about(run)
        yield


def _tell_waiting(place: Path) -> None:
    logger.info(f"{place}: another process writes results here; waiting for it")


def _those_there(repo: str, names: list[str], needed: str) -> dict[str, str]:
    try:
        return commits(repo, names)
    except InputError:  # one of them is not there, which is said of that one alone
        return commits(repo, [needed])


def _place(checkpoint: Checkpoint, known: dict[str, str]) -> Path:
    """The folder or GGUF file that holds a checkpoint's config; of the hub's, fetched now."""
    if checkpoint.revision is None:
        return Path(checkpoint.path)
    return fetch_small(checkpoint.path, known.get(checkpoint.revision, checkpoint.revision))


def _shared(checkpoints: Sequence[Checkpoint], known: dict[str, str]) -> Shared:
    contexts, vocabularies = set(), set()
    places: list[Path] = []
    for checkpoint in checkpoints:
        try:
            place = _place(checkpoint, known)
        except InputError:  # said when it is measured
            continue
        config = _plain_config(place)
        if config is None and place.is_dir():
            continue
        places.append(place)
        held = (config or {}).get("text_config") or config or {}
        contexts.add(next((held[n] for n in _CONTEXT if isinstance(held.get(n), int)), None))
        vocabularies.add(held["vocab_size"] if isinstance(held.get("vocab_size"), int) else None)
    given = next((Path(c.tokenizer) for c in checkpoints if c.tokenizer is not None), None)
    tokenizer = given or next((place for place in places if place.is_file() or has_tokenizer(place)), None)
    return Shared(_smallest(contexts), _smallest(vocabularies), tokenizer, places[0] if places else None)


def _smallest(sizes: set[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return min(known) if len(sizes) > 1 and known else None


def _plain_config(place: Path) -> dict[str, Any] | None:
    """The config of a folder without what changes nothing; None of a GGUF file, or if it cannot be read."""
    try:
        held = json.loads((place / "config.json").read_text("utf-8"))
        return {name: value for name, value in held.items() if name not in _IDLE}
    except (OSError, ValueError, RecursionError, AttributeError):
        return None


def _tokenizer(place: Path) -> Any | None:
    return read_tokenizer(place.parent, place.name) if place.is_file() else read_tokenizer(place)


def _config(place: Path) -> Any:
    return read_config(place.parent, place.name) if place.is_file() else read_config(place)
