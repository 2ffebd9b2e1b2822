"""One run or series as the analyses see it: its checkpoints and its tables on disk. Needs no torch."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Int

from copyscope.analyses.tables.stored import prompts_otherwise, scored_otherwise, steps_of
from copyscope.training.checkpoints.average import ABOUT
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries, Order
from copyscope.training.checkpoints.trunk import read_trunk, tokens_of
from copyscope.training.config import InterventionConfig, RunConfig
from copyscope.training.data.store import COUNTS
from copyscope.training.errors import InputError
from copyscope.training.files import write_json
from copyscope.training.schedule import checkpoint_steps, settings_at

COMMON_SHARE = 0.05
"""Share of tokens at each end of the counts that random prompts leave out (`interp.prompts.random_token_vocab`)."""


class Scores(NamedTuple):
    """The tables that `score` keeps, of all steps."""

    heads: pl.DataFrame
    """run, step, tokens, layer, head, measure, value."""
    model: pl.DataFrame
    """run, step, tokens, measure, value."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A series of checkpoints with the folder of its results.

    `steps`, `heads`, `model` and `metrics` are what was computed so far, read from disk when asked for; whatever takes
    a path or a source text takes a run as well.
    """

    name: str
    folder: Path
    """Where results go: the run's own folder, or the series'."""
    series: CheckpointSeries
    config: RunConfig | None
    data: dict[str, Any]
    """data.json of a run of ours, or of its means; empty for a public series."""
    order: Order = "step"
    """By what its checkpoints are ordered."""
    tokenizer: Path | None = None
    """The folder of a tokenizer that was given for checkpoints that have none."""
    trunk: "Run | None" = None
    """Of a fork: its parent, with the checkpoints that are the fork's as well. None where the parent is gone."""

    def __fspath__(self) -> str:
        return self.series.source

    @property
    def steps(self) -> pl.DataFrame:
        """The checkpoints: step, tokens, path, revision, scored, ablated."""
        done = {kind: stored_steps(self, kind) for kind in ("heads", "ablations")}
        schema = {
            "step": pl.Int64,
            "tokens": pl.Int64,
            "path": pl.String,
            "revision": pl.String,
            "scored": pl.Boolean,
            "ablated": pl.Boolean,
        }
        rows = [
            (c.step, c.tokens, c.path, c.revision, *(c.step in steps for steps in done.values()))
            for c in self.series.checkpoints
        ]
        return pl.DataFrame(rows, schema=schema, orient="row")

    @property
    def heads(self) -> pl.DataFrame:
        """Scores of heads: run, step, tokens, layer, head, measure, value. InputError if the run was not scored."""
        return score_tables(self).heads

    @property
    def model(self) -> pl.DataFrame:
        """Scores of the whole model: run, step, tokens, measure, value. InputError if the run was not scored."""
        return score_tables(self).model

    @property
    def metrics(self) -> pl.DataFrame:
        """What training logged: step, tokens, loss, validation_loss, lr, …; empty for a public series."""
        return read_metrics(self)

    @property
    def eval_seed(self) -> int:
        """What prompts are drawn from."""
        return self.config.seeds.eval if self.config else int(self.data.get("eval_seed", 0))

    @property
    def own(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that are measured here: all, but for those of a fork that its parent has."""
        trunk = set() if self.trunk is None else {one.path for one in self.trunk.series.checkpoints}
        return tuple(one for one in self.series.checkpoints if one.path not in trunk)

    def of_step(self, step: int) -> "Run":
        """The run whose checkpoint of this step is: itself, or of a fork's first steps its parent."""
        if self.trunk is None or self.config is None or step > self.config.fork.at:
            return self
        is_there = any(one.step == step for one in self.trunk.series.checkpoints)
        return self.trunk.of_step(step) if is_there else self

    def intervention(self, update: int) -> InterventionConfig:
        """What was done to the model while it was trained, by the settings of an update (from 0); of a fork, from its
        step on."""
        if self.config:
            return settings_at(self.config, update).intervention
        later = self.data.get("later")  # of the means of a fork whose change ended
        held = later if later and update >= later["from"] else self.data
        return InterventionConfig.model_validate(held.get("intervention", {}))

    @property
    def store(self) -> Path:
        """The folder of the tokens of a run of ours: beside the run, and so two above its means."""
        run = self.folder.absolute()
        return tokens_of(run.parent if (self.folder / ABOUT).is_file() else run, str(self.data.get("store")))


def run_as_json(run: Run) -> dict[str, Any]:
    """The run for another process, which then looks at no folder and asks no hub which checkpoints there are."""
    return {
        "name": run.name,
        "folder": str(run.folder),
        "source": run.series.source,
        "unit": run.series.unit,
        "checkpoints": [asdict(checkpoint) for checkpoint in run.series.checkpoints],
        "config": None if run.config is None else run.config.model_dump(mode="json"),
        "data": run.data,
        "order": run.order,
        "tokenizer": None if run.tokenizer is None else str(run.tokenizer),
    }


def run_from_json(held: Mapping[str, Any]) -> Run:
    """What `run_as_json` gave."""
    checkpoints = tuple(Checkpoint(**checkpoint) for checkpoint in held["checkpoints"])
    return Run(
        name=held["name"],
        folder=Path(held["folder"]),
        series=CheckpointSeries(held["source"], checkpoints, unit=held["unit"]),
        config=None if held["config"] is None else RunConfig.parse(held["config"]),
        data=held["data"],
        order=held["order"],
        tokenizer=None if held["tokenizer"] is None else Path(held["tokenizer"]),
    )


def read_tables(run: Run, kind: str) -> pl.DataFrame:
    """All steps of a kind of table under results/, as `heads` or `ablations/pairs`; those of a fork's first steps are
    its parent's. Raises InputError if nothing was computed yet."""
    own = _own_tables(run, kind)
    first = _first_tables(run, kind)
    if first is None:
        return own
    not_these = {*own["step"].unique()} | changed_steps(run)
    rows = first.rows.filter(~pl.col("step").is_in(not_these))
    if set(rows.columns) != set(own.columns):
        raise InputError(
            f"{first.folder}/results/{kind}: by another version than the tables of {run.folder}; run the command "
            "that computed them again there"
        )
    paths = [max((folder / "results" / kind).glob("step*.parquet")) for folder in (first.folder, run.folder)]
    if differ := prompts_otherwise(*paths):
        raise InputError(
            f"{run.folder}/results/{kind}: on other prompts than its first steps in {first.folder} ({differ}); run the "
            "command again that computed the one or the other, with equal options"
        )
    return pl.concat([rows.with_columns(run=pl.lit(run.name)).select(own.columns), own], how="vertical_relaxed")


class _First(NamedTuple):
    """Tables of a fork's first steps."""

    folder: Path
    """Of the run that has the last of them."""
    rows: pl.DataFrame


def _first_tables(run: Run, kind: str) -> _First | None:
    """The tables of the nearest run above a fork that has any, up to the step that they share; None where none has."""
    at, above = run.config.fork.at if run.config else 0, run.trunk
    while above is not None and not steps_of(above.folder / "results" / kind):
        at, above = min(at, above.config.fork.at if above.config else 0), above.trunk
    return None if above is None else _First(above.folder, read_tables(above, kind).filter(pl.col("step") <= at))


def changed_steps(run: Run) -> set[int]:
    """Steps of a fork's parent whose checkpoints are not any more those that the fork began with."""
    recorded = read_trunk(Path(run.series.source)) if run.trunk is not None else None
    if recorded is None or run.trunk is None:
        return set()
    return recorded.checkpoints.keys() - {one.step for one in run.trunk.series.checkpoints}


def stored_steps(run: Run, kind: str) -> set[int]:
    """The steps that have a table of a kind, of a fork also in its parent."""
    steps = steps_of(run.folder / "results" / kind)
    if run.trunk is not None:
        steps |= stored_steps(run.trunk, kind) & {one.step for one in run.trunk.series.checkpoints}
    return steps


def _own_tables(run: Run, kind: str) -> pl.DataFrame:
    paths = sorted((run.folder / "results" / kind).glob("step*.parquet"))
    if not paths:
        name, _, what = kind.partition("/")
        command = {"ablations": f"ablate --what {what}" if what else "ablate", "tasks": "tasks"}.get(name, "score")
        raise InputError(f"{run.folder}: no results/{kind} yet; run `copyscope {command} {run.folder}` first")
    known = {checkpoint.step for checkpoint in run.series.checkpoints} | gone(run, kind)
    if run.config and run.config.checkpoints.keep != "all":
        known |= set(checkpoint_steps(run.config))  # scored before they were taken away
    try:
        return (
            pl.concat([pl.read_parquet(path, glob=False) for path in paths])
            .filter(pl.col("step").is_in(known))
            .sort("step")
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{run.folder}/results/{kind}: a table is damaged ({error}); delete the folder and score again"
        ) from None


def gone(run: Run, kind: str) -> set[int]:
    """Steps of a series on this disk that have a table, but no checkpoint any more. Their rows stay in the tables.

    None of a hub series, of which a source names some revisions only, nor of means, which are made from others.
    """
    of_hub = any(checkpoint.revision is not None for checkpoint in run.series.checkpoints)
    if of_hub or (run.folder / ABOUT).is_file() or not run.series.checkpoints:
        return set()
    return steps_of(run.folder / "results" / kind) - {checkpoint.step for checkpoint in run.series.checkpoints}


def read_failed(run: Run, command: str = "score") -> dict[int, str]:
    """Steps that `score`, `ablate` or `tasks` could not measure when last tried, each with why."""
    path = run.folder / "results" / "failed.json"
    try:
        return {int(step): str(why) for step, why in json.loads(path.read_text("utf-8")).get(command, {}).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_failed(run: Run, command: str, tried: Iterable[int], failed: Mapping[int, str]) -> None:
    """Notes which of the steps that were `tried` could not be measured, and that the others could."""
    held = {name: read_failed(run, name) for name in ("score", "ablate", "tasks")}
    now = {step: why for step, why in held[command].items() if step not in set(tried)} | dict(failed)
    if now != held[command]:
        held[command] = dict(sorted(now.items()))
        write_json(run.folder / "results" / "failed.json", held)


def score_tables(run: Run) -> Scores:
    """The stored scores of a run.

    Raises InputError if there are none, and where they are by older definitions and nothing is left to score again.
    """
    heads = scored_table(run, "heads")
    if not run.series.checkpoints:
        for path in (run.folder / "results" / "heads").glob("step*.parquet"):
            if scored_otherwise(path):
                raise InputError(
                    f"{path}: scored by other definitions than this copyscope's, and the run kept no checkpoints; "
                    f"delete {run.folder} and train it again"
                )
    return Scores(heads, scored_table(run, "model"))


def scored_table(run: Run, kind: str) -> pl.DataFrame:
    """One of the tables that `score` keeps. Raises InputError if there is none of these steps."""
    table = read_tables(run, kind)
    if table.is_empty():
        raise InputError(
            f"{run.folder}: the stored scores are of other steps; run `copyscope score {run.folder}` again"
        )
    return table


def token_counts(run: Run) -> Int[np.ndarray, " d_vocab"] | None:
    """How often each token occurs in the text a run of ours was trained on; None where that is not known: for somebody
    else's series, and for a run of an older copyscope that was copied without its tokens."""
    if not run.data:
        return None
    own = run.folder.parent if (run.folder / ABOUT).is_file() else run.folder  # means lie in their run
    path = next((place / COUNTS for place in (own, run.store) if (place / COUNTS).is_file()), None)
    return None if path is None else np.fromfile(path, np.int64)


def chance(run: Run) -> float:
    """Copying accuracy of guessing: 1 / number of tokens that the test draws from; 0 where `token_counts` does not
    know."""
    counts = token_counts(run)
    if counts is None:
        return 0.0
    drawable = int((counts[1:] > 0).sum())  # token 0 is the special one
    return 1 / max(drawable - 2 * round(COMMON_SHARE * drawable), 1)


def read_metrics(run: Run) -> pl.DataFrame:
    """metrics.jsonl as a table; empty for a series that copyscope did not train."""
    if run.trunk is not None and run.config:
        first = read_metrics(run.trunk).filter(pl.col("step") <= run.config.fork.at)
        return pl.concat([first, read_metrics(replace(run, trunk=None))])
    path = run.folder / "metrics.jsonl"
    columns = ("step", "tokens", "loss", "validation_loss", "lr", "grad_norm", "tokens_per_second", "mfu")
    schema = {name: pl.Int64 if name in ("step", "tokens") else pl.Float64 for name in columns}
    if not path.is_file():
        return pl.DataFrame(schema=schema)
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{path}: not JSON lines ({error}); delete its last line") from None
    return pl.DataFrame([{name: row.get(name) for name in columns} for row in rows], schema=schema).unique(
        "step", keep="last", maintain_order=True
    )


def labelled(table: pl.DataFrame, run: Run, checkpoint: Checkpoint) -> pl.DataFrame:
    """The table with run, step and tokens in front."""
    labels = [
        pl.lit(run.name).alias("run"),
        pl.lit(checkpoint.step, pl.Int64).alias("step"),
        pl.lit(checkpoint.tokens, pl.Int64).alias("tokens"),
    ]
    return table.select(*labels, pl.all())


def selected(run: Run, steps: Iterable[int] | None) -> list[Checkpoint]:
    """The checkpoints of these steps, or all. Raises InputError for a step that is not there."""
    checkpoints = list(run.series.checkpoints)
    if steps is not None and not checkpoints:
        raise InputError(f"{run.folder}: keeps no checkpoints (checkpoints.keep); train it again with keep = 'all'")
    if steps is None:
        return checkpoints
    by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints}
    for step in steps:
        if step not in by_step:
            near = min(by_step, key=lambda known: abs(known - step))
            raise InputError(f"{run.folder}: no checkpoint at step {step}; the nearest is {near}")
    return [by_step[step] for step in steps]


def selected_or_last(run: Run, steps: Iterable[int] | None) -> list[Checkpoint]:
    """The checkpoints of these steps; the last one for None. Raises InputError as `selected` does."""
    if steps is None:
        steps = [checkpoint.step for checkpoint in run.series.checkpoints[-1:]] or [-1]
    return selected(run, list(steps))
