"""Weights of a made-up training run: noisy descent into a valley that moves."""

from collections.abc import Sequence

import numpy as np

SIZE = 1000
EVEN = list(range(0, 600, 50))
LOGS = [0, 1, 2, 4, 8, 16, 32, 64, 100, 200, 300, 400, 500, 600]
KINDS: dict[str, dict[str, float]] = {
    "random walk": {},
    "drift": {"drift": 0.03},
    "drift, long warm-up": {"warm": 600, "drift": 0.03},
    "wide valley": {"pull": 0.003},
    "valley, decay": {"pull": 0.02, "cool": 100},
    "moving valley, warm-up, decay": {"drift": 0.003, "pull": 0.02, "warm": 100, "cool": 200},
    "noise about a point": {"pull": 0.2},
    "noise, sudden decay": {"pull": 0.2, "cool": 30},
}


def simulated_path(
    steps: Sequence[int], seed: int, pull: float = 0.0, drift: float = 0.0, warm: float = 0, cool: float = 0
) -> np.ndarray:
    """Weights at `steps`, [step, SIZE]: a random walk that a valley not far from its start draws back by `pull` and
    carries along by `drift`. The rate of all rises over the first `warm` steps and falls to a tenth over the last
    `cool`."""
    draw = np.random.default_rng(seed)
    weights = draw.normal(size=SIZE)
    valley = weights + 0.2 * draw.normal(size=SIZE)
    way = draw.normal(size=SIZE)
    saved, now = [], 0
    for step in steps:
        for at in range(now, step):
            rate = min(1.0, (at + 1) / max(1, warm)) * max(0.1, min(1.0, (steps[-1] - at) / max(1, cool)))
            valley = valley + rate * drift * way
            weights = weights + rate * (0.05 * draw.normal(size=SIZE) - pull * (weights - valley))
        now = step
        saved.append(weights)
    return np.array(saved)
