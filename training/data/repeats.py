"""What induction could be worth in a window of tokens. Without torch, so that a page can use it."""

import numpy as np
from jaxtyping import Float, Shaped


def repeat_value(
    sequences: Shaped[np.ndarray, "window pos_plus_1"], surprisal: Float[np.ndarray, "window pos"] | None = None
) -> Float[np.ndarray, "window"]:
    """What induction could be worth in each sequence: summed `surprisal` (None: 1 each) of the tokens that end a pair
    of adjacent tokens which already stood earlier in the sequence. In nats; at least 0."""
    pairs = sequences[:, :-1].astype(np.int64) << 32 | sequences[:, 1:]
    order = pairs.argsort(axis=1, kind="stable")  # equal pairs side by side, the earliest first
    ranked = np.take_along_axis(pairs, order, axis=1)
    seen = np.zeros(pairs.shape, dtype=bool)
    np.put_along_axis(seen, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    weights = np.ones(pairs.shape) if surprisal is None else surprisal.astype(np.float64)
    return (weights * seen).sum(axis=1)
