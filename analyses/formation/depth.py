"""Shallow to deep: do heads of earlier layers form earlier, more than chance and more than composition demands?"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from scipy import stats

from copyscope.analyses.statistics.intervals import t_interval
from copyscope.training.errors import InputError

ALPHA = 0.05
DRAWS = 10_000
MIN_ORDERS = 20
"""With fewer orders to compare with, no order can be rarer than 5 %."""

Tables = pl.DataFrame | Sequence[pl.DataFrame]


@dataclass(frozen=True, kw_only=True)
class DepthTrend:
    """Do heads of earlier layers form earlier?"""

    verdict: str
    """`shallow to deep`, `deep to shallow`, or `undecided`."""
    reason: str
    tau: float = math.nan
    """Kendall's tau-b between layer and formation step, in [-1, 1], mean over runs; NaN where undefined."""
    tau_low: float = math.nan
    """95 % interval of the mean over runs (Student's t, cut to what tau can be); NaN for a single run."""
    tau_high: float = math.nan
    rho: float = math.nan
    """Spearman's rho, in [-1, 1], mean over runs."""
    p_deep_later: float = 1.0
    """One-sided p-value of tau being this high if layers were exchangeable as wholes."""
    p_deep_earlier: float = 1.0
    """The same for tau this low."""
    p_composition: float | None = None
    """As `p_deep_later`, over those orders of the layers in which every induction head still has its earlier
    previous-token head below it; None without the table of previous-token heads."""
    n_heads: int
    n_layers: int
    n_never: int
    """Heads left out because they did not form."""
    n_runs: int


def depth_trend(formation: Tables, previous: Tables | None = None, seed: int = 0) -> DepthTrend:
    """Rank correlation between layer and formation step, against layers in any other order.

    `formation`: as from `formation_steps`, one measure, one table or one a run (of models with equal layers); heads
    that did not form are left out and counted. `previous`: the same for previous-token heads; then orders of the layers
    that break composition are left out of a second comparison, and a trend that composition explains is not one. Steps
    are the checkpoints' (heads of one bracket tie; interpolation decides nothing). Layers are permuted as wholes, since
    heads of one layer are not independent, and in all runs alike, since seeds share an architecture: more seeds make
    the order clearer, but not the layers more. All orders up to 7 layers, 10,000 drawn ones beyond (`seed`). The
    verdict needs p <= 0.05 one-sided against both, so fewer than four layers with formed heads are always `undecided`.
    Raises InputError: missing columns, several measures, tables of `previous` that do not match. Cannot tell: whether
    depth itself is the cause.
    """
    tables = [_checked(table) for table in _as_list(formation)]
    below = None if previous is None else [_checked(table) for table in _as_list(previous)]
    if below is not None and len(below) != len(tables):
        raise InputError(
            f"depth trend: {len(tables)} tables of heads, {len(below)} of previous-token heads; give as many"
        )
    formed = [table.filter("formed") for table in tables]
    pairs = [_Heads(t["layer"].to_numpy().astype(np.int64), t["step"].to_numpy().astype(float)) for t in formed]
    usable = [heads for heads in pairs if len(np.unique(heads.layer)) > 1 and len(np.unique(heads.step)) > 1]
    counted = sorted({layer for heads in usable for layer in heads.layer.tolist()})
    # Layers of previous-token heads move along, though their heads do not count.
    others = {layer for table in below or () for layer in table.filter("formed")["layer"].to_list()}
    layers = np.array(sorted({*counted, *others}), dtype=np.int64)
    counts = {
        "n_heads": sum(len(heads.layer) for heads in pairs),
        "n_layers": len(counted),
        "n_never": sum(t.height for t in tables) - sum(t.height for t in formed),
        "n_runs": len(usable),
    }
    if not usable:
        why = "all formed heads are in one layer or formed at one checkpoint" if counts["n_heads"] else "no head formed"
        return DepthTrend(verdict="undecided", reason=why, **counts)
    matrices = np.stack([_pair_signs(heads, layers) / _tau_unit(heads) for heads in usable])
    taus = np.triu(matrices, 1).sum(axis=(1, 2))
    rho = float(np.mean([_rho(heads) for heads in usable]))
    signs = matrices.mean(axis=0)
    orders = _orders(len(layers), seed)
    drawn = _statistics(signs, orders)
    seen = float(np.triu(signs, 1).sum())
    p_later, p_earlier = _share(drawn >= seen - 1e-9), _share(drawn <= seen + 1e-9)
    p_composition, allowed = None, None
    if below is not None:
        kept = [_composes(heads, table, layers, orders) for heads, table in zip(pairs, below, strict=True)]
        allowed = np.all(kept, axis=0)
        p_composition = _share(drawn[allowed] >= seen - 1e-9)
    tau, (low, high) = float(taus.mean()), np.clip(t_interval(taus), -1.0, 1.0)
    verdict, reason = _verdict(tau, p_later, p_earlier, p_composition, len(counted), allowed)
    return DepthTrend(
        verdict=verdict,
        reason=reason,
        tau=tau,
        tau_low=float(low),
        tau_high=float(high),
        rho=rho,
        p_deep_later=p_later,
        p_deep_earlier=p_earlier,
        p_composition=p_composition,
        **counts,
    )


def _as_list(tables: Tables) -> list[pl.DataFrame]:
    return [tables] if isinstance(tables, pl.DataFrame) else list(tables)


def _checked(table: pl.DataFrame) -> pl.DataFrame:
    for column in ("layer", "head", "formed", "step"):
        if column not in table.columns:
            raise InputError(f"formation table: column {column!r} is missing; use the table formation_steps returns")
    if "measure" in table.columns and table["measure"].n_unique() > 1:
        raise InputError("formation table: holds several measures; filter it to one")
    return table


class _Heads(NamedTuple):
    """The formed heads of one run."""

    layer: Int[np.ndarray, " head"]
    step: Float[np.ndarray, " head"]


def _pair_signs(heads: _Heads, layers: Int[np.ndarray, " layer"]) -> Float[np.ndarray, "layer layer"]:
    """[a, b]: number of head pairs (one of layer a, one of layer b) with b later, minus those with b earlier."""
    signs = np.sign(heads.step[None, :] - heads.step[:, None])
    member = (heads.layer[:, None] == layers[None, :]).astype(float)
    return member.T @ signs @ member


def _tau_unit(heads: _Heads) -> float:
    """What Kendall's numerator is divided by for tau-b; no order of the layers changes it."""
    pairs = len(heads.layer) * (len(heads.layer) - 1) / 2
    tied = [sum(n * (n - 1) / 2 for n in np.unique(part, return_counts=True)[1]) for part in heads]
    return math.sqrt((pairs - tied[0]) * (pairs - tied[1]))


def _rho(heads: _Heads) -> float:
    return float(stats.spearmanr(heads.layer, heads.step).statistic)  # type: ignore[attr-defined]


def _orders(count: int, seed: int) -> Int[np.ndarray, "order layer"]:
    """Every order of the layers, or the one seen and 10,000 drawn ones. [i, d]: the layer at depth d."""
    if math.factorial(count) <= 5040:
        return np.array(list(itertools.permutations(range(count))))
    rng = np.random.default_rng(seed)
    return np.array([np.arange(count), *(rng.permutation(count) for _ in range(DRAWS))])


def _statistics(
    signs: Float[np.ndarray, "layer layer"], orders: Int[np.ndarray, "order layer"]
) -> Float[np.ndarray, " order"]:
    """The sum of `signs` above the diagonal under each order."""
    upper = np.triu(np.ones_like(signs), 1)
    parts = np.array_split(orders, max(1, len(orders) // 1000))  # in parts: 48 layers at once would take 200 MB
    return np.concatenate([(signs[o[:, :, None], o[:, None, :]] * upper).sum(axis=(1, 2)) for o in parts])


def _composes(
    heads: _Heads,
    previous: pl.DataFrame,
    layers: Int[np.ndarray, " layer"],
    orders: Int[np.ndarray, "order layer"],
) -> Bool[np.ndarray, " order"]:
    """Under which orders each head that has an earlier previous-token head below it still has one.

    Heads without one in the data, and previous-token heads themselves, bind nothing.
    """
    known = previous.filter("formed")
    at, when = known["layer"].to_numpy().astype(np.int64), known["step"].to_numpy().astype(float)
    depth = np.argsort(orders, axis=1)
    fine = np.ones(len(orders), dtype=bool)
    for own, formed in set(zip(heads.layer.tolist(), heads.step.tolist(), strict=True)):
        supports = np.unique(at[(when <= formed) & (at < own)])
        if len(supports) and own in layers:
            columns = depth[:, np.searchsorted(layers, supports)]
            fine &= columns.min(axis=1) < depth[:, np.searchsorted(layers, own)]
    return fine


def _share(mask: Bool[np.ndarray, " order"]) -> float:
    return float(mask.mean()) if len(mask) else 1.0


def _p(value: float) -> str:
    """A p-value in words: no more digits than it means."""
    return "p < 0.001" if value < 0.001 else f"p {value:.2g}"


def _verdict(
    tau: float, p_later: float, p_earlier: float, p_composition: float | None, layers: int, allowed: Any
) -> tuple[str, str]:
    if math.factorial(layers) < MIN_ORDERS:
        few = f"{layers} layers with formed heads have {math.factorial(layers)} orders"
        return "undecided", f"{few}: too few to decide at p <= {ALPHA}"
    if p_later <= ALPHA and p_composition is not None and p_composition > ALPHA:
        orders = int(np.sum(allowed))
        return "undecided", (
            f"tau {tau:.2f} is rare over permuted layers ({_p(p_later)}), but not over the {orders} orders that "
            f"keep a previous-token head below every induction head ({_p(p_composition)})"
        )
    if p_later <= ALPHA:
        more = "" if p_composition is None else f", {_p(p_composition)} over those that composition leaves free"
        return "shallow to deep", f"tau {tau:.2f}, {_p(p_later)} over permuted layers{more}"
    if p_earlier <= ALPHA:
        return "deep to shallow", f"tau {tau:.2f}, {_p(p_earlier)} over permuted layers"
    return "undecided", f"tau {tau:.2f} is not rare over permuted layers ({_p(min(p_later, p_earlier))})"
