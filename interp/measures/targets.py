"""Where a head would have to look: the targets of every attention measure, and random ones to compare with.

A measure is a fixed weighting of the pattern, `score[head] = Σ weight · pattern[prompt, head, query, key]` over a list
of targets that depends on the tokens alone. The list is short (a few keys a query), which gives the measure, its null,
its value under uniform attention and its spread over prompts from one formula, without a mask as large as the pattern.

A measure and its null are of the same queries: those with a target and as many other places to draw null targets from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Mask = Bool[Tensor, "batch query key"]


class Targets(NamedTuple):
    """Entries of attention patterns, in order of prompt and query, and what each counts for."""

    prompt: Int[Tensor, " target"]
    query: Int[Tensor, " target"]
    key: Int[Tensor, " target"]
    weight: Float[Tensor, " target"]
    """Sums to 1 over all queries, if every query has one target; to 0 where nothing is counted."""

    def uniform(self) -> float:
        """What attention spread evenly over the visible keys gets."""
        return (self.weight / (self.query + 1)).sum().item()

    def shares(self, n_prompts: int) -> Float[Tensor, " prompt"]:
        """How much each prompt counts; sums to 1, or to 0 where nothing is counted."""
        shares = torch.zeros(n_prompts, dtype=torch.float64, device=self.weight.device)
        shares.index_add_(0, self.prompt, self.weight.double())
        return shares / shares.sum().clamp(min=1e-300)

    def of(self, pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, " head"]:
        """The measure of whole patterns."""
        picked = pattern[self.prompt, :, self.query, self.key]  # (target, head)
        return self.weight.to(pattern.device) @ picked.float()


def earlier_copies(tokens: Int[Tensor, "batch pos"]) -> Mask:
    """Keys before the query that hold its token."""
    n = tokens.shape[1]
    same = tokens[:, :, None] == tokens[:, None, :]
    return same & torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril(-1)


def _shifted(copies: Tensor, by: int) -> Tensor:
    """The keys `by` after `copies`, unless that is the query itself or later: a token right after its twin has nothing
    to copy."""
    n = copies.shape[1]
    moved = copies.roll(by, dims=2)
    if by > 0:
        moved[:, :, :by] = False
    else:
        moved[:, :, by:] = False
    return moved & torch.ones(n, n, dtype=torch.bool, device=copies.device).tril(-1)


def _first(copies: Tensor) -> Tensor:
    return copies & (copies.cumsum(dim=-1) == 1)


def _before_first(tokens: Tensor) -> Tensor:
    before = _shifted(_first(earlier_copies(tokens)), -1)
    before[:, :, 0] = False  # where attention rests when a head has nothing to do
    return before


_MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "induction_attention": lambda tokens: _shifted(_first(earlier_copies(tokens)), 1),
    "prefix_matching_sum": lambda tokens: _shifted(earlier_copies(tokens), 1),
    "prefix_matching_mean": lambda tokens: _shifted(earlier_copies(tokens), 1),
    "duplicate_token": earlier_copies,
    "anti_induction": _before_first,
}
TARGET_MEASURES = tuple(_MASKS)


def targets(name: str, tokens: Int[Tensor, "batch pos"]) -> Targets:
    """The targets of the measure `name` on these prompts, of the queries that its null has too."""
    return _listed(name, [_true_and_other(name, row)[0] for row in tokens])  # one mask at a time


def null_targets(name: str, tokens: Int[Tensor, "batch pos"], seed: int = 0) -> Targets:
    """As many random targets a query as the true ones, of the same queries (definition 12).

    Drawn without replacement from the earlier positions that are no true target and not the first one, where attention
    goes when a head has nothing to do.
    """
    generator = torch.Generator().manual_seed(seed)
    return _listed(name, [_drawn(*_true_and_other(name, row), generator) for row in tokens])


def _true_and_other(name: str, row: Int[Tensor, " pos"]) -> tuple[Bool[Tensor, "query key"], Bool[Tensor, "query key"]]:
    """The true targets of one prompt and the keys that null targets are drawn from; none of either for a query that has
    fewer of the second."""
    true = _MASKS[name](row[None])[0]
    other = ~true & torch.ones_like(true).tril(-1)
    other[:, 0] = False
    enough = (other.sum(dim=-1) >= true.sum(dim=-1))[:, None]
    return true & enough, other & enough


def _drawn(
    true: Bool[Tensor, "query key"], other: Bool[Tensor, "query key"], generator: torch.Generator
) -> Bool[Tensor, "query key"]:
    """For each query as many of `other` as it has true targets."""
    wanted = true.sum(dim=-1)
    order = torch.rand(true.shape, generator=generator).to(true.device).masked_fill_(~other, -1.0)
    picks = order.topk(int(wanted.max()), dim=-1).indices  # (query, most)
    chosen = torch.arange(picks.shape[1], device=true.device) < wanted[:, None]
    return torch.zeros_like(true).scatter_(-1, picks, chosen)


def _listed(name: str, masks: Sequence[Bool[Tensor, "query key"]]) -> Targets:
    places = [mask.nonzero() for mask in masks]
    prompt = torch.cat([torch.full((len(place),), i, device=place.device) for i, place in enumerate(places)])
    counted = len(prompt)
    if name != "prefix_matching_mean":
        counted = sum(int(mask.any(dim=-1).sum()) for mask in masks)
    query, key = torch.cat(places).T
    weight = torch.full(prompt.shape, 1.0 / max(1, counted), device=prompt.device)
    return Targets(prompt, query, key, weight)
