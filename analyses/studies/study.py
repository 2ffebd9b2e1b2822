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
from copyscope.analyses.claims.verdict import Verdict, with_ends
from copyscope.analyses.studies import OF_FORKS, PRESETS, QUESTIONS, SIZES
from copyscope.analyses.studies.evidence import (
    StudyRun,
    by_loss,
    curves_table,
    evidence_of,
    gather_study,
    heads_table,
    runs_table,
    tasks_table,
)
from copyscope.analyses.studies.fork_verdicts import JUDGES, TABLES
from copyscope.analyses.studies.forked import PARENT, ForkPlan, fork_plan, gather_forks, train_forks
from copyscope.analyses.studies.sweep import check, sweep, with_tests
from copyscope.analyses.studies.verdicts import judge
from copyscope.training.config import RunConfig
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes, write_text
from copyscope.training.progress import Progress
from copyscope.training.sweeps.driver import Outcome, outcomes
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
    """OUT/results: runs.csv, curves.csv, heads.csv (tasks.csv, where tasks were asked), verdicts.html and .json,
    figure.png and .pdf, configs/. Of a study of forks runs.csv has a row a fork, and its own table (commitment.csv,
    window.csv) stands for curves and heads."""

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
    tasks too. `device` and `dtype` of scoring. `train` False: only the analysis, of the runs that are finished. A study
    of forks forks each run that is finished. The cost is said before anything is trained. Runs that diverged or failed
    are named, and the others judged. Raises InputError as `sweep` does, and for a study or size that is not there;
    `Stopped` when interrupted.
    """
    planned = study_sweep(name, size, corpora, values)
    planned = with_tests(planned, samples, tasks)
    out = Path(out) if out is not None else Path("runs") / f"study-{name}"
    plan = study_forks(name, size)
    if train:
        check(planned, out)
        todo = [one.run.config for one in outcomes(planned, out) if one.status.state not in DONE]
        forks = "" if plan is None else f", and {plan.count(len(planned.runs))} forks of them"
        logger.info(
            f"{name}: {QUESTIONS[name]} {len(planned.runs)} runs, {len(planned.runs) - len(todo)} of them done{forks}."
        )
        if plan is not None:
            todo += plan.about(planned.runs, out)
        if todo:
            _log_cost(todo, planned, jobs)
        where = {"device": device, "dtype": dtype, "progress": progress}
        sweep(planned, out, engine, jobs, options=options, update=update, **where)
        if plan is not None:
            train_forks(plan, outcomes(planned, out), out, engine, jobs, options=options, planned=planned, **where)
    if plan is not None:
        return _forks_judged(name, plan, outcomes(planned, out), out)
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
    content.pop("fork", None)  # `study_forks`
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


def study_forks(name: str, size: str = "laptop") -> ForkPlan | None:
    """The forks of each run of a study; None for a study without any."""
    return fork_plan(read_toml(PRESETS / f"{name}.{size}.toml")["fork"]) if name in OF_FORKS else None


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


def _forks_judged(name: str, plan: ForkPlan, parents: list[Outcome], out: Path) -> StudyResult:
    forks = gather_forks(plan, parents, out)
    if forks.filter(pl.col("change") != PARENT, pl.col("state") == FINISHED).is_empty():
        raise InputError(f"{out}: no fork of this study is finished; run `copyscope study {name} --out {out}`")
    folder = out / "results"
    for parent in parents:
        write_text(folder / "configs" / f"{parent.run.run_id}.toml", shareable(parent.run.config).to_toml())
    return write_forks(name, forks, folder)


def write_forks(name: str, forks: pl.DataFrame, folder: Path) -> StudyResult:
    """Judges the forks (`forked.gather_forks`), and writes tables, figure and verdicts into `folder`."""
    verdicts, table = JUDGES[name](forks), TABLES[name](forks)
    write_text(folder / "runs.csv", forks.write_csv(float_precision=6))
    write_text(folder / f"{name}.csv", table.write_csv(float_precision=6))
    parents = forks.filter(pl.col("change") == PARENT).to_dicts()
    formed = [
        {"run": row["parent"], "head": row["head"], **with_ends("induction head", row["step"], row["low"], row["high"])}
        for row in parents
    ]
    claims = Claims(verdicts, pl.DataFrame(formed, infer_schema_length=None))
    write_claims(claims, [row["parent"] for row in parents], folder / "verdicts.html")
    write_text(folder / "verdicts.txt", "".join(f"{verdict_line(verdict)}\n" for verdict in verdicts))
    try:
        from copyscope.analyses.figures.paper import rendered
        from copyscope.analyses.studies.fork_figures import fork_figure
    except ImportError:  # without matplotlib; the tables are all there
        return StudyResult(verdicts, forks, folder)
    figure = fork_figure(name, forks, QUESTIONS[name])
    for kind in EVERY_FORMAT:
        write_bytes(folder / f"figure.{kind}", rendered(figure, kind))
    return StudyResult(verdicts, forks, folder)


def write_study(name: str, runs: list[StudyRun], folder: Path) -> StudyResult:
    """Judges the runs, and writes tables, figure, verdicts and configurations into `folder`."""
    verdicts = judge(name, runs)
    evidence = evidence_of([_without_paths(run) for run in runs], by_loss(runs))
    table = runs_table(runs)
    tables = {"runs": table, "curves": curves_table(runs), "heads": heads_table(runs)}
    asked = tasks_table(runs)
    for file, content in (tables if asked.is_empty() else tables | {"tasks": asked}).items():
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
