"""Tables of a run that never was, with planted formation steps: like a real run's tables, with known answers."""

from typing import NamedTuple

import numpy as np
import polars as pl

TOKENS_PER_STEP = 2048


class SyntheticRun(NamedTuple):
    heads: pl.DataFrame
    model: pl.DataFrame
    metrics: pl.DataFrame
    ablations: pl.DataFrame
    planted: dict[tuple[str, int, int], int]
    """(measure, layer, head) to the step at which its curve passes half-way."""


def checkpoint_steps(count: int = 40, every: int = 250) -> list[int]:
    """0, 1, 2, 4, … up to below `every`, then every `every`; `count` in all."""
    steps = [0, *(2**i for i in range(20) if 2**i < every)]
    return steps + [every * (i + 1) for i in range(count - len(steps))]


def rise(steps: np.ndarray, at: float, width: float = 0.25) -> np.ndarray:
    """A smooth 0 → 1 rise on the log(1 + step) axis, half-way at `at`."""
    return 1 / (1 + np.exp(-(np.log1p(steps) - np.log1p(at)) / width))


def series_table(values: dict[tuple[int, int], np.ndarray], steps: list[int], measure: str) -> pl.DataFrame:
    """A heads table from one curve a head."""
    rows = [
        ("planted", step, step * TOKENS_PER_STEP, layer, head, measure, float(value))
        for (layer, head), curve in values.items()
        for step, value in zip(steps, curve, strict=True)
    ]
    return pl.DataFrame(rows, schema=["run", "step", "tokens", "layer", "head", "measure", "value"], orient="row")


def model_table(curves: dict[str, np.ndarray], steps: list[int]) -> pl.DataFrame:
    """A model table from one curve a measure."""
    rows = [
        ("planted", step, step * TOKENS_PER_STEP, measure, float(value))
        for measure, curve in curves.items()
        for step, value in zip(steps, curve, strict=True)
    ]
    return pl.DataFrame(rows, schema=["run", "step", "tokens", "measure", "value"], orient="row")


def synthetic_run(layers: int = 4, heads: int = 4, seed: int = 0, count: int = 40) -> SyntheticRun:
    """Previous-token heads in layer 1, induction heads two and three layers up, copying after them."""
    rng = np.random.default_rng(seed)
    steps = checkpoint_steps(count)
    at = np.array(steps, dtype=float)
    planted = {
        ("previous_token", 1, 2): 700,
        ("previous_token", 1, 0): 1200,
        ("prefix_matching_sum", 2, 1): 1600,
        ("prefix_matching_sum", 3, 0): 2300,
        ("prefix_matching_sum", 3, 3): 3600,
    }
    tables = []
    for measure, top in (("previous_token", 0.95), ("prefix_matching_sum", 0.8), ("duplicate_token", 0.1)):
        curves, nulls = {}, {}
        for layer in range(layers):
            for head in range(heads):
                when = planted.get((measure, layer, head))
                base = np.full(len(at), 0.02) + 0.02 * rng.random() * rise(at, 100)
                goal = 0.0 if when is None else top * rng.uniform(0.7, 1) * rise(at, when)
                curves[layer, head] = np.clip(base + goal + 0.004 * rng.normal(size=len(at)), 0, 1)
                nulls[layer, head] = np.clip(0.02 + 0.001 * rng.normal(size=len(at)), 0, 1)
        tables += [series_table(curves, steps, measure), series_table(nulls, steps, f"{measure}_null")]
        lift = {name: curve / 0.02 for name, curve in curves.items()}
        tables.append(series_table(lift, steps, f"{measure}_selectivity"))
        if measure == "prefix_matching_sum":
            signed = {name: curve * (0.9 if name[0] > 1 else -0.8) for name, curve in curves.items()}
            tables.append(series_table(signed, steps, "induction_score"))
    first = 7.6 + 2.5 * rise(at, 60) + 0.02 * rng.normal(size=len(at))
    saved = 0.55 * first * rise(at, 2600)
    token = 0.6 * rise(at, 4200, 0.12)
    model = model_table(
        {
            "copying_accuracy_token": token,
            "copying_accuracy_exact": token**3,
            "copying_loss_first": first,
            "copying_loss_second": first - saved,
            "copying_loss_difference": -saved,
            "icl_score": -0.4 * rise(at, 1500),
            "natural_loss": 7.6 - 4.4 * rise(at, 150, 0.9),
        },
        steps,
    )
    every = np.arange(0, steps[-1] + 1, 10)
    loss = 7.6 - 4.4 * rise(every, 150, 0.9)
    metrics = pl.DataFrame(
        {
            "step": every,
            "tokens": every * TOKENS_PER_STEP,
            "loss": loss + 0.1 * rng.normal(size=len(every)),
            "validation_loss": [float(v) if s % 250 == 0 else None for s, v in zip(every, loss, strict=True)],
            "lr": np.full(len(every), 1e-3),
            "grad_norm": np.ones(len(every)),
        }
    )
    return SyntheticRun(pl.concat(tables), model, metrics, ablation_table(layers, heads, steps[-1], rng), planted)


def ablation_table(layers: int, heads: int, step: int, rng: np.random.Generator) -> pl.DataFrame:
    """Zero ablations at one step: the planted heads matter, the others hardly."""
    matters = {(1, 2): 0.5, (2, 1): 0.25, (3, 0): 0.35, (3, 3): 0.1}
    effect = {
        (layer, head): matters.get((layer, head), 0.0) + 0.01 * rng.normal()
        for layer in range(layers)
        for head in range(heads)
    }
    rows = []
    for (layer, head), size in effect.items():
        others = [value for (other, h), value in effect.items() if other == layer and h != head]
        matched = [value for other, value in effect.items() if other != (layer, head) and other[1] == head]
        controls = {"control": others, "matched": matched}
        for measure, factor in (("copying_accuracy_token", -1), ("copying_loss", 4), ("natural_loss", 0.5)):
            means = {f"{measure}_{kind}": float(np.mean(of)) if of else 0.0 for kind, of in controls.items()}
            for name, value in {measure: size, **means}.items():
                rows.append(("planted", step, step * TOKENS_PER_STEP, layer, head, "zero", name, factor * value))
    schema = ["run", "step", "tokens", "layer", "head", "method", "measure", "value"]
    return pl.DataFrame(rows, schema=schema, orient="row")
