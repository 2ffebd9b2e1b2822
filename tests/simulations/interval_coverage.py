"""How often the 95 % interval of a formation step holds the planted step: the table of docs/formation.md.

    python tests/simulations/interval_coverage.py [CURVES [SHAPE...]]
    python tests/simulations/interval_coverage.py flat [CURVES]

Plants CURVES (default 100) rises of every shape, or of those that are named, in every cell of shapes × checkpoint
grids × jitters × correlations, dates them by the rule of `analyses.formation.step_rule` and prints Markdown tables:
over jitter and correlation, shape and jitter, shape and grid. Every curve comes with prompt errors (0.01, as
`<measure>_se`); the jitter between checkpoints comes on top and is known to nobody. It is 0 to 10 times as large, and
its neighbours correlate by 0 to 0.9. `flat` plants curves without a rise instead, and counts the rises that are found.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from copyscope.analyses.formation.step_rule import MIN_LEVEL, Rise, Z, find_rise, step_noise

ERROR = 0.01
"""Standard error over prompts."""
BASE, HEIGHT = 0.03, 0.6
JITTERS = (0.0, 0.7, 1.4, 2.7, 5.0, 10.0)
CORRELATIONS = (0.0, 0.5, 0.9)
HALF = float(np.log(2.0))

Curve = Callable[[Float[np.ndarray, " step"], float], Float[np.ndarray, " step"]]
"""From ln(1 + step) and where half of the rise is done, to the share that is done."""


def _logistic(width: float) -> Curve:
    return lambda x, at: 1 / (1 + np.exp(-np.clip((x - at) / width, -50, 50)))


def _two_stages(share: float) -> Curve:
    """`share` of the rise, a plateau, and three times as late what is left of the rise."""

    def both(z: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return share * _logistic(0.08)(z, -0.55) + (1 - share) * _logistic(0.08)(z, 0.55)

    fine = np.linspace(-3, 3, 6001)
    half = fine[np.argmax(both(fine) >= 0.5)]
    return lambda x, at: both(x - at + half)


SHAPES: dict[str, Curve] = {
    "a jump": lambda x, at: (x >= at).astype(float),
    "width 0.05": _logistic(0.05),
    "width 0.15": _logistic(0.15),
    "width 0.3": _logistic(0.3),
    "width 0.6": _logistic(0.6),
    "fast, then slow": lambda x, at: np.exp(-HALF * np.exp(-np.clip((x - at) / 0.25, -5, 50))),
    "slow, then fast": lambda x, at: 1 - np.exp(-HALF * np.exp(np.clip((x - at) / 0.25, -50, 5))),
    "a straight line": lambda x, at: np.clip(0.5 + (x - at) / 1.5, 0, 1),
    "two stages, the first larger": _two_stages(0.6),
    "two stages, the second larger": _two_stages(0.4),
}


def _powers(below: int) -> list[int]:
    return [0, *(2**i for i in range(20) if 2**i < below)]


GRIDS: dict[str, tuple[list[int], tuple[float, float]]] = {
    "powers of two, then every 250 to 6,000": ([*_powers(250), *range(250, 6001, 250)], (350, 1200)),
    "powers of two, then every 100 to 2,000": ([*_powers(100), *range(100, 2001, 100)], (120, 400)),
    "every 25 to 2,000": (list(range(0, 2001, 25)), (120, 400)),
    "20 a factor of 1.7 apart": ([0, *(round(1.7**i) for i in range(1, 20))], (60, 2000)),
}
"""Checkpoints, and between which steps rises are planted: the whole rise can be seen."""


@dataclass(frozen=True)
class Cell:
    """One condition, and how its intervals fared."""

    shape: str
    grid: str
    jitter: float
    correlation: float
    rises: int
    covered: int
    """Intervals that hold the planted step, of the rises that were found."""
    factor: float
    """Median of high / low."""


def correlated(shape: tuple[int, ...], correlation: float, rng: np.random.Generator) -> Float[np.ndarray, "..."]:
    """Normal noise of variance 1 whose neighbours along the last axis correlate."""
    noise = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        noise[..., i] = correlation * noise[..., i - 1] + np.sqrt(1 - correlation**2) * noise[..., i]
    return noise


def plant(
    steps: Int[np.ndarray, " step"],
    share: Float[np.ndarray, " step"],
    jitter: float,
    correlation: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, " step"]:
    """Scores with a rise: `share` of the height, prompt errors, and jitter in units of them."""
    noise = rng.standard_normal(len(steps)) + jitter * correlated((len(steps),), correlation, rng)
    return BASE + HEIGHT * share + ERROR * noise


def measure_cell(shape: str, grid: str, jitter: float, correlation: float, curves: int, seed: int = 0) -> Cell:
    """Plants `curves` rises in one cell and dates them."""
    rng = np.random.default_rng(
        [seed, list(SHAPES).index(shape), list(GRIDS).index(grid), int(10 * jitter), int(10 * correlation)]
    )
    checkpoints, between = GRIDS[grid]
    steps = np.array(checkpoints)
    x = np.log1p(steps)
    found, covered, factors = 0, 0, []
    for _ in range(curves):
        at = rng.uniform(*np.log(between))
        rise = _dated(steps, plant(steps, SHAPES[shape](x, at), jitter, correlation, rng))
        if rise is not None:
            found += 1
            covered += int(rise.low <= np.expm1(at) <= rise.high)
            factors.append(rise.high / max(rise.low, 0.5))
    return Cell(shape, grid, jitter, correlation, found, covered, float(np.median(factors)) if factors else np.nan)


def _dated(steps: Int[np.ndarray, " step"], value: Float[np.ndarray, " step"]) -> Rise | None:
    excess = value - max(value[0], BASE)
    level = max(Z * step_noise(value), MIN_LEVEL * (1 - BASE))
    return find_rise(steps, excess, level, errors=np.full(len(steps), ERROR))


def false_rises(curves: int, jitter: float, correlation: float) -> tuple[int, int]:
    """Of `curves` curves without a rise on each grid: how many are said to have one, and of how many."""
    rng = np.random.default_rng([int(10 * jitter), int(10 * correlation)])
    grids = [np.array(checkpoints) for checkpoints, _ in GRIDS.values()]
    flat = [_dated(s, plant(s, np.zeros(len(s)), jitter, correlation, rng)) for s in grids for _ in range(curves)]
    return sum(rise is not None for rise in flat), len(flat)


def every_cell(curves: int, shapes: Iterable[str] = tuple(SHAPES)) -> Iterator[Cell]:
    """All cells of the table, in order."""
    for shape in shapes:
        for grid in GRIDS:
            for jitter in JITTERS:
                for correlation in CORRELATIONS if jitter else (0.0,):
                    yield measure_cell(shape, grid, jitter, correlation, curves)


def table(cells: list[Cell], row: str, column: str) -> str:
    """Share of intervals that hold the truth, as a Markdown table of two of the conditions."""
    counts: dict[tuple[object, object], list[int]] = defaultdict(lambda: [0, 0])
    for cell in cells:
        counts[getattr(cell, row), getattr(cell, column)][0] += cell.covered
        counts[getattr(cell, row), getattr(cell, column)][1] += cell.rises
    rows, columns = (list(dict.fromkeys(key[i] for key in counts)) for i in (0, 1))
    lines = [f"| {row} \\ {column} | " + " | ".join(map(str, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in rows:
        shares = (counts.get((name, other), [0, 0]) for other in columns)
        lines.append(f"| {name} | " + " | ".join(f"{a / b:.3f}" if b else "" for a, b in shares) + " |")
    return "\n".join(lines)


def main(curves: int, shapes: Iterable[str]) -> None:
    """Prints the tables."""
    cells = list(every_cell(curves, shapes))
    rises = sum(cell.rises for cell in cells)
    print(
        f"{rises:,} rises found of {curves * len(cells):,} planted; {sum(c.covered for c in cells) / rises:.1%} of "
        "their intervals hold the planted step.\n"
    )
    for row, column in (("jitter", "correlation"), ("shape", "jitter"), ("shape", "grid")):
        print(table(cells, row, column), end="\n\n")
    factors = (np.nanmedian([cell.factor for cell in cells if cell.jitter == jitter]) for jitter in JITTERS)
    print("Median of high / low, by jitter: " + ", ".join(f"{factor:.2f}" for factor in factors))


def main_flat(curves: int) -> None:
    """Prints the false rises by jitter and correlation."""
    for jitter in JITTERS:
        for correlation in CORRELATIONS if jitter else (0.0,):
            false, tried = false_rises(curves, jitter, correlation)
            print(
                f"jitter {jitter}, correlation {correlation}: {false} of {tried:,} flat curves have a rise", flush=True
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["flat"]:
        main_flat(int(sys.argv[2]) if len(sys.argv) > 2 else 100)
        raise SystemExit
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, sys.argv[2:] or SHAPES)
