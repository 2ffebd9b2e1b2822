"""Sums of attention over targets, gathered while patterns go by, with their spread over prompts and their p-values."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from copyscope.interp.measures.patterns import PatternBlock, read_patterns
from copyscope.interp.measures.targets import TARGET_MEASURES, Targets, null_targets, targets
from copyscope.interp.models.hooked import HookedModel

WHOLE_MEASURES = ("attention_entropy", "bos_sink")
"""Of every position's attention, without targets."""


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
    lists = {name: targets(name, prompts) for name in names if name in TARGET_MEASURES}
    plain = lists | {f"{name}_null": null_targets(name, prompts, seed) for name in nulls}
    of_weighted = {f"{name}_value_weighted": lists[name] for name in weighted}
    sums = _Sums(model, prompts, layers, plain, of_weighted, [name for name in names if name in WHOLE_MEASURES])
    read_patterns(model, prompts, sums.add, layers)
    by_prompt = {name: sums.of(name) for name in sums.names}  # (prompt, layer, head)
    scores = {name: values.sum(dim=0) for name, values in by_prompt.items()}
    for name in names:
        if n > 1:
            scores[f"{name}_se"] = (by_prompt[name] * n).std(dim=0) / n**0.5
        if name in lists:
            scores[f"{name}_selectivity"] = (
                scores[name] / lists[name].uniform() if len(lists[name].key) else scores[name]
            )
        if name in nulls and n > 1:
            scores[f"{name}_p"] = above_null(by_prompt[name] - by_prompt[f"{name}_null"])
    return scores


def above_null(differences: Float[Tensor, "prompt *head"]) -> Float[Tensor, "*head"]:
    """One-sided p-value that the mean difference exceeds 0, over prompts, corrected over all heads (Holm 1979).

    A paired t-test: prompts are drawn independently of each other, so their differences are. In [0, 1].
    """
    n = len(differences)
    mean, error = differences.mean(dim=0), differences.std(dim=0) / n**0.5
    t = torch.where(error > 0, mean / error.clamp(min=1e-300), torch.sign(mean) * torch.inf).nan_to_num(nan=0.0)
    p = torch.from_numpy(stats.t.sf(t.cpu().numpy(), n - 1)).flatten()
    order = p.argsort()
    factors = torch.arange(len(p), 0, -1, dtype=p.dtype)
    corrected = (p[order] * factors).cummax(dim=0).values.clamp(max=1)
    return torch.empty_like(p).scatter_(0, order, corrected).view(differences.shape[1:]).to(differences.dtype)


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
    """What each prompt adds to each score, layer by layer; filled block by block."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Tensor,
        layers: Sequence[int],
        plain: dict[str, Targets],
        weighted: dict[str, Targets],
        whole: Sequence[str],
    ):
        self.names = [*plain, *weighted, *whole]
        self.place = {layer: i for i, layer in enumerate(layers)}
        self.n, self.queries = len(prompts), prompts.shape[1] - 1
        self.W_O: Tensor | None = model.W_O.detach() if weighted else None
        self.sums = torch.zeros(len(self.names) * self.n, len(layers), model.cfg.n_heads, dtype=torch.float64)
        self.lists = (self._joined(list(plain.values()), 0), self._joined(list(weighted.values()), len(plain)))
        self.whole = {name: self.names.index(name) for name in whole}
        self.chosen: dict[tuple[int, int, int], Tensor] = {}

    def _joined(self, lists: Sequence[Targets], first: int) -> tuple[Tensor, ...]:
        """All targets as one list: prompt, query, key, weight, row of `sums`."""
        if not lists:
            return ()
        rows = [t.prompt + (first + i) * self.n for i, t in enumerate(lists)]
        return (*(torch.cat(column) for column in list(zip(*lists, strict=True))), torch.cat(rows))

    def of(self, name: str) -> Tensor:
        start = self.names.index(name) * self.n
        return self.sums[start : start + self.n]

    def add(self, block: PatternBlock) -> None:
        into = self.sums[:, self.place[block.layer]]
        if self.lists[0]:
            self._pick(0, block, block.pattern, into)
        if self.lists[1]:
            assert self.W_O is not None
            keys = block.pattern.shape[3]
            self._pick(1, block, value_weighted(block.pattern, block.values[:, :, :keys], self.W_O[block.layer]), into)
        later = block.pattern[:, :, int(block.first_query == 0) :]  # the first position has nothing to choose from
        for name, index in self.whole.items():
            value = later[..., 0].sum(dim=2) if name == "bos_sink" else _entropy(later)
            into[index * self.n + block.rows.start : index * self.n + block.rows.stop] += value.cpu() / (
                self.n * self.queries
            )

    def _pick(self, which: int, block: PatternBlock, pattern: Tensor, into: Tensor) -> None:
        prompt, query, key, weight, row = self.lists[which]
        start, end = block.first_query, block.first_query + pattern.shape[2]
        at = (which, block.rows.start, start)
        if at not in self.chosen:  # the same for every layer
            inside = (prompt >= block.rows.start) & (prompt < block.rows.stop) & (query >= start) & (query < end)
            self.chosen[at] = inside.nonzero().flatten()
        these = self.chosen[at]
        places = (prompt[these] - block.rows.start, query[these] - start, key[these])
        p, q, k = (index.to(pattern.device) for index in places)
        picked = pattern[p, :, q, k].cpu().double() * weight[these, None]  # (target, head)
        into.index_add_(0, row[these], picked)
