"""Scores of every head and of the whole model at every checkpoint of a series, stored as one table a step."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from analyses.run import (
    Progress,
    Prompts,
    Run,
    is_stored,
    labelled,
    open_run,
    read_tables,
    result_key,
    run_prompts,
    selected,
    store_table,
)
from interp.behavior import copying_accuracy, copying_loss, icl_score, natural_loss
from interp.heads import MEASURES, check_names, score_heads
from interp.models import HookedModel, load_hooked, load_weights_into, special_ids
from training.checkpoints import step_folder
from training.errors import InputError

VERSION = 1
"""Raised when a measure or its prompts change, so that stored results are computed anew."""


class Scores(NamedTuple):
    heads: pl.DataFrame
    """run, step, tokens, layer, head, measure, value."""
    model: pl.DataFrame
    """run, step, tokens, measure, value."""


def score(
    source: str | Path,
    measures: Iterable[str] | None = None,
    steps: Iterable[int] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores a series and returns both tables of all its steps.

    `measures`: of heads, by name; None for all. What is stored already is not computed again, and an interrupted
    call goes on where it was. Raises InputError for a source, step or measure that is not there.
    """
    run = open_run(source)
    wanted = check_names(MEASURES if measures is None else list(measures), MEASURES, "measure")
    todo = []
    for checkpoint in selected(run, steps):
        path = run.folder / "results" / "heads" / f"{step_folder(checkpoint.step)}.parquet"
        key = result_key(checkpoint, VERSION, wanted, run.eval_seed)
        if not (is_stored(path, key) and is_stored(_model_path(path), key)):
            todo.append((checkpoint, path, key))
    model: HookedModel | None = None
    prompts: Prompts | None = None
    for done, (checkpoint, path, key) in enumerate(todo):
        if model is None:
            model = load_hooked(checkpoint.path)  # proves equal logits
            prompts = run_prompts(run, model.cfg.n_ctx, model.cfg.d_vocab, special_ids(model))
        else:
            load_weights_into(model, checkpoint.path, prove=checkpoint is todo[-1][0])
        assert prompts is not None
        heads = score_heads(model, wanted, prompts.seed, vocab=prompts.vocab, bos_id=prompts.bos_id)
        store_table(labelled(score_model(model, prompts), run, checkpoint), _model_path(path), key)
        store_table(labelled(heads, run, checkpoint), path, key)
        if progress:
            progress("scoring checkpoints", done + 1, len(todo))
    return Scores(read_tables(run, "heads"), read_tables(run, "model"))


def score_model(model: HookedModel, prompts: Prompts) -> pl.DataFrame:
    """What the whole model does: measure, value. Losses and ICL score in nats, accuracies in [0, 1].

    `natural_loss` and `icl_score` only where there is held-out text.
    """
    accuracy = copying_accuracy(model, prompts.test)
    loss = copying_loss(model, prompts.repeated)
    values = {
        "copying_accuracy_exact": accuracy.exact,
        "copying_accuracy_token": accuracy.token,
        "copying_loss_first": loss.first_half,
        "copying_loss_second": loss.second_half,
        "copying_loss_difference": loss.difference,
    }
    if prompts.natural is not None:
        values["icl_score"] = icl_score(model, prompts.natural).score
        values["natural_loss"] = natural_loss(model, prompts.natural)
    return pl.DataFrame({"measure": list(values), "value": list(values.values())})


def _model_path(heads_path: Path) -> Path:
    return heads_path.parent.parent / "model" / heads_path.name


def tables(run: Run) -> Scores:
    """The stored scores of a run. Raises InputError if there are none."""
    heads = read_tables(run, "heads")
    if heads.is_empty():
        raise InputError(
            f"{run.folder}: the stored scores are of other steps; run `copyscope score {run.folder}` again"
        )
    return Scores(heads, read_tables(run, "model"))
