"""A scored run on disk whose tables are planted: no model is trained, and its checkpoints count as taken away."""

import json
from pathlib import Path

import numpy as np
import polars as pl
from synthetic_run import checkpoint_steps, model_table, rise, series_table

from copyscope.analyses.tables.stored import SCORES_VERSION
from copyscope.training.config import RunConfig

STEPS = checkpoint_steps(40)
AT = np.array(STEPS, dtype=float)


FACTS = {"computed_with": json.dumps({"version": SCORES_VERSION})}
"""Metadata of a table that was scored by today's definitions."""


def config(**values: object) -> RunConfig:
    plain = {"train.steps": STEPS[-1], "checkpoints.every": 250, "checkpoints.keep": "none", "data.vocab_size": 500}
    return RunConfig().with_values(plain | values)


def write_run(
    folder: Path, settings: RunConfig, copies_at: float, settles_at: float = 150.0, top: float = 0.6, seed: int = 0
) -> Path:
    """Copying per token surges at `copies_at`; a previous-token head long before, an induction head a layer shortly
    before, deeper ones later; the loss settles at about five times `settles_at`."""
    rng = np.random.default_rng(seed)
    heads = {(layer, 0): 0.02 + 0.85 * rise(AT, copies_at * (0.5 + 0.1 * layer), 0.05) for layer in range(1, 5)}
    heads |= {(layer, 1): np.full(len(AT), 0.02) for layer in range(5)}
    heads = {name: np.clip(curve + 0.005 * rng.normal(size=len(AT)), 0, 1) for name, curve in heads.items()}
    previous = {name: np.full(len(AT), 0.02) for name in heads}
    previous[0, 1] = 0.02 + 0.9 * rise(AT, copies_at * 0.25, 0.05)
    token = np.clip(top * rise(AT, copies_at, 0.1) + 0.01 * rng.normal(size=len(AT)), 0, 1)
    first = np.full(len(AT), 7.0)
    loss = 2 + 5 * np.exp(-AT / settles_at)
    model = model_table(
        {
            "copying_accuracy_token": token,
            "copying_accuracy_exact": token**3,
            "copying_loss_first": first,
            "copying_loss_second": 7 - 5 * rise(AT, 0.9 * copies_at, 0.1),
            "copying_loss_difference": -5 * rise(AT, 0.9 * copies_at, 0.1),
            "icl_score": -0.3 * rise(AT, copies_at),
            "natural_loss": loss,
        },
        STEPS,
    )
    table = pl.concat(
        [series_table(heads, STEPS, "prefix_matching_sum"), series_table(previous, STEPS, "previous_token")]
    )
    for kind, rows in (("heads", table), ("model", model)):
        (folder / "results" / kind).mkdir(parents=True)
        for (step,), part in rows.with_columns(run=pl.lit(folder.name)).group_by("step"):
            part.write_parquet(folder / "results" / kind / f"step{step:08}.parquet", metadata=FACTS)
    (folder / "config.toml").write_text(settings.to_toml())
    every = np.arange(0, STEPS[-1] + 1, 50)
    losses = 2 + 5 * np.exp(-every / settles_at)
    lines = [
        {"step": int(s), "tokens": int(s) * 2048, "validation_loss": v} for s, v in zip(every, losses, strict=True)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder
