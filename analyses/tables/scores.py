"""Scores of every head and of the whole model at every checkpoint of a series, stored as one table a step."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from copyscope.analyses.tables.as_trained import as_trained, held_key
from copyscope.analyses.tables.run import (
    SCORES_VERSION,
    Scores,
    is_stored,
    labelled,
    open_run,
    read_tables,
    result_key,
    selected,
    store_table,
)
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES, Prompts, run_prompts
from copyscope.interp.measures.behavior import (
    copying_accuracy,
    copying_loss,
    icl_of,
    induction_predictable,
    natural_losses,
    split_loss,
)
from copyscope.interp.measures.circuits import composition_table
from copyscope.interp.measures.heads import MEASURES, check_names, score_heads
from copyscope.interp.models.hooked import HookedModel, load_hooked, load_weights_into, prove_conversion, special_ids
from copyscope.training.checkpoints.series import step_folder
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)

KINDS = ("heads", "model", "pairs", "positions")
"""Tables under results/; `pairs` are of earlier and later heads, `positions` of held-out text."""


def score(
    source: str | Path,
    measures: Iterable[str] | None = None,
    steps: Iterable[int] | None = None,
    progress: Progress | None = None,
    *,
    seeds: Sequence[int] | None = None,
    samples: int = COPYING_SAMPLES,
) -> Scores:
    """Scores a series and returns the tables of heads and model of all its steps.

    `measures`: of heads, by name; None for all. `seeds` of the random tokens; None for the run's own. `samples` of the
    copying test, for each seed: most of the time that a large model takes. What is stored already is not computed
    again, and an interrupted call goes on where it was.

    Raises InputError for a source, step or measure that is not there, and for checkpoints whose configs differ.
    """
    run = open_run(source)
    wanted = check_names(MEASURES if measures is None else list(measures), MEASURES, "measure")
    todo = []
    for checkpoint in selected(run, steps):
        paths = {kind: run.folder / "results" / kind / f"{step_folder(checkpoint.step)}.parquet" for kind in KINDS}
        key = result_key(
            checkpoint, SCORES_VERSION, wanted, seeds or run.eval_seed, samples, *held_key(run, checkpoint)
        )
        if not all(is_stored(paths[kind], key) for kind in ("heads", "model")):
            todo.append((checkpoint, paths, key))
    model: HookedTransformer | None = None
    prompts: Prompts | None = None
    for done, (checkpoint, paths, key) in enumerate(todo):
        if model is None:
            model = load_hooked(checkpoint.path, checkpoint.revision, prove=False)
            prompts = run_prompts(run, model.cfg.n_ctx, model.cfg.d_vocab, special_ids(model), seeds, samples)
        else:
            load_weights_into(model, checkpoint.path, checkpoint.revision)
        if checkpoint in (todo[0][0], todo[-1][0]):
            error = prove_conversion(model, checkpoint.path, checkpoint.revision)
            logger.info(f"step {checkpoint.step}: logits equal those of transformers to {error:.1e}")
        assert prompts is not None
        with as_trained(model, run, checkpoint):
            heads = score_heads(model, wanted, prompts.seeds, vocab=prompts.vocab, bos_id=prompts.bos_id)
            losses = None if prompts.natural is None else natural_losses(model, prompts.natural)
            found = {"heads": heads, "model": score_model(model, prompts, losses), "pairs": score_pairs(model, heads)}
        if losses is not None and prompts.natural is not None:
            found["positions"] = split_loss(losses, induction_predictable(prompts.natural)).by_position
        facts = {"version": SCORES_VERSION, "measures": wanted, "seeds": [*prompts.seeds], "copying_samples": samples}
        for kind in reversed([kind for kind in KINDS if kind in found]):  # heads last: then all is there
            if not found[kind].is_empty():
                store_table(labelled(found[kind], run, checkpoint), paths[kind], key, facts)
        if progress:
            progress("scoring checkpoints", done + 1, len(todo))
    return Scores(read_tables(run, "heads"), read_tables(run, "model"))


def score_model(
    model: HookedModel, prompts: Prompts, losses: Float[Tensor, "window pos_less_1"] | None = None
) -> pl.DataFrame:
    """What the whole model does: measure, value. Losses and ICL score in nats, accuracies in [0, 1].

    `_se` are standard errors, over contexts, prompts or windows. What is of natural text needs its `losses`
    (`natural_losses` of `prompts.natural`).
    """
    accuracy = copying_accuracy(model, prompts.test)
    loss = copying_loss(model, prompts.repeated)
    values = {
        "copying_accuracy_exact": accuracy.exact,
        "copying_accuracy_exact_se": accuracy.exact_se,
        "copying_accuracy_token": accuracy.token,
        "copying_accuracy_token_se": accuracy.token_se,
        "copying_samples": float(len(prompts.test.index)),
        "copying_subsequences": float(prompts.test.n_subsequences),
        "copying_loss_first": loss.first_half,
        "copying_loss_second": loss.second_half,
        "copying_loss_difference": loss.difference,
        "copying_loss_difference_se": loss.difference_se,
    }
    if losses is not None and prompts.natural is not None:
        icl, split = icl_of(losses), split_loss(losses, induction_predictable(prompts.natural))
        windows = losses.double().mean(dim=1)
        values |= {
            "icl_score": icl.score,
            "icl_score_se": icl.score_se,
            "natural_loss": windows.mean().item(),
            "natural_loss_se": windows.std().item() / len(windows) ** 0.5,
            "natural_loss_predictable": split.predictable,
            "natural_loss_other": split.other,
            "natural_predictable_share": split.share,
        }
    return pl.DataFrame({"measure": list(values), "value": list(values.values())})


def score_pairs(model: HookedModel, heads: pl.DataFrame) -> pl.DataFrame:
    """Pairs of an earlier and a later head (definition 8): source_layer, source_head, layer, head, measure, value.

    `k_composition` of all; `path_score` if the table of heads has the two attention scores it is made of.
    """
    pairs = composition_table(model)
    tables = [pairs.with_columns(measure=pl.lit("k_composition"))]
    scores = {
        measure: heads.filter(pl.col("measure") == measure).select("layer", "head", pl.col("value").alias(measure))
        for measure in ("previous_token", "induction_attention")
    }
    if not any(table.is_empty() for table in scores.values()):
        source = scores["previous_token"].rename({"layer": "source_layer", "head": "source_head"})
        whole = pairs.join(source, on=["source_layer", "source_head"]).join(
            scores["induction_attention"], on=["layer", "head"]
        )
        value = pl.col("previous_token") * pl.col("value") * pl.col("induction_attention")
        tables.append(whole.select(*pairs.columns[:-1], value=value, measure=pl.lit("path_score")))
    return pl.concat(tables).select("source_layer", "source_head", "layer", "head", "measure", "value")
