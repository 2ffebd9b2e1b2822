"""`copyscope study`: a question, a ready sweep, its analysis, its figure, its verdict."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from copyscope.analyses.claims.factors import flat
from copyscope.analyses.claims.judge import Claims
from copyscope.analyses.claims.judge import runs_table as formation_table
from copyscope.analyses.claims.page import verdict_line, write_claims
from copyscope.analyses.claims.verdict import Verdict
from copyscope.analyses.studies import PRESETS, QUESTIONS, SIZES
from copyscope.analyses.studies.evidence import (
    StudyRun,
    by_loss,
    curves_table,
    evidence_of,
    gather_study,
    heads_table,
    runs_table,
)
from copyscope.analyses.studies.sweep import check, sweep, with_tests
from copyscope.analyses.studies.verdicts import judge
from copyscope.training.config import RunConfig
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes, write_text
from copyscope.training.progress import Progress
from copyscope.training.sweeps.driver import outcomes
from copyscope.training.sweeps.plan import Sweep, parse_sweep, read_toml
from copyscope.training.sweeps.worker import DONE, FINISHED

logger = logging.getLogger(__name__)

EVERY_FORMAT = ("png", "pdf")


class StudyResult(NamedTuple):
    """What a study came to, and where its tables, figure and configurations lie."""

    verdicts: list[Verdict]
    runs: pl.DataFrame
    """A row a run: settings, how it ended, when each stage formed, final values."""
    folder: Path
    """OUT/results: runs.csv, curves.csv, heads.csv, verdicts.html and .json, figure.png and .pdf, configs/."""

    def lines(self) -> list[str]:
        """The verdicts, a line each."""
        return [verdict_line(verdict) for verdict in self.verdicts]


def study(
    name: str,
    size: str = "laptop",
    out: str | Path | None = None,
    engine: str | Engine = "local",
    jobs: int | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    corpora: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    samples: int | None = None,
    tasks: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    train: bool = True,
    update: bool = False,
    progress: Progress | None = None,
) -> StudyResult:
    """Trains what the study needs in `out` (None: `runs/study-<name>`), or goes on, and answers its question.

    `size`: `laptop` or `paper`. `corpora`: for the study `corpus` two or more, for others one in place of the preset's.
    `values` go over the preset's fields, `samples` (of the copying test) over its own; `tasks` asks the in-context
    tasks too. `device` and `dtype` of scoring. `train` False: only the
    analysis, of the runs that are finished. The cost is said before anything is trained. Runs that diverged or failed
    are named, and the others judged. Raises InputError as `sweep` does, and for a study or size that is not there;
    `Stopped` when interrupted.
    """
    planned = study_sweep(name, size, corpora, values)
    planned = with_tests(planned, samples, tasks)
    out = Path(out) if out is not None else Path("runs") / f"study-{name}"
    if train:
        check(planned, out)
        todo = [one.run.config for one in outcomes(planned, out) if one.status.state not in DONE]
        logger.info(
            f"{name}: {QUESTIONS[name]} {len(planned.runs)} runs, {len(planned.runs) - len(todo)} of them done."
        )
        if todo:
            _log_cost(todo, planned, jobs)
        how = {"device": device, "dtype": dtype, "update": update, "progress": progress}
        sweep(planned, out, engine, jobs, options=options, **how)
    runs = gather_study(outcomes(planned, out))
    if not any(run.outcome.status.state == FINISHED for run in runs):
        why = next((f" ({run.label}: {run.reason})" for run in runs if run.reason), "")
        raise InputError(f"{out}: no run of this study is finished{why}; run `copyscope study {name} --out {out}`")
    return write_study(name, runs, out / "results")


def study_sweep(
    name: str, size: str = "laptop", corpora: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> Sweep:
    """The runs of a study. Arguments and errors as in `study`."""
    if name not in QUESTIONS:
        raise InputError(f"no study {name!r}: studies are {', '.join(QUESTIONS)}")
    if size not in SIZES:
        raise InputError(f"--size {size}: use {' or '.join(SIZES)}")
    content = read_toml(PRESETS / f"{name}.{size}.toml")
    if name == "corpus":
        if len(set(corpora)) < 2:
            raise InputError("study corpus: give two corpora or more, as in --corpus python --corpus path/to/text")
        content["runs"] = [{"label": corpus_name(corpus), "data.corpus": corpus} for corpus in corpora]
        if len({run["label"] for run in content["runs"]}) < len(corpora):
            content["runs"] = [run | {"label": corpus} for run, corpus in zip(content["runs"], corpora, strict=True)]
    elif len(corpora) > 1:
        raise InputError(f"study {name}: one --corpus at most; `copyscope study corpus` compares several")
    elif corpora:
        values = {"data.corpus": corpora[0], **(values or {})}
    return parse_sweep(content, PRESETS, values)


def corpus_name(corpus: str) -> str:
    """What a corpus is called in tables and figures: a file's name without its endings."""
    return corpus if corpus.startswith("hf:") else Path(corpus).name.split(".")[0] or corpus


def _log_cost(todo: list[RunConfig], planned: Sweep, jobs: int | None) -> None:
    from copyscope.analyses.studies.cost import cost_of
    from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES
    from copyscope.training.engines.child import jobs_at_once

    at_once = jobs_at_once(jobs)
    cost = cost_of(todo, planned.samples or COPYING_SAMPLES, at_once, planned.tasks)
    logger.info(f"{cost.words()}, {at_once} at a time.")


def write_study(name: str, runs: list[StudyRun], folder: Path) -> StudyResult:
    """Judges the runs, and writes tables, figure, verdicts and configurations into `folder`."""
    verdicts = judge(name, runs)
    evidence = evidence_of([_without_paths(run) for run in runs], by_loss(runs))
    table = runs_table(runs)
    for file, content in (("runs", table), ("curves", curves_table(runs)), ("heads", heads_table(runs))):
        write_text(folder / f"{file}.csv", content.write_csv(float_precision=6))
    if evidence:
        page = folder / "verdicts.html"
        write_claims(Claims(verdicts, formation_table(evidence)), [run.label for run in runs], page)
    write_text(folder / "verdicts.txt", "".join(f"{verdict_line(verdict)}\n" for verdict in verdicts))
    for old in (folder / "configs").glob("*.toml"):
        if old.stem not in set(table["run_id"]):
            old.unlink()  # of a run that the study had before --update
    for run in runs:
        write_text(folder / "configs" / f"{run.outcome.run.run_id}.toml", shareable(run.outcome.run.config).to_toml())
    for kind, content in _figures(name, runs).items():
        write_bytes(folder / f"figure.{kind}", content)
    return StudyResult(verdicts, table, folder)


def shareable(config: RunConfig) -> RunConfig:
    """The configuration with a corpus on disk named by its file alone: where it lay is nobody's business."""
    corpus = config.data.corpus
    return config if corpus.startswith("hf:") else config.with_values({"data.corpus": Path(corpus).name})


def _without_paths(run: StudyRun) -> StudyRun:
    """The run with `shareable` settings in its evidence, as tables show them."""
    if run.evidence is None:
        return run
    return replace(run, evidence=replace(run.evidence, config=flat(shareable(run.outcome.run.config))))


def _figures(name: str, runs: list[StudyRun]) -> dict[str, bytes]:
    try:
        from copyscope.analyses.figures.paper import rendered
        from copyscope.analyses.studies.figures import study_figure
    except ImportError:
        return {}  # without matplotlib; the tables are all there
    figure = study_figure(name, runs, QUESTIONS[name])
    return {kind: rendered(figure, kind) for kind in EVERY_FORMAT}
