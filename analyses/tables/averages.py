"""The scored means of a run's weights in the figures and words about the run. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, scored_table
from copyscope.training.checkpoints.average import ABOUT, average_folder, is_mean_of
from copyscope.training.errors import InputError
from copyscope.training.files import MANIFEST

ACCURACY = "copying_accuracy_token"
AVERAGED = f"{ACCURACY}_averaged"
"""Name of the means' copying accuracy among the measures of the run."""


def averaged(run: Run) -> Run | None:
    """The scored means of this very run, where it has them; None where not, or of other checkpoints."""
    folder = average_folder(run.folder)
    if not (folder / ABOUT).is_file() or not any((folder / "results" / "model").glob("step*.parquet")):
        return None
    means = open_run(folder)
    by_step = {checkpoint.step: checkpoint for checkpoint in run.series.checkpoints}
    for checkpoint in means.series.checkpoints:
        part = by_step.get(checkpoint.step)
        if part is None or not (Path(checkpoint.path) / MANIFEST).is_file():
            return None
        if not is_mean_of(Path(checkpoint.path), part):
            return None
    return means


def with_averages(run: Run, model: pl.DataFrame, measures: Sequence[str] = (ACCURACY,)) -> pl.DataFrame:
    """The run's model table, with these measures of the means as `…_averaged` (`AVERAGED`) where they were scored."""
    try:
        means = averaged(run)
        if means is None:
            return model
        rows = scored_table(means, "model")
    except InputError:  # damaged, say: this curve is left out; asking for the means themselves raises the error
        return model
    names = {f"{measure}{end}": f"{measure}_averaged{end}" for measure in measures for end in ("", "_se")}
    rows = rows.filter(pl.col("measure").is_in(list(names))).with_columns(pl.col("measure").replace(names))
    return pl.concat([model, rows.select(model.columns).cast(dict(model.schema))])  # type: ignore[arg-type]
