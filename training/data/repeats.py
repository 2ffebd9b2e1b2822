"""What induction could be worth in a window of tokens. Without torch, so that a page can use it."""

import numpy as np
from jaxtyping import Bool, Float, Shaped


def pair_occurred_earlier(sequences: Shaped[np.ndarray, "window pos_plus_1"]) -> Bool[np.ndarray, "window pos"]:
    """Which next tokens a perfect induction head could get right: entry p says whether the pair of tokens p, p + 1
    occurred earlier in the sequence."""
    pairs = sequences[:, :-1].astype(np.int64) << 32 | sequences[:, 1:]
    order = pairs.argsort(axis=1, kind="stable")  # equal pairs side by side, the earliest first
    ranked = np.take_along_axis(pairs, order, axis=1)
    earlier = np.zeros(pairs.shape, dtype=bool)
    np.put_along_axis(earlier, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return earlier


def repeat_value(
    sequences: Shaped[np.ndarray, "window pos_plus_1"], surprisal: Float[np.ndarray, "window pos"] | None = None
) -> Float[np.ndarray, " window"]:
    """What induction could be worth in each sequence: summed `surprisal` (None: 1 each) of the tokens that end a pair
    of adjacent tokens which already stood earlier in the sequence. In nats; at least 0."""
    earlier = pair_occurred_earlier(sequences)
    weights = np.ones(earlier.shape) if surprisal is None else surprisal.astype(np.float64)
    return (weights * earlier).sum(axis=1)
