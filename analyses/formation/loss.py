"""When the loss had settled: a rule without a scale, which what happens later does not move."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from copyscope.training.errors import InputError

SHARE = 0.05
"""The loss has settled where the next doubling of the steps brings less than this share of the fall so far."""
MIN_FALL = 0.5
"""It has not settled before it did this share of the fall from its first value to its lowest: an early plateau, such as
that of learning how frequent tokens are, is not the end of the fall."""
NEAR = 0.2
"""Half-width in ln(1 + step) of the running median that smooths the loss: as wide, in proportion, early and late."""
MAX_ROWS = 600
"""More losses than this are first taken together in stretches of 2 % of the step."""
DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class LossSettled:
    """When the loss had settled."""

    step: int | None
    """First measured step at which it had; None if it had not by half of the last step."""
    tokens: int | None
    bracket_low: int | None
    """The measured step before: the true one lies between the two."""
    low: float | None
    """95 % bootstrap interval over the noise of neighbouring losses, in steps; it always holds the bracket."""
    high: float | None
    level: float | None
    """The smoothed loss there, in nats."""
    start: float
    lowest: float
    share: float
    source: str
    """`validation_loss`, or `loss` (of training)."""
    last: int
    """Last measured step; settling can be seen up to half of it."""


def loss_settled(metrics: pl.DataFrame, share: float = SHARE) -> LossSettled:
    """First measured step s from which to 2 s the loss falls by less than `share` of what it had fallen by s.

    `metrics`: step, tokens, loss, validation_loss (nats; null where not measured). Validation loss if measured three
    times or more, else the training loss, each smoothed by a running median over the steps within a fifth to either
    side; between measured steps the curve is a straight line on the log-step axis. The rule is the same in any unit of
    loss and of steps, and looks at nothing after 2.4 s (but that at least half of the whole fall must be done), so that
    training longer, or a learning rate let down at the end, does not move the answer. Raises InputError: missing
    columns, duplicate steps, NaN, fewer than three measurements, share outside (0, 1). Cannot tell: whether the loss
    falls again later, as it does when a new skill or a smaller learning rate comes.
    """
    if not 0 < share < 1:
        raise InputError(f"share={share}: use a number between 0 and 1, such as 0.05")
    rows, source = _losses(metrics)
    steps, raw = rows["step"].to_numpy().astype(float), rows[source].to_numpy().astype(float)
    windows = _windows(np.log1p(steps))
    curve = _median(raw[:, None], windows)
    index = int(_settled(steps, curve, share)[0])
    facts = {
        "start": float(raw[0]),
        "lowest": float(raw.min()),
        "share": share,
        "source": source,
        "last": int(steps[-1]),
    }
    if index < 0:
        return LossSettled(step=None, tokens=None, bracket_low=None, low=None, high=None, level=None, **facts)
    noise = np.random.default_rng(0).standard_normal((len(raw), DRAWS)) * (raw[:, None] - curve)
    draws = _settled(steps, _median(curve + noise, windows), share)
    # A draw that never settles did so after the last step that could show it.
    at = np.where(draws < 0, steps[-1] / 2, steps[draws])
    before = max(index - 1, 0)
    row = rows.row(index, named=True)
    return LossSettled(
        step=row["step"],
        tokens=row["tokens"],
        bracket_low=int(steps[before]),
        low=float(min(np.quantile(at, 0.025), steps[before])),
        high=float(max(np.quantile(at, 0.975), steps[index])),
        level=float(curve[index, 0]),
        **facts,
    )


def _losses(metrics: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """The measured rows, checked, and which loss they hold."""
    for column in ("step", "tokens"):
        if column not in metrics.columns:
            raise InputError(f"metrics table: column {column!r} is missing")
    source = "validation_loss"
    rows = metrics.drop_nulls(source).sort("step") if source in metrics.columns else metrics.clear()
    if rows.height < 3:
        source = "loss"
        rows = metrics.drop_nulls(source).sort("step") if source in metrics.columns else metrics.clear()
    if rows.height < 3:
        raise InputError("metrics table: fewer than three measured losses; train for longer or log more often")
    double = rows.filter(pl.col("step").is_duplicated())
    if not double.is_empty():
        raise InputError(f"metrics table: step {double['step'][0]} is there twice; keep the last line of each step")
    bad = rows.filter(~pl.col(source).is_finite())
    if not bad.is_empty():
        raise InputError(
            f"metrics table: {source} is not a number at step {bad['step'][0]}; the training diverged there"
        )
    if rows.height > MAX_ROWS:
        stretch = (pl.col("step").cast(pl.Float64).log1p() / 0.02).floor().alias("stretch")
        rows = rows.group_by(stretch).agg(pl.col("step", "tokens").last(), pl.col(source).median()).sort("step")
    return rows, source


def _windows(x: Float[np.ndarray, " step"]) -> list[slice]:
    """The points around each that lie within `NEAR`, as many on one side as on the other: a straight line stays one."""
    left, right = np.searchsorted(x, x - NEAR), np.searchsorted(x, x + NEAR, side="right")
    at = np.arange(len(x))
    reach = np.minimum(at - left, right - 1 - at)
    return [slice(i - r, i + r + 1) for i, r in enumerate(reach)]


def _median(values: Float[np.ndarray, "step draw"], windows: list[slice]) -> Float[np.ndarray, "step draw"]:
    return np.stack([np.median(values[window], axis=0) for window in windows])


def _settled(steps: Float[np.ndarray, " step"], curves: Float[np.ndarray, "step draw"], share: float) -> np.ndarray:
    """Index of the settling step of each curve (column); -1 where it did not settle."""
    doubled = 2 * steps
    x, wanted = np.log1p(steps), np.log1p(doubled)
    right = np.clip(np.searchsorted(x, wanted), 1, len(x) - 1)
    part = ((wanted - x[right - 1]) / (x[right] - x[right - 1]))[:, None]
    later = curves[right - 1] + part * (curves[right] - curves[right - 1])
    so_far = curves[0] - curves
    settled = (curves - later < share * so_far) & (so_far >= MIN_FALL * (curves[0] - curves.min(axis=0)))
    settled &= ((steps > 0) & (doubled <= steps[-1]))[:, None] & (so_far > 0)
    return np.where(settled.any(axis=0), settled.argmax(axis=0), -1)
