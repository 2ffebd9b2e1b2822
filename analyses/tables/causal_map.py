"""The causal map: what removing each head does, over training, beside what its scores say."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import polars as pl

from copyscope.analyses.tables.ablations import ablate
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, read_tables, selected
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES
from copyscope.analyses.tables.zoom_window import steps_around
from copyscope.training.checkpoints.series import Source
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

SCORES = ("induction_score", "induction_attention", "previous_token", "prefix_matching_sum")
"""Correlational measures that stand beside the effect where they are stored."""


class CausalMap(NamedTuple):
    """What removing each head does at each step, beside what its attention scores say."""

    heads: pl.DataFrame
    """step, tokens, layer, head, method, effect, effect_se, control, matched, and the head's scores at that step."""
    layers: pl.DataFrame
    """step, layer, method, effect: the largest of the layer's heads, and which head it is."""
    agreement: pl.DataFrame
    """step, measure, heads, spearman: rank correlation over heads of a score with the effect; null where all are
    equal."""


def causal_map(
    source: Source,
    steps: Iterable[int] | None = None,
    method: str = "zero",
    measure: str = "copying_loss",
    *,
    n_steps: int = 12,
    samples: int = COPYING_SAMPLES,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> CausalMap:
    """Ablates every head at several steps and puts the effects beside the stored scores.

    `steps`: None for `causal_steps`. Effects are of `measure` (ablated - clean). Before copying has formed no head can
    have an effect on it, whatever its scores say; that is what the two maps differ in. Writes nothing but the tables of
    `ablate`. Raises InputError as `ablate` does.
    """
    run = open_run(source)
    steps = causal_steps(run, n_steps) if steps is None else sorted(set(steps))
    table = ablate(source, steps, [method], progress, samples=samples, max_bytes=max_bytes)
    table = table.filter(pl.col("step").is_in(steps) & (pl.col("method") == method))
    if measure not in table["measure"]:
        raise InputError(
            f"causal map: no measure {measure!r}; there are {', '.join(sorted(table['measure'].unique()))}"
        )
    keys = ["step", "tokens", "layer", "head", "method"]
    names = {measure: "effect", f"{measure}_se": "effect_se"}
    names |= {f"{measure}_control": "control", f"{measure}_matched": "matched"}
    wide = table.filter(pl.col("measure").is_in(list(names))).pivot("measure", index=keys, values="value")
    heads = wide.rename({old: new for old, new in names.items() if old in wide.columns}).sort("step", "layer", "head")
    heads = _with_scores(run, heads)
    strongest = pl.col("effect").abs().arg_max()
    layers = heads.group_by("step", "layer", "method", maintain_order=True).agg(
        pl.col("effect").get(strongest), pl.col("head").get(strongest)
    )
    return CausalMap(heads, layers, _agreement(heads))


def causal_steps(run: Run, n_steps: int = 12) -> list[int]:
    """At most `n_steps` checkpoints: half of them spread over the stretch in which heads and copying formed (from
    results/formation.json), the rest over what lies before and after it; the first and last always. Without a
    formation, evenly by number of checkpoint."""
    if n_steps < 2:
        raise InputError(f"n_steps={n_steps}: a map needs at least 2 steps")
    steps = [checkpoint.step for checkpoint in selected(run, None)]
    if not steps:
        selected(run, [-1])  # says why there is none
    try:
        low, high = steps_around(run.folder, "formation")
    except InputError:
        return _spread(steps, n_steps)
    inside = _spread([s for s in steps if low <= s <= high], max(1, n_steps // 2))
    outside = _spread([s for s in steps if not low <= s <= high], max(0, n_steps - len(inside)))
    return sorted({*inside, *outside})


def _spread(steps: list[int], count: int) -> list[int]:
    """`count` of them at even distances in the list, ends included."""
    if count <= 1 or len(steps) <= count:
        return steps[-1:] if count == 1 else steps[: len(steps) if count else 0]
    at = np.linspace(0, len(steps) - 1, count).round().astype(int)
    return [steps[i] for i in sorted(set(at.tolist()))]


def _with_scores(run: Run, heads: pl.DataFrame) -> pl.DataFrame:
    try:
        stored = read_tables(run, "heads")
    except InputError:
        return heads  # nothing scored yet: the causal map stands alone
    scores = stored.filter(pl.col("measure").is_in(SCORES))
    if scores.is_empty():
        return heads
    wide = scores.pivot("measure", index=["step", "layer", "head"], values="value", aggregate_function="first")
    return heads.join(wide, on=["step", "layer", "head"], how="left", maintain_order="left")


def _agreement(heads: pl.DataFrame) -> pl.DataFrame:
    tables = []
    for name in SCORES:
        if name in heads.columns:
            rank = pl.corr(name, "effect", method="spearman")
            by_step = heads.drop_nulls(name).group_by("step", maintain_order=True)
            table = by_step.agg(pl.lit(name).alias("measure"), pl.len().alias("heads"), rank.alias("spearman"))
            tables.append(table.with_columns(pl.col("spearman").fill_nan(None)))
    schema = {"step": pl.Int64, "measure": pl.String, "heads": pl.UInt32, "spearman": pl.Float64}
    return pl.concat(tables) if tables else pl.DataFrame(schema=schema)
