"""Ablations at chosen checkpoints of a series, stored as one table a step and kind, with all that a number needs to be
computed again in the file's metadata."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from copyscope.analyses.tables.ablation_kinds import (
    KINDS,
    WINDOWS,
    Ablation,
    clean_values,
    default_methods,
    usable_methods,
)
from copyscope.analyses.tables.as_trained import as_trained, held
from copyscope.analyses.tables.loading import SeriesModels
from copyscope.analyses.tables.measured import measure_series
from copyscope.analyses.tables.measurer import Measurer
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, labelled, read_tables, selected_or_last
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES, LOSS_PROMPTS, Prompts
from copyscope.analyses.tables.stored import computed_with, is_stored, store_table
from copyscope.analyses.tables.workers import workers_of
from copyscope.interp.ablation.parts import Part, check_parts
from copyscope.interp.head_names import parse_heads
from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.devices import Compute
from copyscope.training.checkpoints.series import Checkpoint, Source, step_folder
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

CHOOSABLE = ("heads", "pairs")
"""Kinds that can be limited to some heads."""
VERSION = 3
"""Raised when an ablation or its prompts change, so that stored results are computed again."""


def ablate(
    source: Source,
    steps: Iterable[int] | None = None,
    methods: Iterable[str] | None = None,
    progress: Progress | None = None,
    *,
    what: str = "heads",
    samples: int = COPYING_SAMPLES,
    loss_prompts: int = LOSS_PROMPTS,
    heads: str | Sequence[Part] | None = None,
    max_bytes: int | None = None,
    cache_limit: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    engine: str | Engine | None = None,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Removes parts of the model and returns the effects, with columns run, step and tokens in front.

    `what` is one of `heads` (every head in turn), `layers`, `pairs`, `sets` (the smallest that copying needs), `paths`
    (previous-token heads into induction heads' keys) and `attribution` (the quick estimate beside the exact effect);
    for the columns see the function of that name in `analyses.tables.ablation_kinds`.

    Args:
        steps: None for the last checkpoint.
        methods: as in `interp.ablation.ablate_heads`; None for `zero`, or for `mean` where pairs, sets or paths are
            asked for.
        samples: of the copying test.
        loss_prompts: of the copying loss.
        heads: text such as `L3H1,L2`, or pairs: (layer, head), (layer, "attention") for all of a layer. Only these
            are removed, in turn or in pairs. None for all.
        max_bytes: memory for activations beside the model; None for what the device gives.
        device: as for `score`.
        dtype: as for `score`.
        cache_limit: gigabytes that weights fetched from the hub may take; None for no limit.
        engine: where checkpoints are ablated, as for `score`.
        jobs: how many at a time.
        options: of the engine.

    Tables are in results/ablations (heads) and results/ablations/<what>; what is stored already under the same
    conditions is not computed again. A checkpoint that cannot be measured is named in a warning and noted, as by
    `score`. Raises InputError for a source, step, method or kind that is not there, a place that cannot be written, and
    if no checkpoint can be measured.
    """
    workers, run = workers_of(engine, jobs, options, device), open_run(source)
    methods = None if methods is None else list(methods)
    ablater = Ablater(
        what,
        methods,
        samples=samples,
        loss_prompts=loss_prompts,
        heads=heads,
        cache_limit=cache_limit,
        compute=Compute(device=device, dtype=dtype, max_bytes=max_bytes),
    )
    chosen = selected_or_last(run, steps)
    if what == "paths" and any(held(run, checkpoint) for checkpoint in chosen):
        raise InputError(f"{run.folder}: its heads are held (intervention.heads); leave paths out of --what")
    measure_series(run, ablater, chosen, progress, workers)
    return read(run, what)


class Ablater(Measurer):
    """Ablates the checkpoints of one series, one by one, by one kind. Arguments as for `ablate`.

    Raises InputError for a kind, a method, heads or a number that cannot be.
    """

    command = "ablate"

    def __init__(
        self,
        what: str = "heads",
        methods: Iterable[str] | None = None,
        *,
        samples: int = COPYING_SAMPLES,
        loss_prompts: int = LOSS_PROMPTS,
        heads: str | Sequence[Part | list[Any]] | None = None,
        cache_limit: float | None = None,
        compute: Compute | None = None,
    ) -> None:
        check_names([what], list(KINDS), "kind of ablation")
        wanted = default_methods(what) if methods is None else list(methods)
        self._methods = check_names(wanted, usable_methods(what), "ablation method")
        if heads is not None and what not in CHOOSABLE:
            raise InputError(f"heads: only {' and '.join(CHOOSABLE)} can be of chosen heads, not {what}")
        if heads is not None and not isinstance(heads, str):
            heads = [tuple(part) for part in heads]  # JSON, which a worker is told them in, has lists only
        self._heads = None if heads is None else parse_heads(heads)
        for name, count in (("samples", samples), ("loss_prompts", loss_prompts)):
            if count < 1:
                raise InputError(f"{name}={count}: at least 1 is needed")
        self.doing, self._what = f"ablating {what}", what
        self._samples, self._loss_prompts = samples, loss_prompts
        self.models = SeriesModels(None, samples, loss_prompts, cache_limit, compute)
        self._chosen: Sequence[Checkpoint] = ()
        self._progress: Progress | None = None

    def begin(self, run: Run, chosen: Sequence[Checkpoint], progress: Progress | None) -> Progress | None:
        """Progress is within each checkpoint, which takes long, and says which of how many it is."""
        self._chosen, self._progress = chosen, progress
        return None

    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether the table of this kind is on disk already, computed under the same conditions."""
        path = table_path(run, self._what, checkpoint.step)
        return path.is_file() and is_stored(path, self._key(run, checkpoint))

    def measure(self, run: Run, checkpoint: Checkpoint) -> None:
        """Ablates a checkpoint and stores the table."""
        key, path = self._key(run, checkpoint), table_path(run, self._what, checkpoint.step)
        model, prompts = self.models.load(run, checkpoint)
        ablation = Ablation(
            model=model,
            prompts=prompts,
            methods=self._methods,
            progress=self._progress_of(checkpoint),
            heads=None if self._heads is None else check_parts(model, self._heads).pairs,
        )
        with as_trained(model, run, checkpoint):
            table = labelled(KINDS[self._what](ablation), run, checkpoint)
            facts = _metadata(run, ablation, self._what) | self.models.compute.facts
            store_table(table, path, key, facts)
        self.models.done_with(checkpoint)

    def _key(self, run: Run, checkpoint: Checkpoint) -> str:
        fewer = () if self._loss_prompts == LOSS_PROMPTS else (self._loss_prompts,)
        named = () if self._heads is None else (sorted(map(str, self._heads)),)
        parts = (VERSION, self._what, self._methods, run.eval_seed, self._samples, *fewer, *named)
        return self.models.result_key(run, checkpoint, *parts)

    def _progress_of(self, checkpoint: Checkpoint) -> Progress | None:
        progress, count = self._progress, len(self._chosen)
        if progress is None:
            return None
        words = self.doing + (f" ({self._chosen.index(checkpoint) + 1} of {count})" if count > 1 else "")

        def named(_: str, done: int, total: int, note: str = "") -> None:
            progress(f"{words}, {note}" if note else words, done, total)

        return named


def kinds(names: Iterable[str]) -> list[str]:
    """Kinds by name, or `all`, in the order they are computed in. Raises InputError for an unknown one."""
    chosen = check_names(list(names), [*KINDS, "all"], "kind of ablation")
    return [kind for kind in KINDS if kind in chosen or "all" in chosen]


def table_path(run: Run, what: str, step: int) -> Path:
    """Where the table of a kind and step lies."""
    return _folder(run, what) / f"{step_folder(step)}.parquet"


def read(run: Run, what: str = "heads") -> pl.DataFrame:
    """All stored steps of a kind. Raises InputError if there is none or one is damaged."""
    return read_tables(run, "ablations" if what == "heads" else f"ablations/{what}")


def metadata(run: Run, what: str, step: int) -> dict[str, Any]:
    """What a stored table was computed with: seed, samples, prompts, methods, clean values, versions."""
    return computed_with(table_path(run if table_path(run, what, step).is_file() else run.of_step(step), what, step))


def _folder(run: Run, what: str) -> Path:
    folder = run.folder / "results" / "ablations"
    return folder if what == "heads" else folder / what


def _metadata(run: Run, ablation: Ablation, what: str) -> dict[str, Any]:
    p: Prompts = ablation.prompts
    return {
        "what": what,
        "methods": ablation.methods,
        "seed": p.seed,
        "eval_seed": run.eval_seed,
        "vocabulary": p.vocabulary,
        "copying_samples": len(p.test.tokens),
        "contexts": int(p.test.context.max()) + 1,
        "subsequences": p.test.n_subsequences,
        "repeated_prompts": len(p.repeated),
        "windows": 0 if p.natural is None else min(WINDOWS, len(p.natural)),
        "clean": clean_values(ablation),
        "version": VERSION,
    }
