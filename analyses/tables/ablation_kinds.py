"""The questions that ablation can answer about one model, each answered by one table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import polars as pl
from jaxtyping import Int
from torch import Tensor

from copyscope.analyses.tables.run_prompts import Prompts
from copyscope.analyses.tables.scores import path_score
from copyscope.interp.ablation.attribution import agreement, attribute_heads
from copyscope.interp.ablation.effects import runs_of
from copyscope.interp.ablation.hooks import METHODS, Head, sweep_heads, sweep_layers, sweep_pairs
from copyscope.interp.ablation.parts import all_heads
from copyscope.interp.ablation.path_patching import METHODS as PATH_METHODS
from copyscope.interp.ablation.path_patching import patch_paths, paths_beside_composition
from copyscope.interp.ablation.questions import questions
from copyscope.interp.ablation.smallest_sets import SmallestSet, sets_table, smallest_set
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.lens import HookedModel
from copyscope.training.progress import Progress

WINDOWS = 16
"""Held-out sequences behind the effect on natural text: fewer than for scores, as each head runs them again."""
PAIRED = 16
"""Heads of which all pairs are removed; in larger models the strongest by effect and by induction attention."""
ENDS = 4
"""Previous-token heads and induction heads between which paths are patched, the highest scores of each."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What to remove from which model, on which prompts: what every kind of table needs."""

    model: HookedModel
    prompts: Prompts
    methods: list[str]
    progress: Progress | None = None
    """Called with (done, of how many), and where a kind has several parts, with which one."""
    heads: list[Head] | None = None
    """The heads that `heads` and `pairs` remove; None for all, or those that `pairs` chooses."""

    @property
    def natural(self) -> Int[Tensor, "window window_pos"] | None:
        return None if self.prompts.natural is None else self.prompts.natural[:WINDOWS]

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of all sweeps."""
        return {"repeated": self.prompts.repeated, "seed": self.prompts.seed}


def heads(ablation: Ablation) -> pl.DataFrame:
    """Every head removed alone: layer, head, method, measure, value."""
    return sweep_heads(
        ablation.model,
        ablation.prompts.test,
        ablation.methods,
        windows=ablation.natural,
        progress=ablation.progress,
        heads=ablation.heads,
        **ablation.shared,
    )


def layers(ablation: Ablation) -> pl.DataFrame:
    """Every attention layer and every MLP removed: layer, part, method, measure, value."""
    return sweep_layers(
        ablation.model,
        ablation.prompts.test,
        ablation.methods,
        windows=ablation.natural,
        progress=ablation.progress,
        **ablation.shared,
    )


def pairs(ablation: Ablation) -> pl.DataFrame:
    """Pairs of heads removed together, with synergy (see `sweep_pairs`)."""
    chosen = ablation.heads or all_heads(ablation.model)
    if ablation.heads is None and len(chosen) > PAIRED:
        # Backup heads do little when removed alone, so the effect alone would miss them.
        estimate = attribute_heads(ablation.model, ablation.prompts.repeated, seed=ablation.prompts.seed)
        by_effect = _highest(estimate.with_columns(pl.col("value").abs()), "copying_loss", PAIRED // 2)
        by_score = _highest(_scores(ablation), "induction_attention", PAIRED)
        chosen = list(dict.fromkeys([*by_effect, *by_score]))[:PAIRED]
    model, test = ablation.model, ablation.prompts.test
    return pl.concat([sweep_pairs(model, test, chosen, method, **ablation.shared) for method in ablation.methods])


def sets(ablation: Ablation) -> pl.DataFrame:
    """The smallest sets of heads and of attention layers (see `smallest_set`), a row a member."""
    tables: list[pl.DataFrame] = []
    for method in ablation.methods:
        results: list[SmallestSet] = [
            smallest_set(
                ablation.model,
                ablation.prompts.test,
                search,
                unit,
                method=method,
                seed=ablation.prompts.seed,
                progress=ablation.progress and partial(ablation.progress, note=f"{unit} to {search}"),
            )
            for unit in ("heads", "layers")
            for search in ("keep", "remove")
        ]
        tables.append(sets_table(results, method))
    return pl.concat(tables)


def paths(ablation: Ablation) -> pl.DataFrame:
    """Paths from previous-token heads into the keys of induction heads, next to K-composition; strongest first.

    Columns of `paths_beside_composition`, the source's previous-token score and `path_score`.
    """
    scores = _scores(ablation)
    n_layers = ablation.model.cfg.n_layers
    readers = _highest(scores.filter(pl.col("layer") > 0), "induction_attention", ENDS)
    sources = _highest(
        scores.filter(pl.col("layer") < max((layer for layer, _ in readers), default=n_layers)), "previous_token", ENDS
    )
    tables = []
    for method in ablation.methods:
        if method in PATH_METHODS:
            patched = patch_paths(
                ablation.model,
                sources,
                readers,
                ablation.prompts.repeated,
                method=method,
                seed=ablation.prompts.seed,
            )
            tables.append(paths_beside_composition(ablation.model, patched))
    previous = scores.filter(pl.col("measure") == "previous_token").select(
        source_layer=pl.col("layer"), source_head=pl.col("head"), previous_token=pl.col("value")
    )
    table = pl.concat(tables).join(previous, on=["source_layer", "source_head"], how="left")
    return table.with_columns(path_score=path_score("previous_token", "k_composition", "induction_attention_clean"))


def attribution(ablation: Ablation) -> pl.DataFrame:
    """The estimate of every head's effect on the copying loss beside the exact one: layer, head, method, measure,
    value, exact, pearson, spearman (correlations over all heads; see `agreement`)."""
    estimate = attribute_heads(ablation.model, ablation.prompts.repeated, ablation.methods, seed=ablation.prompts.seed)
    exact = heads(replace(ablation, prompts=replace(ablation.prompts, natural=None)))
    keys = ["layer", "head", "method", "measure"]
    both = estimate.join(exact.select(*keys, exact=pl.col("value")), on=keys, how="left", maintain_order="left")
    return both.join(agreement(estimate, exact).drop("heads"), on="method", how="left", maintain_order="left")


KINDS: dict[str, Callable[[Ablation], pl.DataFrame]] = {
    "heads": heads,
    "layers": layers,
    "pairs": pairs,
    "sets": sets,
    "paths": paths,
    "attribution": attribution,
}
DEFAULT_METHOD = {"heads": "zero", "layers": "zero", "attribution": "zero"}
"""What is done to heads unless told; sets, pairs and paths take means, which leave the model nearer to its own kind."""


def default_methods(kind: str) -> list[str]:
    """Of a kind, when none is given."""
    return [DEFAULT_METHOD.get(kind, "mean")]


def usable_methods(kind: str) -> tuple[str, ...]:
    """Paths cannot be patched with patterns held."""
    return PATH_METHODS if kind == "paths" else METHODS


def _scores(ablation: Ablation) -> pl.DataFrame:
    p = ablation.prompts
    names = ["previous_token", "induction_attention"]
    return score_heads(ablation.model, names, p.seed, vocab=p.vocab, bos_id=p.bos_id, n_prompts=8)


def _highest(table: pl.DataFrame, measure: str, count: int) -> list[Head]:
    rows = table.filter(pl.col("measure") == measure).sort("value", descending=True).head(count)
    return [(int(layer), int(head)) for layer, head in rows.select("layer", "head").rows()]


def clean_values(ablation: Ablation) -> dict[str, float]:
    """What the effects are differences from, for the table's metadata."""
    values = {}
    for question in questions(ablation.model, ablation.prompts.test, ablation.prompts.repeated, ablation.natural):
        clean = runs_of(ablation.model, question, "zero").answers([]).clean
        means = (clean * question.weight[:, None]).sum(dim=0) / question.weight.sum()
        values |= dict(zip(question.measures, means.tolist(), strict=True))
    return values
