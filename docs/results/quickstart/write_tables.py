"""Writes what this folder holds of the demo's run anew, and docs/demo.html, from the folder of a run.

    python docs/results/quickstart/write_tables.py runs/demo

README.md and recipe.md are written by hand, induction.png by docs/induction.md; story.png is a picture of the run's
figures/story.html, which is drawn here too.
"""

import shutil
import sys
from pathlib import Path

import polars as pl

from copyscope.analyses.figures.maps import map_formation
from copyscope.analyses.page.report import report
from copyscope.analyses.tables.averages import ACCURACY, AVERAGED, with_averages
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, scored_table
from copyscope.analyses.tables.summary import summary_lines

HERE = Path(__file__).parent
KEPT = (
    "best_offset",
    "best_offset_attention",
    "eigenvalue_positivity_folded",
    "induction_attention",
    "induction_score",
    "prefix_matching_sum",
    "prefix_matching_sum_null",
    "previous_token",
    "previous_token_null",
)
"""Of heads' measures; all of them at all checkpoints would be a megabyte and more."""


def write_tables(folder: Path) -> None:
    """Of the run in `folder`, which is scored, ablated and averaged: tables with 4 or 5 digits, summary, page."""
    run = open_run(folder)
    shutil.copyfile(folder / "config.toml", HERE / "config.toml")
    map_formation(folder, formats=["html"], story=True)
    shutil.copyfile(folder / "results" / "formation.json", HERE / "formation.json")
    by_head = ["measure", "step", "layer", "head"]
    _write(run.heads.drop("run").filter(pl.col("measure").is_in(KEPT)).sort(by_head), "heads.csv", 4)
    _write(_model(run).sort("measure", "step"), "model.csv", 5)
    ablations = scored_table(run, "ablations").drop("run")
    _write(ablations.sort("step", "layer", "head", "method", "measure"), "ablations.csv", 5)
    (HERE / "summary.txt").write_text("".join(f"- {line}\n" for line in summary_lines(run)))
    report(folder, out=HERE.parents[1] / "demo.html")


def _model(run: Run) -> pl.DataFrame:
    """The model's table, with the copying accuracies of the means of weights beside those of the checkpoints."""
    model = with_averages(run, run.model, (ACCURACY, "copying_accuracy_greedy"))
    if AVERAGED not in model["measure"]:
        raise SystemExit(f"{run.folder}: no scored means of its weights; run `copyscope demo`")
    return model.drop("run")


def _write(table: pl.DataFrame, name: str, digits: int) -> None:
    table.write_csv(HERE / name, float_precision=digits)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
