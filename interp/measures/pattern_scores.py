"""Sums of attention over targets, gathered while patterns go by, with their spread over prompts and their p-values."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from copyscope.interp.forward.memory import for_sums
from copyscope.interp.measures.offsets import longest_offset, offset_queries, offset_sums
from copyscope.interp.measures.patterns import PatternBlock, read_patterns
from copyscope.interp.measures.targets import TARGET_MEASURES, Targets, null_targets, targets
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel

WHOLE_MEASURES = ("attention_entropy", "bos_sink", "first_token_norm_ratio")
"""Of every position's attention or value, without targets."""
OUTPUT_MEASURES = ("participation_ratio",)
"""Of the heads' outputs."""
OFFSET_MEASURES = ("previous_token", "best_offset_attention")
"""Of attention by distance."""


def pattern_scores(
    model: HookedModel,
    prompts: Tensor,
    names: Sequence[str],
    nulls: Sequence[str],
    weighted: Sequence[str],
    layers: Sequence[int],
    seed: int,
) -> dict[str, Tensor]:
    """Every (layer, head) value that follows from one pass over the patterns of these prompts."""
    n = len(prompts)
    lists = {name: _kept_targets(name, prompts) for name in names if name in TARGET_MEASURES}
    plain = lists | {f"{name}_null": _kept_targets(name, prompts, seed) for name in nulls if name in lists}
    of_weighted = {f"{name}_value_weighted": lists[name] for name in weighted if name in lists}
    whole = [name for name in names if name in WHOLE_MEASURES]
    by_distance = {*names} & {*OFFSET_MEASURES, "best_offset"}
    sums = _Sums(model, prompts, layers, plain, of_weighted, whole, bool(by_distance), bool({*weighted} & by_distance))
    outputs = _Outputs(model, layers) if "participation_ratio" in names else None
    sums.outputs = outputs
    read_patterns(model, prompts, sums.add, layers)
    sums.to_cpu()
    by_prompt = {name: sums.of(name) for name in sums.names}  # (prompt, layer, head)
    scores = {name: values.sum(dim=0) for name, values in by_prompt.items()}
    for name in (*lists, *whole):
        share = lists[name].shares(n) if name in lists else torch.full((n,), 1 / n)
        mean = {kind: _prompt_means(by_prompt[kind], share) for kind in (name, f"{name}_null") if kind in by_prompt}
        if n > 1:
            scores[f"{name}_se"] = mean[name].std(dim=0) / len(mean[name]) ** 0.5
        if name in lists:
            even = lists[name].uniform()
            scores[f"{name}_selectivity"] = scores[name] / even if even else scores[name]
        if name in nulls and n > 1:
            scores[f"{name}_p"] = above_null(mean[name] - mean[f"{name}_null"])
    if by_distance:
        scores |= _offset_scores(sums, prompts.shape[1])
    if outputs is not None:
        scores["participation_ratio"] = outputs.participation_ratio()
    return scores


def target_sums(
    model: HookedModel, prompts: Tensor, lists: dict[str, Targets], layers: Sequence[int] | None = None
) -> dict[str, Float[Tensor, "prompt layer head"]]:
    """Attention to each list of targets, prompt by prompt, on the CPU; `layers`: None for all."""
    layers = range(model.cfg.n_layers) if layers is None else layers
    sums = _Sums(model, prompts, layers, lists, {}, [], False, False)
    read_patterns(model, prompts, sums.add, layers)
    sums.to_cpu()
    return {name: sums.of(name) for name in lists}


_MOST_KEPT = 64
_kept: OrderedDict[tuple[object, ...], Targets] = OrderedDict()


def _kept_targets(name: str, prompts: Tensor, null_seed: int | None = None) -> Targets:
    """`targets`, or with a seed `null_targets`; from the last time where the prompts are the same, as all checkpoints
    of a series are asked about the same ones."""
    key = (name, null_seed, *prompts.shape, prompts.cpu().numpy().tobytes())
    if key not in _kept:
        _kept[key] = targets(name, prompts) if null_seed is None else null_targets(name, prompts, null_seed)
        if len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return _kept[key]


def _prompt_means(
    by_prompt: Float[Tensor, "prompt layer head"], share: Float[Tensor, " prompt"]
) -> Float[Tensor, "some_prompt layer head"]:
    """The measure on each prompt alone, of what each adds to the whole; without prompts that have no target."""
    with_target = share > 0
    return by_prompt[with_target] / share[with_target, None, None].to(by_prompt)


def _offset_scores(sums: "_Sums", n_pos: int) -> dict[str, Tensor]:
    """The previous-token score and the best offset, with their calibration."""
    queries = offset_queries(n_pos)
    by_prompt = sums.offsets / max(1, len(queries))  # (prompt, layer, head, offset)
    mean, n = by_prompt.mean(dim=0), len(by_prompt)
    best = mean.argmax(dim=-1)
    scores: dict[str, Tensor] = {"best_offset": (best + 1).to(mean)}
    for name, chosen, tried in (
        ("previous_token", torch.zeros_like(best), 1),
        ("best_offset_attention", best, mean.shape[-1]),
    ):
        at = torch.nn.functional.one_hot(chosen, mean.shape[-1]).bool()
        others = mean[~at].view(*best.shape, -1)
        scores[name] = score = mean[at].view(best.shape)
        scores[f"{name}_null"] = others.mean(dim=-1) if others.shape[-1] else torch.zeros_like(score)
        scores[f"{name}_selectivity"] = score / (1 / (queries + 1)).mean() if len(queries) else score
        scores[f"{name}_p"] = above_others(score, others, tried)
        if n > 1:
            scores[f"{name}_se"] = by_prompt[at.expand_as(by_prompt)].view(n, *best.shape).std(dim=0) / n**0.5
        if sums.weighted_offsets is not None:
            weighted = sums.weighted_offsets.mean(dim=0) / max(1, len(queries))
            scores[f"{name}_value_weighted"] = weighted[at].view(best.shape)
    return scores


def above_null(differences: Float[Tensor, " prompt *head"]) -> Float[Tensor, "*head"]:
    """One-sided p-value that the mean difference exceeds 0, over prompts, corrected over all heads. In [0, 1].

    A paired t-test: prompts are drawn independently of each other, so their differences are.
    """
    n = len(differences)
    return _upper_tail(differences.mean(dim=0), differences.std(dim=0) / n**0.5, n - 1)


def above_others(
    score: Float[Tensor, "*head"], others: Float[Tensor, "*head other"], tried: int = 1
) -> Float[Tensor, "*head"]:
    """One-sided p-value that a head's attention at one offset exceeds what its other offsets let expect, corrected over
    all heads. In [0, 1]; 1 with fewer than 2 others.

    The t-test of one new value against a sample. Spread among the other offsets is the yardstick, not spread over
    prompts: rotary positions and what neighbouring residual streams share make even a random head prefer some offsets,
    and a head that looks at all that is near has others nearly as high. `tried`: of how many offsets this is the
    highest (Bonferroni).
    """
    m = others.shape[-1]
    if m < 2:
        return torch.ones_like(score)
    error = others.std(dim=-1) * (1 + 1 / m) ** 0.5
    return _upper_tail(score - others.mean(dim=-1), error, m - 1, tried)


def _upper_tail(
    excess: Float[Tensor, "*head"], error: Float[Tensor, "*head"], degrees: int, tried: int = 1
) -> Float[Tensor, "*head"]:
    """p-values of `excess` / `error`, times `tried`, corrected over heads (Holm 1979)."""
    t = torch.where(error > 0, excess / error.clamp(min=1e-300), torch.sign(excess) * torch.inf).nan_to_num(nan=0.0)
    p = torch.from_numpy(stats.t.sf(t.cpu().numpy(), degrees)).flatten() * tried
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1, dtype=p.dtype)
    corrected = (p[order] * factors).cummax(dim=0).values.clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, corrected).view(excess.shape).to(excess.dtype)


def first_token_norm_ratio(values: Float[Tensor, "batch head pos d_head"]) -> Float[Tensor, "batch head"]:
    """Length of the value at the first position over the mean length at the others, prompt by prompt (after Gu et al.
    2024, arXiv 2410.10781). At least 0; 0 where all are 0.

    Well below 1 in a head that rests on the first position: it reads little there. The residual stream of a sink is
    long instead, which the norm before the head hides.
    """
    lengths = values.float().norm(dim=-1)
    others = lengths[..., 1:].mean(dim=-1)
    return lengths[..., 0] / others.clamp(min=1e-30)


def participation_ratio(
    outputs: Float[Tensor, "sample d_model"],
) -> Float[Tensor, ""]:
    """Over how many directions a head's outputs spread: (Σλ)² / Σλ², λ the variances along principal axes.

    From 1 to the number of directions; 0 for outputs that do not vary. A head that always writes along one direction
    has 1, whatever it writes there.
    """
    centred = outputs.double() - outputs.double().mean(dim=0)
    return _spread(centred.mT @ centred, torch.eye(outputs.shape[1], dtype=torch.float64))


def _spread(scatter: Tensor, gram: Tensor) -> Tensor:
    """Participation ratio of z W, of the scatter of z and W Wᵀ."""
    product = scatter @ gram
    trace = product.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    squares = (product * product.mT).sum(dim=(-2, -1))
    return torch.where(squares > 0, trace.square() / squares.clamp(min=1e-300), 0.0)


class _Outputs:
    """Sums of z and of z zᵀ over all positions but the first, layer by layer, on the model's device."""

    def __init__(self, model: HookedModel, layers: Sequence[int]) -> None:
        self.place = {layer: i for i, layer in enumerate(layers)}
        shape, where = (len(layers), model.cfg.n_heads, model.cfg.d_head), for_sums(device_of(model))
        self.sum, self.count = torch.zeros(shape, **where), 0
        self.squares = torch.zeros(*shape, model.cfg.d_head, **where)
        self.W_O = model.W_O.detach()[list(layers)]

    def add(self, block: PatternBlock) -> None:
        pattern = block.pattern[:, :, int(block.first_query == 0) :]
        z = (
            (pattern @ block.values[:, :, : pattern.shape[3]].float()).transpose(0, 1).flatten(1, 2)
        )  # (head, n, d_head)
        place = self.place[block.layer]
        self.sum[place] += z.sum(dim=1).to(self.sum)
        self.squares[place] += (z.mT @ z).to(self.sum)
        self.count += z.shape[1] if place == 0 else 0

    def participation_ratio(self) -> Float[Tensor, "layer head"]:
        W_O = self.W_O.to(self.sum)
        scatter = self.squares - self.sum[..., :, None] * self.sum[..., None, :] / max(1, self.count)
        return _spread(scatter, W_O @ W_O.mT).cpu()


def value_weighted(
    pattern: Float[Tensor, "batch head query key"],
    values: Float[Tensor, "batch head key d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
) -> Float[Tensor, "batch head query key"]:
    """The pattern weighted by the length of what each key's value writes into the residual stream, rows again summing
    to 1 (Kobayashi et al. 2020, "Attention is not only a weight", without their sum over heads).

    Any pattern measure can be taken of it. Keys whose values are near 0, such as the sink, weigh little. Length is not
    use: later layers may ignore what is written.
    """
    weighted = pattern * _written_norm(values, W_O)[:, :, None]
    return weighted / weighted.sum(dim=-1, keepdim=True).clamp(min=1e-30)


def _written_norm(values: Tensor, W_O: Tensor) -> Tensor:
    """‖v W_O‖, (batch, head, key), by way of the small matrix W_O W_Oᵀ."""
    gram = W_O.float() @ W_O.float().mT
    return ((values.float() @ gram) * values).sum(dim=-1).clamp(min=0).sqrt()


def _entropy(pattern: Float[Tensor, "row head query key"]) -> Float[Tensor, "row head"]:
    """Summed over queries; ten times faster on a CPU than `torch.special.entr`."""
    return -(pattern.clamp(min=1e-38).log_().mul_(pattern)).sum(dim=(2, 3))


class _Sums:
    """What each prompt adds to each score, layer by layer; filled block by block, on the model's device."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Tensor,
        layers: Sequence[int],
        plain: dict[str, Targets],
        weighted: dict[str, Targets],
        whole: Sequence[str],
        by_distance: bool,
        by_distance_weighted: bool,
    ):
        device = device_of(model)
        where = for_sums(device)
        self.names = [*plain, *weighted, *whole]
        self.place = {layer: i for i, layer in enumerate(layers)}
        self.n, self.queries = len(prompts), prompts.shape[1] - 1
        self.W_O = model.W_O.detach() if weighted or by_distance_weighted else None
        self.sums = torch.zeros(len(self.names) * self.n, len(layers), model.cfg.n_heads, **where)
        self.lists = (self._joined(list(plain.values()), 0), self._joined(list(weighted.values()), len(plain)))
        self.whole = {name: self.names.index(name) for name in whole}
        self.chosen: dict[tuple[int, int, int], tuple[Tensor, ...]] = {}
        shape = (self.n, len(layers), model.cfg.n_heads, longest_offset(prompts.shape[1]))
        self.by_distance = by_distance
        self.offsets = torch.zeros(shape, **where)
        """Attention at each offset, summed over queries."""
        self.weighted_offsets = torch.zeros(shape, **where) if by_distance_weighted else None
        self.outputs: _Outputs | None = None

    def _joined(self, lists: Sequence[Targets], first: int) -> tuple[Tensor, ...]:
        """All targets as one list: prompt, query, key, weight, row of `sums`."""
        if not lists:
            return ()
        rows = [t.prompt + (first + i) * self.n for i, t in enumerate(lists)]
        return (*(torch.cat(column) for column in list(zip(*lists, strict=True))), torch.cat(rows))

    def to_cpu(self) -> None:
        """Once all is added."""
        self.sums, self.offsets = self.sums.cpu().double(), self.offsets.cpu().double()
        if self.weighted_offsets is not None:
            self.weighted_offsets = self.weighted_offsets.cpu().double()

    def of(self, name: str) -> Tensor:
        start = self.names.index(name) * self.n
        return self.sums[start : start + self.n]

    def add(self, block: PatternBlock) -> None:
        place = self.place[block.layer]
        into, longest = self.sums[:, place], self.offsets.shape[-1]
        if self.lists[0]:
            self._pick(0, block, block.pattern, into)
        if self.by_distance:
            self.offsets[block.rows, place] += offset_sums(block.pattern, longest, block.first_query)
        if self.W_O is not None:
            keys = block.pattern.shape[3]
            weighted = value_weighted(block.pattern, block.values[:, :, :keys], self.W_O[block.layer])
            if self.lists[1]:
                self._pick(1, block, weighted, into)
            if self.weighted_offsets is not None:
                self.weighted_offsets[block.rows, place] += offset_sums(weighted, longest, block.first_query)
        later = block.pattern[:, :, int(block.first_query == 0) :]  # the first position has nothing to choose from
        for name, index in self.whole.items():
            rows = slice(index * self.n + block.rows.start, index * self.n + block.rows.stop)
            if name == "first_token_norm_ratio":
                if block.first_query == 0:
                    into[rows] += first_token_norm_ratio(block.values) / self.n
                continue
            value = later[..., 0].sum(dim=2) if name == "bos_sink" else _entropy(later)
            into[rows] += value / (self.n * self.queries)
        if self.outputs is not None:
            self.outputs.add(block)

    def _pick(self, which: int, block: PatternBlock, pattern: Tensor, into: Tensor) -> None:
        start, end = block.first_query, block.first_query + pattern.shape[2]
        at = (which, block.rows.start, start)
        if at not in self.chosen:  # the same for every layer
            prompt, query, key, weight, row = self.lists[which]
            inside = (prompt >= block.rows.start) & (prompt < block.rows.stop) & (query >= start) & (query < end)
            these = inside.nonzero().flatten()
            places = (
                prompt[these] - block.rows.start,
                query[these] - start,
                key[these],
                weight[these, None],
                row[these],
            )
            self.chosen[at] = tuple(column.to(into.device) for column in places)
        p, q, k, weight, row = self.chosen[at]
        _add_rows(into, row, pattern[p, :, q, k].to(into.dtype) * weight)  # (target, head)


def _add_rows(into: Tensor, rows: Tensor, values: Tensor) -> None:
    """Adds each of `values` to its row. On a GPU `index_add_` would add in another order each time."""
    if into.device.type == "cuda":
        into.index_put_((rows,), values, accumulate=True)
    else:
        into.index_add_(0, rows, values)
