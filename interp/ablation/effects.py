"""The effect of removing every head, every layer, and pairs of heads: tables with standard errors and controls."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import polars as pl
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.hooked_rerun import HookedRuns
from copyscope.interp.ablation.parts import METHODS, Head, Part, Parts, all_heads, check_parts
from copyscope.interp.ablation.questions import Question, default_repeated, questions
from copyscope.interp.ablation.rerun import Answers, Rerun
from copyscope.interp.forward.layers import can_run
from copyscope.interp.forward.memory import within_memory
from copyscope.interp.measures.behavior import standard_error
from copyscope.interp.measures.heads import check_names
from copyscope.interp.measures.pattern_scores import pattern_scores
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.generate import CopyingTest
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

MATCHED = 3
"""Heads of nearest attention entropy that a head's effect is compared with."""


def runs_of(
    model: HookedModel, question: Question, method: str, seed: int = 0, max_bytes: int | None = None
) -> Rerun | HookedRuns:
    """What answers a question under ablations: the fast way where the model allows it."""
    if max_bytes is not None and max_bytes < 1:
        raise InputError(f"max_bytes={max_bytes}: give the memory for activations in bytes, such as {2**26}")
    if can_run(model):
        return Rerun(model, question, method, seed, max_bytes)
    return HookedRuns(model, question, method, seed)


@within_memory
def sweep_heads(
    model: HookedModel,
    test: CopyingTest,
    methods: Sequence[str] = ("zero",),
    *,
    windows: Int[Tensor, "window window_pos"] | None = None,
    repeated: Int[Tensor, "prompt prompt_pos"] | None = None,
    heads: str | Sequence[Head] | None = None,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Effect of removing each head, one at a time: a table of layer, head, method, measure, value (definition 11).

    Measures (value = ablated - clean): `copying_accuracy_exact`, `copying_accuracy_token`, `copying_loss` (second
    half of repeated random tokens, nats), and `natural_loss` (nats) when `windows` are given. Beside each measure m
    are `m_se`, the standard error of the difference over contexts (NaN with a single one), and for calibration
    (definition 12) `m_control`, the mean effect of the other swept heads of the same layer, and `m_matched`, that of
    the `MATCHED` swept heads of any layer whose attention entropy on `repeated` is nearest; `control_heads` and
    `matched_heads` say how many they are, and with 0 of them there is no such row.

    Args:
        test: the copying test; 100 to 200 samples do for a sweep.
        methods: as in `ablate_heads`. `mean` is over all of a measure's prompts, `resample` from the prompt that
            `interp.ablation.donors.donors` names with `seed`.
        repeated: prompts for the copying loss; None draws 16 (100 tokens twice, or what fits) from the test's own
            tokens.
        heads: the heads to sweep, as pairs or as text such as `L3H1,L2`; None for all.
        max_bytes: memory for activations; None for `interp.forward.memory.ablation_bytes`.

    Two ways with the same result: all ablations from the clean run on, packed (`rerun`), or, where the model
    does not allow that, a forward pass each (`hooked_rerun`). A single-head effect misses what backup heads
    make up for; see `sweep_pairs`.
    """
    heads = all_heads(model) if heads is None else check_parts(model, heads).pairs
    repeated = default_repeated(model, test, seed) if repeated is None else repeated
    effects = _effects(
        model, questions(model, test, repeated, windows, seed), [[h] for h in heads], methods, seed, max_bytes, progress
    )
    labels = pl.DataFrame(heads, schema={"layer": pl.Int64, "head": pl.Int64}, orient="row").with_row_index("variant")
    table = labels.join(effects, on="variant", maintain_order="left").drop("variant")
    layers = sorted({layer for layer, _ in heads})
    entropy = pattern_scores(model, repeated, ["attention_entropy"], (), (), layers, seed)["attention_entropy"]
    return _with_controls(table, {(layer, h): float(entropy[layers.index(layer), h]) for layer, h in heads})


@within_memory
def sweep_layers(
    model: HookedModel,
    test: CopyingTest,
    methods: Sequence[str] = ("zero",),
    *,
    windows: Int[Tensor, "window window_pos"] | None = None,
    repeated: Int[Tensor, "prompt prompt_pos"] | None = None,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Effect of removing each layer's attention (all its heads) and each MLP: layer, part, method, measure, value.

    `part` is `attention` or `mlp`. Measures, standard errors and arguments as in `sweep_heads`.
    """
    kinds = ["attention"] if model.cfg.attn_only else ["attention", "mlp"]
    parts = [(layer, kind) for layer in range(model.cfg.n_layers) for kind in kinds]
    effects = _effects(
        model, questions(model, test, repeated, windows, seed), [[p] for p in parts], methods, seed, max_bytes, progress
    )
    labels = pl.DataFrame(parts, schema={"layer": pl.Int64, "part": pl.String}, orient="row").with_row_index("variant")
    return labels.join(effects, on="variant", maintain_order="left").drop("variant").select(*_LAYER_COLUMNS)


@within_memory
def sweep_pairs(
    model: HookedModel,
    test: CopyingTest,
    heads: str | Sequence[Head],
    method: str = "mean",
    *,
    repeated: Int[Tensor, "prompt prompt_pos"] | None = None,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Effect of removing every pair of `heads` together, next to the sum of the two alone: who backs up whom.

    Columns: layer, head, other_layer, other_head, method, measure, value (of the pair, ablated - clean), first, second
    (each alone), synergy (value - first - second) and synergy_se (over contexts). For `copying_loss`, synergy above 0
    says that each makes up for the loss of the other (backup, or two copies of one function); below 0, that both serve
    one path, which is broken once only. Saturation looks the same: what cannot rise further adds up to less.

    Raises:
        InputError: fewer than two different heads.
    """
    heads = check_parts(model, heads).pairs if heads else []
    if len(heads) < 2:
        raise InputError(f"pairs: {len(heads)} heads to pair up; give at least two different ones")
    check_names([method], METHODS, "ablation method")
    pairs = list(combinations(range(len(heads)), 2))
    sets = [check_parts(model, [head]) for head in heads]
    sets += [check_parts(model, [heads[a], heads[b]]) for a, b in pairs]
    asked = questions(model, test, repeated, None, seed)
    count = _Count(progress, sum(len(q.tokens) for q in asked) * len(sets))
    rows = []
    for question in asked:
        answers = runs_of(model, question, method, seed, max_bytes).answers(sets, count)
        change = answers.ablated - answers.clean
        for m, measure in enumerate(question.measures):
            for p, (a, b) in enumerate(pairs):
                first, second, both = (change[i, :, m] for i in (a, b, len(heads) + p))
                means = [_mean(x, question.weight) for x in (both, first, second, both - first - second)]
                rows.append((*heads[a], *heads[b], method, measure, *means, standard_error(both - first - second)))
    names = ("layer", "head", "other_layer", "other_head")
    schema = dict.fromkeys(names, pl.Int64) | {"method": pl.String, "measure": pl.String}
    schema |= dict.fromkeys(("value", "first", "second", "synergy", "synergy_se"), pl.Float64)
    return pl.DataFrame(rows, schema=schema, orient="row")


_LAYER_COLUMNS = ("layer", "part", "method", "measure", "value")


def _effects(
    model: HookedModel,
    asked: Sequence[Question],
    sets: Sequence[Sequence[Part]],
    methods: Sequence[str],
    seed: int,
    max_bytes: int | None,
    progress: Progress | None,
) -> pl.DataFrame:
    """variant (number of the set), method, measure, value, for every measure and its standard error."""
    methods = check_names(methods, METHODS, "ablation method")
    if not sets:
        raise InputError("no head to ablate; give at least one (layer, head)")
    variants: list[Parts] = [check_parts(model, parts) for parts in sets]
    count = _Count(progress, sum(len(q.tokens) for q in asked) * len(variants) * len(methods))
    rows: list[tuple[str, int, str, float]] = []
    for method in sorted(methods, key=METHODS.index):
        answered = [(q, runs_of(model, q, method, seed, max_bytes).answers(variants, count)) for q in asked]
        for v in range(len(variants)):
            for question, answers in answered:
                for measure, value in _of_variant(question, answers, v):
                    rows.append((method, v, measure, value))
    schema = {"method": pl.String, "variant": pl.UInt32, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").select("variant", "method", "measure", "value")


def _of_variant(question: Question, answers: Answers, variant: int) -> list[tuple[str, float]]:
    change = answers.ablated[variant] - answers.clean
    effects = []
    for m, measure in enumerate(question.measures):
        effects.append((measure, _mean(change[:, m], question.weight)))
        effects.append((f"{measure}_se", standard_error(change[:, m])))
    return effects


def _mean(values: Float[Tensor, " row"], weight: Float[Tensor, " row"]) -> float:
    return ((values * weight).sum() / weight.sum()).item()


class _Count:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, more: int) -> None:
        self.done += more
        if self.progress:
            self.progress("ablating", self.done, self.total)


def _with_controls(table: pl.DataFrame, entropy: Mapping[Head, float]) -> pl.DataFrame:
    """The table with, for each head, the mean effects of the layer's other heads and of heads of like entropy."""
    same_layer = {head: [other for other in entropy if other[0] == head[0] and other != head] for head in entropy}
    return pl.concat(
        [table, _means_of_others(table, same_layer, "control"), _means_of_others(table, nearest(entropy), "matched")]
    ).sort(pl.col("method").cast(pl.Enum(METHODS)), "layer", "head", "measure", maintain_order=True)


def nearest(entropy: Mapping[Head, float], count: int = MATCHED) -> dict[Head, list[Head]]:
    """For each head the `count` others whose attention entropy (nats) is nearest to its own, the nearest first."""
    return {
        head: sorted(
            (other for other in entropy if other != head), key=lambda other: (abs(entropy[other] - own), other)
        )[:count]
        for head, own in entropy.items()
    }


def _means_of_others(table: pl.DataFrame, others: Mapping[Head, Sequence[Head]], name: str) -> pl.DataFrame:
    """Rows `<measure>_<name>`, the mean effect of the `others` of each head, and `<name>_heads`, how many they are."""
    pairs = [(*head, *other) for head, heads in others.items() for other in heads]
    named = pl.DataFrame(pairs, schema=dict.fromkeys(("of_layer", "of_head", "layer", "head"), pl.Int64), orient="row")
    effects = table.filter(~pl.col("measure").str.ends_with("_se"))
    means = named.join(effects, on=["layer", "head"]).group_by("of_layer", "of_head", "method", "measure").agg("value")
    counts = pl.DataFrame(
        [(*head, float(len(heads))) for head, heads in others.items()],
        schema={"layer": pl.Int64, "head": pl.Int64, "value": pl.Float64},
        orient="row",
    )
    return pl.concat(
        [
            means.select(
                layer="of_layer",
                head="of_head",
                method="method",
                measure=pl.col("measure") + f"_{name}",
                value=pl.col("value").list.mean(),
            ),
            counts.join(table.select("method").unique(), how="cross").select(
                "layer", "head", "method", pl.lit(f"{name}_heads").alias("measure"), "value"
            ),
        ]
    )
