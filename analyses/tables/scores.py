"""Scores of every head and of the whole model at every checkpoint of a series, stored as one table a step."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from jaxtyping import Float
from torch import Tensor

from copyscope.analyses.tables.as_trained import as_trained
from copyscope.analyses.tables.corpus_rules import CorpusRules
from copyscope.analyses.tables.loading import SeriesModels
from copyscope.analyses.tables.measure_names import (
    CONCEPT_COPYING,
    FUNCTION_VECTOR,
    OF_MODEL,
    OF_PASSES,
    SUCCESSOR,
    TOKEN_COPYING,
    chosen_measures,
)
from copyscope.analyses.tables.measured import measure_series
from copyscope.analyses.tables.measurer import Measurer, SeriesError
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, Scores, gone, labelled, read_tables, selected
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES, LOSS_PROMPTS, Prompts
from copyscope.analyses.tables.stored import SCORES_VERSION, computed_with, is_stored, scored_otherwise, store_table
from copyscope.analyses.tables.tasks import task_source
from copyscope.analyses.tables.workers import workers_of
from copyscope.interp.ablation.entity_copying import (
    causal_copying,
    concept_copying_prompts,
    token_copying_prompts,
)
from copyscope.interp.ablation.function_vectors import function_vector, labels_prompts
from copyscope.interp.measures.behavior import (
    CopyingAccuracy,
    accuracy_of,
    copying_accuracy,
    copying_hits,
    copying_loss,
    icl_score,
    induction_predictable,
    natural_losses,
    shuffled_copying_loss,
    split_loss,
    standard_error,
)
from copyscope.interp.measures.circuits import PAIR_MEASURES, composition_table
from copyscope.interp.measures.heads import HEAD_PROMPTS, head_table, score_heads
from copyscope.interp.measures.logit_lens import copied_token_layer
from copyscope.interp.measures.precision import above_rounding
from copyscope.interp.measures.retrieval import RETRIEVAL, retrieval_score
from copyscope.interp.measures.successors import successor_lists, successor_score
from copyscope.interp.measures.text_rules import copy_rule_losses, unigram_shares
from copyscope.interp.models.devices import Compute
from copyscope.interp.models.hooked import logit_difference
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.tasks.registry import encoder
from copyscope.training.checkpoints.series import Checkpoint, Source, step_folder
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

logger = logging.getLogger(__name__)
T = TypeVar("T")

LABEL_PROMPTS = 128
"""For the function-vector score: half of them with examples, a quarter with shuffled ones."""
COPYING_PROMPTS = 64
"""Pairs of them, for the token- and the concept-copying score each."""
LENS_PROMPTS = 8
"""Prompts of the copying loss that the logit lens reads: it takes the logits after every layer."""
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
    cache_limit: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    max_bytes: int | None = None,
    engine: str | Engine | None = None,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Scores:
    """Scores a series and returns the tables of heads and model of all its steps.

    `measures`: of heads, by name; None for those that need no passes of their own, `all` for all. `seeds` of the
    random tokens; None for the run's own. `samples` of the copying test, for each seed: most
    of the time that a large model takes. `cache_limit`: gigabytes that weights fetched from the hub may take. `device`:
    auto (the GPU that is there), cpu, cuda, cuda:1 or mps; `dtype`: float32 or bfloat16; `max_bytes` of activations at
    once beside the model. What is stored already is not computed again, so an interrupted call can simply be repeated;
    tables that have more measures than are asked for stay as they are.

    `jobs` processes at a time on an `engine` (`local`, the default for several jobs, `ray` or `slurm`, with its own
    `options`) each score whichever checkpoint is free; without both, this process scores one after another. The tables
    are the same.

    A checkpoint that cannot be measured is named in a warning and noted (`run.read_failed`); the others are scored.
    Raises InputError for a source, step, measure or engine that is not there, for a place that cannot be written, and
    if no checkpoint can be measured; `Stopped` when interrupted while others work.
    """
    workers = workers_of(engine, jobs, options, device)
    measures = None if measures is None else list(measures)
    run, compute = open_run(source), Compute(device=device, dtype=dtype, max_bytes=max_bytes)
    scorer = Scorer(measures, seeds=seeds, samples=samples, cache_limit=cache_limit, compute=compute)
    run.series.log_left_out()
    measure_series(run, scorer, selected(run, steps), progress, workers)
    scorer.log_check()
    missing = sorted(gone(run, "heads"))
    if missing:
        some = ", ".join(f"{step:,}" for step in missing[:5]) + ("…" if len(missing) > 5 else "")
        logger.info(f"scored earlier, and their checkpoints are gone: steps {some}; their scores stay in the tables")
    return Scores(read_tables(run, "heads"), read_tables(run, "model"))


def _log_other_definitions(run: Run, checkpoints: Iterable[Checkpoint]) -> None:
    paths = [run.folder / "results" / "heads" / f"{step_folder(checkpoint.step)}.parquet" for checkpoint in checkpoints]
    count = 0
    for path in paths:
        try:
            count += path.is_file() and scored_otherwise(path)
        except (pl.exceptions.PolarsError, OSError):  # damaged: scored again for that
            continue
    if count:
        logger.info(
            f"{count} checkpoint{'s were' if count != 1 else ' was'} scored by another version's definitions; scoring "
            f"{'them' if count != 1 else 'it'} again"
        )


class Scorer(Measurer):
    """Scores the checkpoints of one series one by one. All of them share one model in memory and the same prompts, so
    scoring each as it is written costs what scoring all of them afterwards would.

    Arguments as for `score`. Raises InputError for an unknown measure.
    """

    command, doing = "score", "scoring checkpoints"

    def __init__(
        self,
        measures: Iterable[str] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        samples: int = COPYING_SAMPLES,
        cache_limit: float | None = None,
        compute: Compute | None = None,
    ) -> None:
        named = None if measures is None else list(measures)
        self._measures, self._named = chosen_measures(named), named is not None and "all" not in named
        self._seeds, self._samples = seeds, samples
        self._rules = CorpusRules()
        self.models = SeriesModels(seeds, samples, cache_limit=cache_limit, compute=compute)

    def begin(self, run: Run, chosen: Sequence[Checkpoint], progress: Progress | None) -> Progress | None:
        """Says how many are scored again because measures or prompts have changed since."""
        _log_other_definitions(run, chosen)
        return progress

    def is_stored(self, run: Run, checkpoint: Checkpoint) -> bool:
        """Whether the scores of this checkpoint are on disk already."""
        paths = [self._paths(run, checkpoint)[kind] for kind in ("heads", "model")]
        if not all(path.is_file() for path in paths):
            return False
        try:
            held = computed_with(paths[0]).get("measures", [])
        except (pl.exceptions.PolarsError, OSError):
            return False
        key = self._key(run, checkpoint, held if {*held} > {*self._measures} else self._measures)
        return all(is_stored(path, key) for path in paths)

    def measure(self, run: Run, checkpoint: Checkpoint, prove: bool = True) -> None:
        """Measures a checkpoint and stores its tables. `prove`: compare logits with those of transformers."""
        key, paths = self._key(run, checkpoint, self._measures), self._paths(run, checkpoint)
        model, prompts = self.models.load(run, checkpoint, prove)
        difference = logit_difference(model)
        if difference is not None:
            self.checked.append(difference)
        with as_trained(model, run, checkpoint):
            heads, accuracy, more = self._of_heads(model, prompts)
            more |= self._on_request(run, model, prompts)
            losses = None if prompts.natural is None else natural_losses(model, prompts.natural)
            tables = {
                "heads": heads,
                "model": pl.concat([score_model(model, prompts, losses, accuracy), _of_model(more)]),
                "pairs": score_pairs(model, heads),
                "copying": copying_table(accuracy),
            }
        if losses is not None and prompts.natural is not None:
            tables["positions"] = split_loss(losses, induction_predictable(prompts.natural)).by_position
        facts = {
            "version": SCORES_VERSION,
            "measures": self._measures,
            "seeds": [*prompts.seeds],
            "copying_samples": self._samples,
            "head_prompts": HEAD_PROMPTS,
            "loss_prompts": LOSS_PROMPTS,
            "windows": 0 if prompts.natural is None else len(prompts.natural),
            "vocabulary": prompts.vocabulary,
            **self.models.compute.facts,
        }
        for kind in reversed([kind for kind in KINDS if kind in tables]):  # heads last: then all is there
            if not tables[kind].is_empty():
                store_table(labelled(tables[kind], run, checkpoint), paths[kind], key, facts)
        self.models.done_with(checkpoint)

    def log_check(self) -> None:
        """Says how far logits were from those of transformers, at how many checkpoints."""
        if self.checked:
            many = f" at {len(self.checked)} checkpoints" * (len(self.checked) > 1)
            logger.info(f"logits checked against transformers{many} (largest difference {max(self.checked):.1e})")
            self.checked.clear()

    def _of_heads(self, model: HookedModel, prompts: Prompts) -> tuple[pl.DataFrame, CopyingAccuracy, dict[str, float]]:
        """The table of heads; copying accuracy, whose passes some measures of heads are taken from; and what measures
        of heads say of the model."""
        layers, dtype, more = range(model.cfg.n_layers), model.cfg.dtype, dict[str, float]()
        others = [n for n in self._measures if n not in (*RETRIEVAL, *OF_PASSES, *OF_MODEL)]
        tables = []
        if others:
            tables.append(score_heads(model, others, prompts.seeds, vocab=prompts.vocab, bos_id=prompts.bos_id))
        if wanted := self._wanted(RETRIEVAL):
            hits, retrieval = retrieval_score(model, prompts.test, prompts.seed)
            tables.append(head_table(above_rounding(retrieval.named("retrieval_score"), dtype), wanted, layers))
        else:
            hits = copying_hits(model, prompts.test)
        if wanted := self._wanted(SUCCESSOR):
            lists = self._if_there("successor_score", lambda: _lists(prompts))
            if lists is not None:
                scores = successor_score(model, lists, prompts.seed).named("successor_score")
                tables.append(head_table(above_rounding(scores, dtype), wanted, layers))
        if wanted := self._wanted(FUNCTION_VECTOR):
            labels = self._if_there("function_vector", lambda: labels_prompts(task_source(prompts, LABEL_PROMPTS)))
            if labels is not None:
                vector = function_vector(model, *labels)
                scores = vector.exact.named("function_vector") | {"function_vector_estimate": vector.estimate}
                tables.append(head_table(above_rounding(scores, dtype), wanted, layers))
                more["function_vector_correlation"] = vector.correlation
        for names, draw in ((TOKEN_COPYING, token_copying_prompts), (CONCEPT_COPYING, concept_copying_prompts)):
            if wanted := self._wanted(names):
                pairs = self._if_there(names[0], partial(draw, task_source(prompts, COPYING_PROMPTS)))
                if pairs is not None:
                    scores = causal_copying(model, pairs).named(names[0])
                    tables.append(head_table(above_rounding(scores, dtype), wanted, layers))
        return pl.concat(tables), accuracy_of(hits, prompts.test), more

    def _wanted(self, kind: Sequence[str]) -> list[str]:
        return [name for name in self._measures if name in kind]

    def _on_request(self, run: Run, model: HookedModel, prompts: Prompts) -> dict[str, float]:
        """Measures of the whole model that take passes of their own."""
        values: dict[str, float] = {}
        if "copied_token_layer" in self._measures:
            found = copied_token_layer(model, prompts.repeated[:LENS_PROMPTS])
            if found.share:  # else no copied token leads anywhere
                values |= {"copied_token_layer": found.layer, "copied_token_layer_se": found.se}
        of_text = [name for name in OF_MODEL if name.startswith("natural_kl") and name in self._measures]
        divergences = (
            self._if_there(of_text[0], lambda: self._rules.divergences(run, model, prompts)) if of_text else None
        )
        return values | {name: v for name, v in (divergences or {}).items() if name.removesuffix("_se") in of_text}

    def _if_there(self, name: str, make: Callable[[], T]) -> T | None:
        """What `make` gives; where it raises InputError None, and SeriesError if measures were asked for by name."""
        try:
            return make()
        except InputError as error:
            if self._named:
                raise SeriesError(f"measure {name}: {error}; leave it out") from None
            logger.info(f"{name} is left out: {error}")
            return None

    def _key(self, run: Run, checkpoint: Checkpoint, measures: Sequence[str]) -> str:
        parts = (SCORES_VERSION, measures, self._seeds or run.eval_seed, self._samples)
        return self.models.result_key(run, checkpoint, *parts)

    @staticmethod
    def _paths(run: Run, checkpoint: Checkpoint) -> dict[str, Path]:
        results, name = run.folder / "results", f"{step_folder(checkpoint.step)}.parquet"
        return {kind: results / kind / name for kind in KINDS}


def _lists(prompts: Prompts) -> list[Tensor]:
    """The lists of the successor score; InputError where the tokenizer has none."""
    encode = encoder(prompts.tokenizer)
    if encode is None:
        raise InputError("needs a tokenizer, and this series has none")
    return successor_lists(encode)


def _of_model(values: Mapping[str, float]) -> pl.DataFrame:
    """Measures of the model as a table: measure, value."""
    schema = {"measure": pl.String, "value": pl.Float64}
    return pl.DataFrame({"measure": list(values), "value": list(values.values())}, schema=schema)


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
        "copying_mean_rank": accuracy.mean_rank,
        "copying_mean_rank_se": accuracy.mean_rank_se,
        "copying_samples": float(len(prompts.test.index)),
        "copying_greedy_samples": float(accuracy.greedy_samples),
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
            **_copy_rule(prompts),
            "natural_loss_predictable": split.predictable,
            "natural_loss_other": split.other,
            "natural_predictable_share": split.share,
        }
    return _of_model(values)


def _copy_rule(prompts: Prompts) -> dict[str, float]:
    """The baseline without a model, on the same windows."""
    if prompts.natural is None or prompts.counts is None:
        return {}
    losses = copy_rule_losses(prompts.natural.long(), unigram_shares(prompts.counts)).mean(dim=1)
    return {"natural_loss_copy_rule": losses.mean().item(), "natural_loss_copy_rule_se": standard_error(losses)}


def copying_table(accuracy: CopyingAccuracy) -> pl.DataFrame:
    """The copying test in parts: by (`place`, the suffix token from 1, or `subsequence`, which is asked for; 0 is the
    furthest back), number, samples, measure, value."""
    parts = {
        "place": accuracy.by_place.rename({"place": "number"}),
        "subsequence": accuracy.by_index.rename({"index": "number"}),
    }
    counts = ["number", "samples", "greedy_samples"]
    samples = pl.when(pl.col("measure") == "copying_accuracy_greedy").then("greedy_samples").otherwise("samples")
    return pl.concat(
        part.rename({name: f"copying_accuracy_{name}" for name in part.columns if name not in counts})
        .with_columns(pl.col(counts).cast(pl.Int64))
        .unpivot(index=counts, variable_name="measure")
        .select(pl.lit(by).alias("by"), "number", samples.alias("samples"), "measure", "value")
        for by, part in parts.items()
    )


def path_score(previous_token: str, k_composition: str, induction_attention: str) -> pl.Expr:
    """Previous-token score of the earlier head × K-composition × induction attention of the later, of columns with
    these names (definition 8). In [0, 1]; a product of three scores, not a causal effect."""
    return pl.col(previous_token) * pl.col(k_composition) * pl.col(induction_attention)


def score_pairs(model: HookedModel, heads: pl.DataFrame) -> pl.DataFrame:
    """Pairs of an earlier and a later head (definition 8): source_layer, source_head, layer, head, measure, value.

    `k_composition`, `qk_ov_diagonal` and `qk_ov_subspace` of all; `path_score` if the table of heads has the two
    attention scores it is made of.
    """
    of_pairs = {name: composition_table(model, measure=name) for name in PAIR_MEASURES}
    tables = [table.with_columns(measure=pl.lit(name)) for name, table in of_pairs.items()]
    pairs = of_pairs["k_composition"]
    scores = {
        measure: heads.filter(pl.col("measure") == measure).select("layer", "head", pl.col("value").alias(measure))
        for measure in ("previous_token", "induction_attention")
    }
    if not any(table.is_empty() for table in scores.values()):
        source = scores["previous_token"].rename({"layer": "source_layer", "head": "source_head"})
        whole = pairs.join(source, on=["source_layer", "source_head"]).join(
            scores["induction_attention"], on=["layer", "head"]
        )
        tables.append(
            whole.select(
                *pairs.columns[:-1],
                value=path_score("previous_token", "value", "induction_attention"),
                measure=pl.lit("path_score"),
            )
        )
    return pl.concat(tables).select("source_layer", "source_head", "layer", "head", "measure", "value")
