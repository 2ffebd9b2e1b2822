"""Ablation of every head at chosen checkpoints of a series, stored as one table a step."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from analyses.run import (
    Progress,
    is_stored,
    labelled,
    open_run,
    read_tables,
    result_key,
    run_prompts,
    selected,
    store_table,
)
from interp.ablation import METHODS, sweep_heads
from interp.heads import check_names
from interp.models import load_hooked, special_ids
from training.checkpoints import step_folder

VERSION = 2
"""Raised when an ablation or its prompts change, so that stored results are computed anew."""
WINDOWS = 16
"""Held-out sequences behind the effect on natural text: fewer than for scores, as each head runs them again."""


def ablate(
    source: str | Path,
    steps: Iterable[int] | None = None,
    methods: Iterable[str] = ("zero",),
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Removes every head in turn and returns the effects: run, step, tokens, layer, head, method, measure, value.

    `steps`: None for the last checkpoint. `value` is ablated minus clean. What is stored already is not computed
    again. Raises InputError for a source, step or method that is not there.
    """
    run = open_run(source)
    wanted = check_names(list(methods), METHODS, "ablation method")
    steps = [c.step for c in run.series.checkpoints[-1:]] or [-1] if steps is None else steps
    for checkpoint in selected(run, steps):
        path = run.folder / "results" / "ablations" / f"{step_folder(checkpoint.step)}.parquet"
        key = result_key(checkpoint, VERSION, wanted, run.eval_seed)
        if is_stored(path, key):
            continue
        model = load_hooked(checkpoint.path, prove=False)
        prompts = run_prompts(run, model.cfg.n_ctx, model.cfg.d_vocab, special_ids(model))
        table = sweep_heads(
            model,
            prompts.test,
            wanted,
            windows=None if prompts.natural is None else prompts.natural[:WINDOWS],
            repeated=prompts.repeated,
            seed=prompts.seed,
            progress=(lambda done, total: progress("ablating heads", done, total)) if progress else None,
        )
        store_table(labelled(table, run, checkpoint), path, key)
    return read_tables(run, "ablations")
