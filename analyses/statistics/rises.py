"""Curves that a rise may follow, on the log-step axis: in one stage, or in two with a plateau between them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

WIDTHS = (0.03, 0.1, 0.2, 0.35)
"""Of a stage, in ln(1 + step)."""
APART = 2.5
"""Two stages lie this many times the sum of their widths apart, or more: a plateau can be seen between them."""
MIN_SHARE = 0.2
"""Each of two stages does this share of the rise, or more."""
MAX_PLACES, MAX_PAIRS = 30, 40
"""Places that a stage may have, and pairs of stages that are weighed, in each of three passes."""
MIN_GAIN = 0.97
"""Two stages are weighed where they leave less than this share of the sum of squares that one leaves."""
FINER = 3
"""Each of two more passes looks this many times closer, around the best pair so far."""
SHARES = np.array([-0.24, -0.16, -0.08, 0.0, 0.08, 0.16, 0.24])
"""The first stage's share of the rise is not known better than noise allows, and where it may be more or less than a
half, so may half of the rise be done in either stage: these are tried beside the share that fits best."""
HALF = float(np.log(2.0))


@dataclass(frozen=True)
class Curves:
    """Candidate curves, 0 to 1, at the checkpoints."""

    centres: Float[np.ndarray, " curve"]
    """Where half of the rise is done, in ln(1 + step)."""
    widths: Float[np.ndarray, " curve"]
    weights: Float[np.ndarray, " curve"]
    """How likely each is beforehand: the length of the axis that its centre stands for."""
    values: Float[np.ndarray, "curve step"]
    stages: Float[np.ndarray, "curve 2"]
    """Where two stages have their centres; NaN for a rise in one."""

    def where(self, mask: Bool[np.ndarray, " curve"]) -> "Curves":
        return Curves(self.centres[mask], self.widths[mask], self.weights[mask], self.values[mask], self.stages[mask])

    def __add__(self, other: "Curves") -> "Curves":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Curves(*(np.concatenate(pair) for pair in pairs))


def shapes(z: Float[np.ndarray, "..."]) -> tuple[Float[np.ndarray, "..."], ...]:
    """Three rises from 0 to 1 that are half-way up at `z` = 0: even, fast at its beginning, fast at its end."""
    z = np.clip(z, -50, 50)
    return 1 / (1 + np.exp(-z)), np.exp(-HALF * np.exp(-z)), -np.expm1(-HALF * np.exp(z))


@dataclass(frozen=True)
class _Stages:
    """Logistic rises that may be one of two stages."""

    centres: Float[np.ndarray, " stage"]
    widths: Float[np.ndarray, " stage"]
    values: Float[np.ndarray, "stage step"]

    @classmethod
    def of(
        cls, x: Float[np.ndarray, " step"], centres: Float[np.ndarray, " centre"], widths: tuple[float, ...]
    ) -> "_Stages":
        """Every width at every centre."""
        centres, spread = np.repeat(centres, len(widths)), np.tile(widths, len(centres))
        return cls(centres, spread, shapes((x - centres[:, None]) / spread[:, None])[0])


@dataclass(frozen=True)
class _Pairs:
    """Two stages each, with the shares of the rise that fit best."""

    first: _Stages
    second: _Stages
    a: Int[np.ndarray, " pair"]
    b: Int[np.ndarray, " pair"]
    share: Float[np.ndarray, " pair"]
    """Of the first stage."""
    residual: Float[np.ndarray, " pair"]
    """Sum of squares that each leaves."""
    tried: int


@lru_cache(maxsize=128)
def _everywhere(places: tuple[float, ...]) -> _Stages:
    x = np.array(places)
    return _Stages.of(x, np.linspace((x[0] + x[1]) / 2, (x[-2] + x[-1]) / 2, MAX_PLACES), WIDTHS)


def _fit(
    x: Float[np.ndarray, " step"], deviations: Float[np.ndarray, " step"], first: _Stages, second: _Stages
) -> _Pairs:
    """Least squares over level and both heights, for every pair; those that are two stages, best first."""
    apart = second.centres[None, :] - first.centres[:, None] >= APART * (second.widths[None, :] + first.widths[:, None])
    # Three checkpoints or more from one to the next, and both ends of the rise seen.
    apart &= np.searchsorted(x, second.centres)[None, :] - np.searchsorted(x, first.centres)[:, None] >= 3
    apart &= (first.values[:, 0] <= 0.25)[:, None] & (second.values[:, -1] >= 0.75)[None, :]
    one, other = (part.values - part.values.mean(axis=1, keepdims=True) for part in (first, second))
    aa, bb, ab = (one**2).sum(axis=1)[:, None], (other**2).sum(axis=1)[None, :], one @ other.T
    along_a, along_b = (one @ deviations)[:, None], (other @ deviations)[None, :]
    determinant = np.maximum(aa * bb - ab**2, 1e-12)
    heights = (bb * along_a - ab * along_b) / determinant, (aa * along_b - ab * along_a) / determinant
    residual = np.maximum(deviations @ deviations - heights[0] * along_a - heights[1] * along_b, 0.0)
    total = np.maximum(heights[0] + heights[1], 1e-12)
    a, b = np.nonzero(apart & (np.minimum(*heights) >= MIN_SHARE * total))
    order = np.argsort(residual[a, b])[:MAX_PAIRS]
    a, b = a[order], b[order]
    return _Pairs(first, second, a, b, (heights[0] / total)[a, b], residual[a, b], max(int(apart.sum()), 1))


def two_stages(
    places: tuple[float, ...], deviations: Float[np.ndarray, " step"], residual: float, prior: float
) -> Curves:
    """Rises in two stages that fit better than one of one stage, which leaves `residual`; often none.

    `places`: the checkpoints, ln(1 + step); `deviations`: the values there less their mean; `prior`: weight of all
    curves of one stage together. Two stages get as much, less a factor for the height of the plateau, which is fitted.
    """
    x, everywhere = np.array(places), _everywhere(places)
    pairs = _fit(x, deviations, everywhere, everywhere)
    none = np.empty(0)
    curves = Curves(none, none, none, np.empty((0, len(x))), np.empty((0, 2)))
    weight = prior / pairs.tried / np.sqrt(len(x))
    reach, factor = (everywhere.centres[-1] - everywhere.centres[0]) / (MAX_PLACES - 1), 1.6
    for _ in range(3):
        if not len(pairs.a) or pairs.residual[0] >= MIN_GAIN * residual:
            break
        curves += _as_curves(x, pairs, weight)
        a, b = pairs.a[0], pairs.b[0]
        around = np.linspace(-reach, reach, 2 * FINER + 1)
        closer = [
            _Stages.of(
                x,
                part.centres[i] + around,
                (float(part.widths[i] / factor), float(part.widths[i]), float(part.widths[i] * factor)),
            )
            for part, i in ((pairs.first, a), (pairs.second, b))
        ]
        pairs = _fit(x, deviations, *closer)
        weight, reach, factor = weight / FINER**2 / 4, reach / FINER, factor**0.5
    return curves


def _as_curves(x: Float[np.ndarray, " step"], pairs: _Pairs, weight: float) -> Curves:
    shares = (pairs.share[:, None] + SHARES).ravel()
    a, b = np.repeat(pairs.a, len(SHARES)), np.repeat(pairs.b, len(SHARES))
    inside = (shares >= MIN_SHARE) & (shares <= 1 - MIN_SHARE)
    a, b, share = a[inside], b[inside], shares[inside]
    values = share[:, None] * pairs.first.values[a] + (1 - share)[:, None] * pairs.second.values[b]
    low, high = np.full(len(a), x[0]), np.full(len(a), x[-1])
    for _ in range(20):  # bisection
        middle = (low + high) / 2
        parts = [
            shapes((middle - part.centres[i]) / part.widths[i])[0] for part, i in ((pairs.first, a), (pairs.second, b))
        ]
        above = share * parts[0] + (1 - share) * parts[1] >= 0.5
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    stages = np.stack([pairs.first.centres[a], pairs.second.centres[b]], axis=1)
    return Curves(high, (stages[:, 1] - stages[:, 0]) / 2, np.full(len(a), weight), values, stages)
