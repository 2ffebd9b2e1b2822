"""Scores of every head and of the whole model at every checkpoint of a series, stored as one table a step."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl
from jaxtyping import Float
from torch import Tensor

from copyscope.analyses.tables.as_trained import as_trained, held_key
from copyscope.analyses.tables.run import (
    SCORES_VERSION,
    Run,
    Scores,
    is_stored,
    labelled,
    open_run,
    read_tables,
    result_key,
    selected,
    store_table,
)
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES, LOSS_PROMPTS, Prompts, run_prompts
from copyscope.interp.measures.behavior import (
    CopyingAccuracy,
    copying_accuracy,
    copying_loss,
    icl_score,
    induction_predictable,
    natural_losses,
    shuffled_copying_loss,
    split_loss,
    standard_error,
)
from copyscope.interp.measures.circuits import composition_table
from copyscope.interp.measures.heads import HEAD_PROMPTS, MEASURES, check_names, score_heads
from copyscope.interp.models.hooked import (
    load_hooked,
    load_weights_into,
    model_vocabulary,
    prove_conversion,
)
from copyscope.interp.models.lens import HookedModel
from copyscope.training.checkpoints.series import Checkpoint, Source, step_folder
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)

KINDS = ("heads", "model", "pairs", "positions", "copying")
"""Tables under results/; `pairs` are of earlier and later heads, `positions` of held-out text, `copying` of the copying
test by place in the suffix and by subsequence."""


def score(
    source: Source,
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
    again, so an interrupted call can simply be repeated.

    Raises InputError for a source, step or measure that is not there, and for checkpoints whose configs differ.
    """
    run, scorer = open_run(source), Scorer(measures, seeds=seeds, samples=samples)
    todo = [checkpoint for checkpoint in selected(run, steps) if not scorer.is_stored(run, checkpoint)]
    for done, checkpoint in enumerate(todo):
        scorer.score(run, checkpoint, prove=checkpoint in (todo[0], todo[-1]))
        if progress:
            progress("scoring checkpoints", done + 1, len(todo))
    return Scores(read_tables(run, "heads"), read_tables(run, "model"))


class Scorer:
    """Scores the checkpoints of one series one by one. All of them share one model in memory and the same prompts, so
    scoring each as it is written costs what scoring all of them afterwards would.

    Arguments as for `score`. Raises InputError for an unknown measure.
    """

    def __init__(
        self,
        measures: Iterable[str] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        samples: int = COPYING_SAMPLES,
    ) -> None:
        self._measures = check_names(MEASURES if measures is None else list(measures), MEASURES, "measure")
        self._seeds, self._samples = seeds, samples
        self._model: HookedModel | None = None
        self._prompts: Prompts | None = None

    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether the scores of this checkpoint are on disk already."""
        key, paths = self._key(run, checkpoint), self._paths(run, checkpoint)
        return all(is_stored(paths[kind], key) for kind in ("heads", "model"))

    def score(self, run: Run, checkpoint: Checkpoint, prove: bool) -> None:
        """Measures a checkpoint and stores its tables. `prove`: compare logits with those of transformers."""
        model, prompts = self._ready(run, checkpoint)
        if prove:
            error = prove_conversion(model, checkpoint.path, checkpoint.revision)
            logger.info(
                f"step {checkpoint.step:,}: logits checked against transformers (largest difference {error:.1e})"
            )
        with as_trained(model, run, checkpoint):
            heads = score_heads(model, self._measures, prompts.seeds, vocab=prompts.vocab, bos_id=prompts.bos_id)
            losses = None if prompts.natural is None else natural_losses(model, prompts.natural)
            accuracy = copying_accuracy(model, prompts.test)
            tables = {
                "heads": heads, "model": score_model(model, prompts, losses, accuracy),
                "pairs": score_pairs(model, heads), "copying": copying_table(accuracy),
            }  # fmt: skip
        if losses is not None and prompts.natural is not None:
            tables["positions"] = split_loss(losses, induction_predictable(prompts.natural)).by_position
        facts = {
            "version": SCORES_VERSION, "measures": self._measures, "seeds": [*prompts.seeds],
            "copying_samples": self._samples, "head_prompts": HEAD_PROMPTS, "loss_prompts": LOSS_PROMPTS,
            "windows": 0 if prompts.natural is None else len(prompts.natural), "vocabulary": prompts.vocabulary,
        }  # fmt: skip
        key, paths = self._key(run, checkpoint), self._paths(run, checkpoint)
        for kind in reversed([kind for kind in KINDS if kind in tables]):  # heads last: then all is there
            if not tables[kind].is_empty():
                store_table(labelled(tables[kind], run, checkpoint), paths[kind], key, facts)

    def _ready(self, run: Run, checkpoint: Checkpoint) -> tuple[HookedModel, Prompts]:
        """The model with this checkpoint's weights, and the prompts, which are the same for all checkpoints of one
        context and vocabulary."""
        if self._model is None:
            model = load_hooked(checkpoint.path, checkpoint.revision)
        else:
            model = load_weights_into(self._model, checkpoint.path, checkpoint.revision)
        fits = self._model is not None and (model.cfg.n_ctx, model.cfg.d_vocab) == (
            self._model.cfg.n_ctx,
            self._model.cfg.d_vocab,
        )
        if self._prompts is None or not fits:
            self._prompts = run_prompts(run, model.cfg.n_ctx, model_vocabulary(model), self._seeds, self._samples)
        self._model = model
        return self._model, self._prompts

    def _key(self, run: Run, checkpoint: Checkpoint) -> str:
        seeds = self._seeds or run.eval_seed
        return result_key(checkpoint, SCORES_VERSION, self._measures, seeds, self._samples, *held_key(run, checkpoint))

    @staticmethod
    def _paths(run: Run, checkpoint: Checkpoint) -> dict[str, Path]:
        results, name = run.folder / "results", f"{step_folder(checkpoint.step)}.parquet"
        return {kind: results / kind / name for kind in KINDS}


def score_model(
    model: HookedModel,
    prompts: Prompts,
    losses: Float[Tensor, "window pos_less_1"] | None = None,
    accuracy: CopyingAccuracy | None = None,
) -> pl.DataFrame:
    """What the whole model does: measure, value. Losses and ICL score in nats, accuracies in [0, 1].

    `_se` are standard errors, over contexts, prompts or windows. What is of natural text needs its `losses`
    (`natural_losses` of `prompts.natural`). `accuracy` on `prompts.test`, if at hand.
    """
    accuracy = copying_accuracy(model, prompts.test) if accuracy is None else accuracy
    loss = copying_loss(model, prompts.repeated)
    shuffled, shuffled_se = shuffled_copying_loss(model, prompts.repeated)
    values = {
        "copying_accuracy_exact": accuracy.exact,
        "copying_accuracy_exact_se": accuracy.exact_se,
        "copying_accuracy_token": accuracy.token,
        "copying_accuracy_token_se": accuracy.token_se,
        "copying_accuracy_greedy": accuracy.greedy,
        "copying_accuracy_greedy_se": accuracy.greedy_se,
        "copying_samples": float(len(prompts.test.index)),
        "copying_subsequences": float(prompts.test.n_subsequences),
        "copying_loss_first": loss.first_half,
        "copying_loss_second": loss.second_half,
        "copying_loss_shuffled": shuffled,
        "copying_loss_shuffled_se": shuffled_se,
        "copying_loss_difference": loss.difference,
        "copying_loss_difference_se": loss.difference_se,
    }
    if losses is not None and prompts.natural is not None:
        icl, split = (
            icl_score(model, prompts.natural, losses),
            split_loss(losses, induction_predictable(prompts.natural)),
        )
        windows = losses.double().mean(dim=1)
        values |= {
            "icl_score": icl.score,
            "icl_score_se": icl.score_se,
            "natural_loss": windows.mean().item(),
            "natural_loss_se": standard_error(windows),
            "natural_loss_predictable": split.predictable,
            "natural_loss_other": split.other,
            "natural_predictable_share": split.share,
        }
    return pl.DataFrame({"measure": list(values), "value": list(values.values())})


def copying_table(accuracy: CopyingAccuracy) -> pl.DataFrame:
    """The copying test in parts: by (`place`, the suffix token from 1, or `subsequence`, which is asked for; 0 is the
    furthest back), number, samples, measure, value."""
    parts = [("place", accuracy.by_place.rename({"place": "number"}))]
    parts.append(("subsequence", accuracy.by_index.rename({"index": "number"})))
    return pl.concat(
        part.rename({name: f"copying_accuracy_{name}" for name in part.columns[2:]})
        .with_columns(pl.col("number", "samples").cast(pl.Int64))
        .unpivot(index=["number", "samples"], variable_name="measure")
        .select(pl.lit(by).alias("by"), "number", "samples", "measure", "value")
        for by, part in parts
    )


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
