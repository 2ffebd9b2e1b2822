"""In what order: shallow to deep over heads, and stage after stage within a run."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy import stats

from training.errors import InputError

ORDER_SCHEMA = {
    "stage": pl.String, "measure": pl.String, "layer": pl.Int64, "head": pl.Int64, "status": pl.String,
    "step": pl.Int64, "bracket_low": pl.Int64, "since_previous": pl.String,
}  # fmt: skip
ALPHA = 0.05
DRAWS = 10_000


class DepthTrend(NamedTuple):
    """Do heads of earlier layers form earlier?"""

    verdict: str
    """`shallow to deep`, `deep to shallow`, or `undecided`."""
    reason: str
    tau: float
    """Kendall's tau-b between layer and formation step, in [-1, 1]; NaN where undefined."""
    rho: float
    """Spearman's rho, in [-1, 1]."""
    p_deep_later: float
    """One-sided p-value of tau being this high if layers were exchangeable as wholes."""
    p_deep_earlier: float
    """The same for tau this low."""
    p_heads_independent: float
    """One-sided p of tau if every head were independent; too small when heads of one layer resemble each other."""
    n_heads: int
    n_layers: int
    n_never: int
    """Heads left out because they did not form."""


def _pair_signs(
    layer: Int[np.ndarray, " head"], step: Float[np.ndarray, " head"], layers: Int[np.ndarray, " layer"]
) -> Float[np.ndarray, "layer layer"]:
    """[a, b]: number of head pairs (one of layer a, one of layer b) with b later, minus those with b earlier."""
    signs = np.sign(step[None, :] - step[:, None])
    member = (layer[:, None] == layers[None, :]).astype(float)
    return member.T @ signs @ member


def _layer_statistics(signs: Float[np.ndarray, "layer layer"], seed: int) -> tuple[np.ndarray, bool]:
    """Kendall's numerator under every order of the layers (exact), or under 10,000 drawn ones plus the order seen."""
    count = len(signs)
    exact = math.factorial(count) <= 5040
    if exact:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        rng = np.random.default_rng(seed)
        orders = np.array([np.arange(count), *(rng.permutation(count) for _ in range(DRAWS))])
    upper = np.triu(np.ones((count, count)), 1)
    parts = np.array_split(orders, max(1, len(orders) // 1000))  # in parts: 48 layers at once would take 200 MB
    return np.concatenate([(signs[o[:, :, None], o[:, None, :]] * upper).sum(axis=(1, 2)) for o in parts]), exact


def depth_trend(formation: pl.DataFrame, seed: int = 0) -> DepthTrend:
    """Rank correlation between layer and formation step, with a p-value from permuting the layers.

    `formation`: as from `formation_steps`, one measure; heads that did not form are left out and counted. Steps are
    the checkpoints' (heads of one bracket tie; interpolation decides nothing). Layers are permuted as wholes, since
    heads of one layer are not independent: all orders up to 7 layers, 10,000 drawn ones beyond (`seed`). The verdict
    needs p <= 0.05 one-sided, so fewer than four layers with formed heads are always `undecided`. Raises InputError:
    missing columns, several measures. Cannot tell: whether depth itself is the cause; an induction head needs an
    earlier previous-token head anyway.
    """
    for column in ("layer", "head", "formed", "step"):
        if column not in formation.columns:
            raise InputError(f"formation table: column {column!r} is missing; use the table formation_steps returns")
    if "measure" in formation.columns and formation["measure"].n_unique() > 1:
        raise InputError("formation table: holds several measures; filter it to one")
    formed = formation.filter(pl.col("formed"))
    layer, step = formed["layer"].to_numpy().astype(np.int64), formed["step"].to_numpy().astype(float)
    layers = np.unique(layer)
    counts = {"n_heads": len(layer), "n_layers": len(layers), "n_never": formation.height - formed.height}
    if len(layers) < 2 or len(np.unique(step)) < 2:
        why = "all formed heads are in one layer or formed at one checkpoint" if len(layer) else "no head formed"
        return DepthTrend("undecided", why, math.nan, math.nan, 1.0, 1.0, 1.0, **counts)
    tau, p_heads = map(float, stats.kendalltau(layer, step, alternative="greater"))
    rho = float(np.corrcoef(stats.rankdata(layer), stats.rankdata(step))[0, 1])
    signs = _pair_signs(layer, step, layers)
    drawn, exact = _layer_statistics(signs, seed)
    seen = np.triu(signs, 1).sum()
    p_later, p_earlier = float((drawn >= seen).mean()), float((drawn <= seen).mean())
    if exact and len(drawn) * ALPHA < 1:
        verdict = "undecided"
        reason = f"{len(layers)} layers with formed heads have {len(drawn)} orders: too few to decide at p <= {ALPHA}"
    elif p_later <= ALPHA:
        verdict, reason = "shallow to deep", f"tau {tau:.2f}, p {p_later:.3g} over permuted layers"
    elif p_earlier <= ALPHA:
        verdict, reason = "deep to shallow", f"tau {tau:.2f}, p {p_earlier:.3g} over permuted layers"
    else:
        verdict, reason = (
            "undecided",
            f"tau {tau:.2f} is not rare over permuted layers (p {min(p_later, p_earlier):.2g})",
        )
    return DepthTrend(verdict, reason, tau, rho, p_later, p_earlier, p_heads, **counts)


def ordered(found: list[dict[str, Any]]) -> pl.DataFrame:
    """Stages with, for each, whether it came later than the last one before it that formed."""
    out, before = [], None
    for row in found:
        since = None
        if row.get("step") is not None:
            if before is not None:
                if row["bracket_low"] >= before["step"]:
                    since = "later"
                elif row["step"] <= before["bracket_low"]:
                    since = "earlier"
                else:
                    since = "same bracket"
            before = row
        out.append({name: row.get(name) for name in ORDER_SCHEMA} | {"since_previous": since})
    return pl.DataFrame(out, schema=ORDER_SCHEMA)
