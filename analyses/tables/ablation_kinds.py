"""The questions that ablation can be asked of one model, each answered by one table."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
from copyscope.interp.ablation.rerun import MAX_BYTES
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


class Asked(NamedTuple):
    """What all kinds need."""

    model: HookedModel
    prompts: Prompts
    methods: list[str]
    max_bytes: int = MAX_BYTES
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
        return {"repeated": self.prompts.repeated, "seed": self.prompts.seed, "max_bytes": self.max_bytes}


def heads(asked: Asked) -> pl.DataFrame:
    """Every head removed alone: layer, head, method, measure, value."""
    return sweep_heads(
        asked.model,
        asked.prompts.test,
        asked.methods,
        windows=asked.natural,
        progress=asked.progress,
        heads=asked.heads,
        **asked.shared,
    )


def layers(asked: Asked) -> pl.DataFrame:
    """Every attention layer and every MLP removed: layer, part, method, measure, value."""
    return sweep_layers(
        asked.model, asked.prompts.test, asked.methods, windows=asked.natural, progress=asked.progress, **asked.shared
    )


def pairs(asked: Asked) -> pl.DataFrame:
    """Pairs of heads removed together, with synergy (see `sweep_pairs`)."""
    chosen = asked.heads or all_heads(asked.model)
    if asked.heads is None and len(chosen) > PAIRED:
        # Backup heads do little when removed alone, so the effect alone would miss them.
        estimate = attribute_heads(asked.model, asked.prompts.repeated, seed=asked.prompts.seed)
        by_effect = _highest(estimate.with_columns(pl.col("value").abs()), "copying_loss", PAIRED // 2)
        by_score = _highest(_scores(asked), "induction_attention", PAIRED)
        chosen = list(dict.fromkeys([*by_effect, *by_score]))[:PAIRED]
    tables = [sweep_pairs(asked.model, asked.prompts.test, chosen, m, **asked.shared) for m in asked.methods]
    return pl.concat(tables)


def sets(asked: Asked) -> pl.DataFrame:
    """The smallest sets of heads and of attention layers (see `smallest_set`), a row a member."""
    found: list[pl.DataFrame] = []
    for method in asked.methods:
        results: list[SmallestSet] = [
            smallest_set(
                asked.model,
                asked.prompts.test,
                search,
                unit,
                method=method,
                seed=asked.prompts.seed,
                max_bytes=asked.max_bytes,
                progress=asked.progress and partial(asked.progress, note=f"{unit} to {search}"),
            )
            for unit in ("heads", "layers")
            for search in ("keep", "remove")
        ]
        found.append(sets_table(results, method))
    return pl.concat(found)


def paths(asked: Asked) -> pl.DataFrame:
    """Paths from previous-token heads into the keys of induction heads, next to K-composition; strongest first.

    Columns of `paths_beside_composition`, the source's previous-token score and `path_score`.
    """
    scores = _scores(asked)
    n_layers = asked.model.cfg.n_layers
    readers = _highest(scores.filter(pl.col("layer") > 0), "induction_attention", ENDS)
    sources = _highest(
        scores.filter(pl.col("layer") < max((layer for layer, _ in readers), default=n_layers)), "previous_token", ENDS
    )
    tables = []
    for method in asked.methods:
        if method in PATH_METHODS:
            found = patch_paths(
                asked.model,
                sources,
                readers,
                asked.prompts.repeated,
                method=method,
                seed=asked.prompts.seed,
                max_bytes=asked.max_bytes,
            )
            tables.append(paths_beside_composition(asked.model, found))
    previous = scores.filter(pl.col("measure") == "previous_token").select(
        source_layer=pl.col("layer"), source_head=pl.col("head"), previous_token=pl.col("value")
    )
    table = pl.concat(tables).join(previous, on=["source_layer", "source_head"], how="left")
    return table.with_columns(path_score=path_score("previous_token", "k_composition", "induction_attention_clean"))


def attribution(asked: Asked) -> pl.DataFrame:
    """The estimate of every head's effect on the copying loss beside the exact one: layer, head, method, measure,
    value, exact, pearson, spearman (correlations over all heads; see `agreement`)."""
    estimate = attribute_heads(asked.model, asked.prompts.repeated, asked.methods, seed=asked.prompts.seed)
    exact = heads(asked._replace(prompts=asked.prompts._replace(natural=None)))
    keys = ["layer", "head", "method", "measure"]
    both = estimate.join(exact.select(*keys, exact=pl.col("value")), on=keys, how="left", maintain_order="left")
    return both.join(agreement(estimate, exact).drop("heads"), on="method", how="left", maintain_order="left")


KINDS: dict[str, Callable[[Asked], pl.DataFrame]] = {
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


def _scores(asked: Asked) -> pl.DataFrame:
    p = asked.prompts
    names = ["previous_token", "induction_attention"]
    return score_heads(asked.model, names, p.seed, vocab=p.vocab, bos_id=p.bos_id, n_prompts=8)


def _highest(table: pl.DataFrame, measure: str, count: int) -> list[Head]:
    rows = table.filter(pl.col("measure") == measure).sort("value", descending=True).head(count)
    return [(int(layer), int(head)) for layer, head in rows.select("layer", "head").rows()]


def clean_values(asked: Asked) -> dict[str, float]:
    """What the effects are differences from, for the table's metadata."""
    found = {}
    for question in questions(asked.model, asked.prompts.test, asked.prompts.repeated, asked.natural):
        clean = runs_of(asked.model, question, "zero").answers([]).clean
        means = (clean * question.weight[:, None]).sum(dim=0) / question.weight.sum()
        found |= dict(zip(question.measures, means.tolist(), strict=True))
    return found
