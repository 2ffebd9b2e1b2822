"""A sweep from its file: which program does each run, and what to refuse before hours are spent."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from copyscope.analyses.studies.scored_run import arguments, program
from copyscope.training.data.corpora import check_corpus
from copyscope.training.engines import make_engine
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress
from copyscope.training.sweeps.driver import Outcome, run_sweep
from copyscope.training.sweeps.plan import Sweep, claim, load_sweep

PLAIN = "copyscope.training.sweeps.worker"


def sweep(
    source: str | Path | Sweep,
    out: str | Path,
    engine: str | Engine = "local",
    jobs: int | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    samples: int | None = None,
    tasks: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    update: bool = False,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Trains every run of a sweep file in folder `out` (scored while it trains, if the file says so), or goes on.

    `engine`: `local`, `ray`, `slurm` or one of your own; `jobs` at a time; `options` as the engine's own. `values` and
    `samples` (of the copying test) go over what the file says; `tasks` asks the in-context tasks
    at every checkpoint that is scored, whatever it says. `device` and `dtype` of scoring, where the runs are: a
    device is looked for there. `update`: takes a changed file. Returns how each run
    ended; one that diverged or failed does not hold up the others. Raises InputError before anything is trained for a
    file, field, corpus, engine or folder that cannot be used, and `Stopped` when interrupted.
    """
    planned = source if isinstance(source, Sweep) else load_sweep(source, values)
    planned = with_tests(planned, samples, tasks)
    out = Path(out)
    check(planned, out)
    chosen = make_engine(engine, out, jobs, options) if isinstance(engine, str) else engine
    claim(planned, out, update)
    scored = program(arguments(planned.samples, device, dtype, planned.tasks))
    module, *rest = scored if planned.score else (PLAIN,)
    return run_sweep(planned, out, chosen, module, rest, progress)


def with_tests(planned: Sweep, samples: int | None, tasks: bool) -> Sweep:
    """The sweep with so many samples of the copying test (None: its own), and with tasks. Raises InputError for tasks
    of a sweep that is not scored."""
    if tasks and not planned.score:
        raise InputError("tasks: are asked while scoring, and this sweep is not scored; give score = true in its file")
    return replace(planned, samples=samples or planned.samples, tasks=tasks or planned.tasks)


def check(planned: Sweep, out: Path) -> None:
    """Raises InputError for what would fail in every run: a context too short for its scores, a corpus not there."""
    if planned.score:
        from copyscope.analyses.tables.run_prompts import check_context

        for sizes in {(run.config.model.n_ctx, run.config.data.vocab_size) for run in planned.runs}:
            check_context(*sizes)
    # A run that has begun has its tokens, and needs the corpus no more.
    waiting = [run for run in planned.runs if not (out / run.run_id / "data.json").is_file()]
    for corpus in sorted({run.config.data.corpus for run in waiting}):
        check_corpus(corpus)


def outcome_table(outcomes: list[Outcome]) -> pl.DataFrame:
    """A row a run: run_id, run, state, seconds, reason."""
    rows = [
        (outcome.run.run_id, outcome.run.label, outcome.status.state, outcome.status.seconds, outcome.status.reason)
        for outcome in outcomes
    ]
    names = {"run_id": pl.String, "run": pl.String, "state": pl.String, "seconds": pl.Float64, "reason": pl.String}
    return pl.DataFrame(rows, schema=names, orient="row")
