"""Judges the studies of this folder again by the present rules, from the tables that are kept here.

    python docs/results/judge_again.py [FOLDER...]

Copying is dated from `curves.csv`, which holds it at every checkpoint; what follows from it (runs.csv, verdicts,
figure) is written anew. Steps of single heads stay as they are in `heads.csv`: of the heads' curves only the highest
was kept, so they cannot be dated again. Of single runs (laptop, batch32, three-layers) all curves of the scores were
kept, and formation.json is written anew; of the loss, when it had settled. Studies of forks (commitment, window) are
judged from runs.csv alone, which has a row a fork with its first induction head, dated as it was. `settling` is not
judged again: when its loss settled is told from losses between checkpoints, which are not kept. Nothing is trained.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.claims.evidence import COPYING, COPYING_LOSS, CopyingStep, Evidence
from copyscope.analyses.claims.factors import flat
from copyscope.analyses.formation.copying import copying_formation
from copyscope.analyses.formation.emergence import copying_beside, emergence
from copyscope.analyses.formation.heads import first_formed, formation_json
from copyscope.analyses.formation.loss import LossSettled
from copyscope.analyses.formation.order import ordered
from copyscope.analyses.formation.step_text import step_text
from copyscope.analyses.studies import OF_FORKS
from copyscope.analyses.studies.evidence import MODEL_CURVES, StudyRun
from copyscope.analyses.studies.forked import SCHEMA
from copyscope.analyses.studies.study import write_forks, write_study
from copyscope.analyses.tables.run import COMMON_SHARE
from copyscope.analyses.words.json_values import plain
from copyscope.training.config import RunConfig
from copyscope.training.files import write_json
from copyscope.training.schedule import learning_rate
from copyscope.training.sweeps.driver import Outcome
from copyscope.training.sweeps.plan import PlannedRun
from copyscope.training.sweeps.worker import FINISHED, Status

HERE = Path(__file__).parent
STUDY_OF = {"batch-size-dictionary": "batch-size", "corpus-long": "corpus", "seeds-short": "seeds"}
"""Folders that are not called after their study."""
STUDIES = (
    "batch-size",
    "batch-size-dictionary",
    "seeds",
    "seeds-short",
    "regularization",
    "intensity",
    "intervention",
    "corpus",
    "corpus-long",
    "scale",
    "optimizer",
    "depth",
    "context",
    "rate-and-batch",
    "passes",
)
RUNS = ("laptop", "batch32", "three-layers")
STAGES = {"previous-token head": "previous_token", "induction head": "prefix_matching_sum"}


def judge_again(folder: Path) -> list[str]:
    """Writes runs.csv, verdicts and figure of a study again; returns the verdicts, a line each."""
    study = STUDY_OF.get(folder.name, folder.name)
    if study in OF_FORKS:
        return judge_forks_again(study, folder)
    table = pl.read_csv(folder / "runs.csv", infer_schema_length=None)
    curves, heads = (pl.read_csv(folder / f"{name}.csv", infer_schema_length=None) for name in ("curves", "heads"))
    shares = _predictable(folder)
    asked = folder / "tasks.csv"
    tasks = pl.read_csv(asked, infer_schema_length=None) if asked.is_file() else pl.DataFrame({"run_id": []})
    runs = [_run(folder, row, curves, heads, shares, tasks) for row in table.iter_rows(named=True)]
    with tempfile.TemporaryDirectory() as place:
        result = write_study(study, runs, Path(place))
        _keep(Path(place), folder)
    return result.lines()


def judge_forks_again(study: str, folder: Path) -> list[str]:
    """The same for a study of forks, whose own table (commitment.csv, window.csv) is written again too."""
    forks = pl.read_csv(folder / "runs.csv", schema=SCHEMA)
    with tempfile.TemporaryDirectory() as place:
        result = write_forks(study, forks, Path(place))
        _keep(Path(place), folder, f"{study}.csv")
    return result.lines()


def _keep(made: Path, folder: Path, *more: str) -> None:
    for name in ("runs.csv", "verdicts.txt", "verdicts.json", "figure.png", *more):
        shutil.copy(made / name, folder / name)


def date_again(folder: Path) -> list[str]:
    """Writes formation.json of a single run again; returns the order of its stages, a line each."""
    heads, model = (pl.read_csv(folder / f"{name}.csv", infer_schema_length=None) for name in ("heads", "model"))
    path = folder / "formation.json"
    before = json.loads(path.read_text("utf-8"))
    chance = before["rule"]["chance"]
    found = formation_json(heads, model, pl.DataFrame(), chance=chance)
    settled = [LossSettled(**before["emergence"][name]) for name in ("settled", "settled_leniently")]
    found["emergence"] = plain(copying_beside(settled[0], settled[1], model, chance))
    write_json(path, found)
    return [f"{stage['stage']} {step_text(stage)}" for stage in found["order"] if stage["formed"]]


def _run(
    folder: Path,
    row: dict[str, Any],
    curves: pl.DataFrame,
    heads: pl.DataFrame,
    shares: dict[str, float],
    tasks: pl.DataFrame,
) -> StudyRun:
    config = RunConfig.load(folder / "configs" / f"{row['run_id']}.toml")
    planned = PlannedRun(run_id=row["run_id"], label=row["run"], condition=row["condition"], values={}, config=config)
    status = Status(state=row["state"], reason=row["reason"] or "", seconds=row["seconds"])
    outcome = Outcome(run=planned, folder=folder / row["run_id"], status=status)
    own = curves.filter(pl.col("run_id") == row["run_id"]).drop("run_id", "condition")
    if row["state"] != FINISHED or own.is_empty():
        return StudyRun(condition=row["condition"], outcome=outcome, reason=row["reason"] or "")
    evidence = _evidence(row, config, own, heads.filter(pl.col("run_id") == row["run_id"]).drop("run_id"))
    if row["condition"] in shares:
        evidence.final["natural_predictable_share"] = shares[row["condition"]]
    asked = tasks.filter(pl.col("run_id") == row["run_id"]).drop("run_id", "condition", strict=False)
    return StudyRun(condition=row["condition"], outcome=outcome, evidence=evidence, curves=own, tasks=asked)


def _evidence(row: dict[str, Any], config: RunConfig, curves: pl.DataFrame, heads: pl.DataFrame) -> Evidence:
    """What `analyses.claims.evidence.gather` makes of a run, from the tables of a study."""
    model = curves.unpivot(MODEL_CURVES, index=["step", "tokens"], variable_name="measure").drop_nulls("value")
    metrics = curves.select("step", "tokens", "validation_loss")
    drawable = config.data.vocab_size - 1
    chance = 1 / (drawable - 2 * round(COMMON_SHARE * drawable))  # if all tokens occur in the text
    copying = copying_formation(model, chance).rows_by_key("measure", named=True, unique=True)
    steps = curves["step"].sort().to_list()
    before = dict(zip(steps[1:], steps, strict=False))
    dated = heads.with_columns(
        pl.col("status").str.starts_with("formed").alias("formed"),
        pl.col("status").str.contains("fell back").alias("fell_back"),
        pl.col("step").replace_strict(before, default=0, return_dtype=pl.Int64).alias("bracket_low"),
        pl.col("step").alias("bracket_high"),
        pl.lit(False).alias("began_earlier"),
    )
    of_kind = {stage: dated.filter(pl.col("measure") == measure) for stage, measure in STAGES.items()}
    stages: list[dict[str, Any]] = []
    for stage, kind in of_kind.items():
        stages.append({"stage": stage, **(first_formed(kind) or {"status": "not yet"})})
    stages += [
        {"stage": stage, **copying[measure]}
        for stage, measure in (("copying (loss)", COPYING_LOSS), ("copying (accuracy)", COPYING))
    ]
    return Evidence(
        run=row["run"],
        source=row["run_id"],
        run_id=row["run_id"],
        config=flat(config),
        n_layers=heads["layer"].n_unique(),
        induction=of_kind["induction head"],
        previous=of_kind["previous-token head"],
        order=ordered(stages),
        copying=CopyingStep.of(COPYING, copying[COPYING]),
        copying_loss=CopyingStep.of(COPYING_LOSS, copying[COPYING_LOSS]),
        emergence=emergence(model, metrics, chance, COPYING),
        final={name: row[f"final {name}"] for name in MODEL_CURVES if row[f"final {name}"] is not None},
        rates=np.array([learning_rate(config, step) for step in range(config.train.steps)]),
        tokens_per_step=curves["tokens"].max() / max(curves["step"].max(), 1),  # type: ignore[operator]
        last_step=max(1, int(curves["step"].max())),  # type: ignore[arg-type]
    )


def _predictable(folder: Path) -> dict[str, float]:
    """Share of predictable tokens by corpus, which stands in the verdicts alone."""
    claims = json.loads((folder / "verdicts.json").read_text("utf-8"))["claims"]
    rows = [row for claim in claims for row in claim["details"] if "predictable share" in row]
    return {row["corpus"]: row["predictable share"] for row in rows if row["predictable share"] is not None}


if __name__ == "__main__":
    of_forks = [name for name in OF_FORKS if (HERE / name).is_dir()]
    for name in sys.argv[1:] or (*STUDIES, *of_forks, *RUNS):
        again = date_again if name in RUNS else judge_again
        print(f"{name}:", *again(HERE / name), sep="\n  ", flush=True)
