"""The numbers of one run as the page takes them: matrices of scores and effects, curves, formation, pairs of heads."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float32

from copyscope.analyses.formation.nulls import above_null
from copyscope.analyses.words.glossary import is_calibration
from copyscope.analyses.words.json_values import number

FORMING = (
    "previous_token",
    "duplicate_token",
    "induction_attention",
    "prefix_matching_sum",
    "prefix_matching_mean",
    "induction_score",
)
"""Measures of which it makes sense to ask when a head formed."""
MAX_PAIRS = 40
"""Pairs of heads a step in the circuit graph."""
LOGGED = {"train_loss": "loss", "validation_loss": "validation_loss", "lr": "lr", "grad_norm": "grad_norm"}
MAX_POINTS = 600
"""Points of a curve of training; more are drawn as medians of short stretches."""


class Grid(NamedTuple):
    """Which rows and columns the matrices of a run have."""

    steps: list[int]
    n_layers: int
    n_heads: int

    def matrix(self, rows: pl.DataFrame, steps: Sequence[int] | None = None) -> Float32[np.ndarray, "step head"]:
        """The values of a table of one measure (step, layer, head, value); NaN where there is none."""
        steps = self.steps if steps is None else steps
        out = np.full((len(steps), self.n_layers * self.n_heads), np.nan, dtype=np.float32)
        place = {step: i for i, step in enumerate(steps)}
        rows = rows.filter(pl.col("step").is_in(list(steps))).drop_nulls(["layer", "head", "value"])
        at = [place[step] for step in rows["step"].to_list()]
        out[at, (rows["layer"] * self.n_heads + rows["head"]).to_numpy()] = rows["value"].to_numpy()
        return out


def grid_of(heads: pl.DataFrame, gaps: Iterable[int] = ()) -> Grid:
    """The grid of a run's table of heads, with a row of no values for each of `gaps` that lies between its steps."""
    steps = set(heads["step"].to_list())
    steps = sorted(steps | {step for step in gaps if min(steps) < step < max(steps)})
    return Grid(steps, int(heads["layer"].max()) + 1, int(heads["head"].max()) + 1)  # type: ignore[arg-type]


def as_bytes(matrix: Float32[np.ndarray, "step head"]) -> bytes:
    """Little-endian float32, row by row."""
    return matrix.astype("<f4").tobytes()


def score_measures(heads: pl.DataFrame) -> list[str]:
    """Measures of heads that are no calibration of another; those that form come first."""
    present = [m for m in sorted(set(heads["measure"].to_list())) if not is_calibration(m)]
    return [m for m in FORMING if m in present] + [m for m in present if m not in FORMING]


def calibrations(heads: pl.DataFrame) -> list[str]:
    """The nulls, selectivities and standard errors, where the table has them, of the measures that form."""
    present = set(heads["measure"].to_list())
    return [
        f"{measure}_{kind}"
        for measure in FORMING
        for kind in ("null", "selectivity", "se")
        if f"{measure}_{kind}" in present
    ]


def significant(heads: pl.DataFrame, grid: Grid) -> dict[str, list[int]]:
    """By measure: the heads (layer × n_heads + head) whose corrected p is at most 0.05 at the last step."""
    out: dict[str, list[int]] = {m: [] for m in score_measures(heads) if (heads["measure"] == f"{m}_p").any()}
    for row in above_null(heads).iter_rows(named=True):
        if row["measure"] in out:
            out[row["measure"]].append(row["layer"] * grid.n_heads + row["head"])
    return {measure: sorted(above) for measure, above in out.items()}


def curves(model: pl.DataFrame, metrics: pl.DataFrame) -> dict[str, dict[str, list[Any] | None]]:
    """Every curve of the run: of training from metrics.jsonl, then every measure of the model with its error."""
    out: dict[str, dict[str, list[Any] | None]] = {}
    for name, column in LOGGED.items():
        rows = metrics.drop_nulls(column) if column in metrics.columns else metrics.clear()
        if not rows.is_empty():
            rows = _thinned(rows.select("step", column), column)
            out[name] = {"steps": rows["step"].to_list(), "values": finite(rows[column]), "se": None}
    for measure in sorted(m for m in set(model["measure"].to_list()) if not is_calibration(m)):
        rows = model.filter(pl.col("measure") == measure).sort("step")
        error = model.filter(pl.col("measure") == f"{measure}_se").select("step", se="value")
        rows = rows.join(error, on="step", how="left").sort("step")
        errors = None if error.is_empty() else finite(rows["se"])
        out[measure] = {"steps": rows["step"].to_list(), "values": finite(rows["value"]), "se": errors}
    return out


def finite(values: pl.Series) -> list[Any]:
    """With six digits; null for what is no number."""
    return [number(value, 6) for value in values.to_list()]


def _thinned(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """At most about `MAX_POINTS` points, evenly spread along the log axis, each the median of its stretch."""
    rows = rows.sort("step")
    if rows.height <= MAX_POINTS:
        return rows
    at = np.log1p(rows["step"].to_numpy().astype(float))
    stretch = pl.Series("stretch", np.floor(at / max(at[-1], 1e-9) * MAX_POINTS).astype(np.int64))
    groups = rows.with_columns(stretch).group_by("stretch")
    return groups.agg(pl.col("step").last(), pl.col(column).median()).sort("step").select("step", column)


def effects(ablations: pl.DataFrame, grid: Grid, prefix: str) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """Effects of removing heads: entries by `method:measure`, and the blocks they name, which begin with `prefix`.

    `control` names the block of the mean effect of the layer's other heads, `matched` that of heads of like attention
    entropy, `se` that of the effect's standard error over contexts; null where there is none.
    """
    entries: dict[str, dict[str, Any]] = {}
    blocks: dict[str, bytes] = {}
    rows = ablations.drop_nulls(["layer", "head"])
    parts = {f"{method}:{measure}": part for (method, measure), part in rows.group_by("method", "measure")}
    for name, part in sorted(parts.items()):
        if is_calibration(name) or name.endswith((":control_heads", ":matched_heads")):
            continue
        steps = sorted(set(part["step"].to_list()))
        entries[name] = {"steps": steps, "block": prefix + name}
        blocks[prefix + name] = as_bytes(grid.matrix(part, steps))
        for kind in ("control", "matched", "se"):
            effect = parts.get(f"{name}_{kind}")
            entries[name][kind] = None if effect is None else f"{prefix}{name}_{kind}"
            if effect is not None:
                blocks[f"{prefix}{name}_{kind}"] = as_bytes(grid.matrix(effect, steps))
    return entries, blocks


def pairs(table: pl.DataFrame, paths: pl.DataFrame | None, grid: Grid, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The strongest pairs of an earlier and a later head at `steps`, `MAX_PAIRS` a step, strongest first.

    By the path score where it was computed, else by K-composition. `effect`: change of the copying loss when the path
    is cut (`copyscope ablate --what paths`), null where it was not.
    """
    keys = ["step", "source_layer", "source_head", "layer", "head"]
    rows = table.filter(pl.col("step").is_in(list(steps)))
    wide = rows.pivot("measure", index=keys, values="value")
    by = "path_score" if "path_score" in wide.columns else "k_composition"
    if wide.is_empty() or by not in wide.columns:
        return []
    if paths is not None and {*keys, "copying_loss"} <= set(paths.columns):
        cut = paths.group_by(keys).agg(effect=pl.col("copying_loss").first())
        wide = wide.join(cut, on=keys, how="left")
    out = []
    for (_,), part in wide.group_by("step", maintain_order=True):
        for row in part.sort(by, descending=True, nulls_last=True).head(MAX_PAIRS).iter_rows(named=True):
            out.append(
                {
                    "step": row["step"],
                    "earlier": row["source_layer"] * grid.n_heads + row["source_head"],
                    "later": row["layer"] * grid.n_heads + row["head"],
                    "k_composition": number(row.get("k_composition"), 4),
                    "path_score": number(row.get("path_score"), 4),
                    "effect": number(row.get("effect"), 4),
                }
            )
    return sorted(out, key=lambda pair: pair["step"])
