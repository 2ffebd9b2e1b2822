"""One run or series as the analyses see it: its checkpoints, its tables on disk, and the prompts of its measures."""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Int
from torch import Tensor

from interp.behavior import copying_test
from interp.prompts import CopyingTest, fitting_length, random_token_vocab, repeated_random_tokens
from training.batches import windows
from training.checkpoints import Checkpoint, CheckpointSeries, manifest_hash, write_bytes
from training.config import RunConfig
from training.errors import InputError
from training.schedule import checkpoint_steps
from training.tokens import open_store

COPYING_SAMPLES = 500
LOSS_PROMPTS = 32
NATURAL_WINDOWS = 64


class Prompts(NamedTuple):
    """The same for every checkpoint of a series, drawn from `seeds`."""

    seeds: tuple[int, ...]
    vocab: Int[Tensor, "vocab"]
    """Token ids that random prompts draw from."""
    bos_id: int | None
    test: CopyingTest
    repeated: Int[Tensor, "prompt pos"]
    """Repeated random tokens, for the copying loss."""
    natural: Int[Tensor, "window window_pos"] | None
    """Held-out text, where the run has it."""

    @property
    def seed(self) -> int:
        """The first seed."""
        return self.seeds[0]


class Run(NamedTuple):
    name: str
    folder: Path
    """Where results go: the run's own folder, or the series'."""
    series: CheckpointSeries
    config: RunConfig | None
    data: dict[str, Any]
    """data.json of a run of ours; empty for somebody else's series."""

    @property
    def eval_seed(self) -> int:
        """What prompts are drawn from."""
        return self.config.seeds.eval if self.config else 0


def open_run(source: str | Path) -> Run:
    """A run, a folder of Hugging Face models, one model's folder or GGUF file, or `org/model@rev,rev` of the hub.

    Results go into the folder; for a file or a hub series, into `runs/<name>`. Raises InputError if there is no
    checkpoint in it.
    """
    folder = Path(source)
    if not folder.is_dir():
        name = folder.stem if folder.is_file() else str(source).partition("@")[0].replace("/", "--")
        return Run(name, Path("runs") / name, CheckpointSeries.open(source), None, {})
    config = RunConfig.load(folder / "config.toml") if (folder / "config.toml").is_file() else None
    if config and config.checkpoints.keep == "none" and not any((folder / "checkpoints").glob("step*")):
        series = CheckpointSeries(str(source), ())  # scored while it was trained; what is left is tables
    else:
        series = CheckpointSeries.open(source)
    data = {}
    if (folder / "data.json").is_file():
        try:
            data = json.loads((folder / "data.json").read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{folder / 'data.json'}: not JSON ({error}); delete the run and train it again") from None
    return Run(folder.resolve().name, folder, series, config, data)


def run_prompts(
    run: Run,
    n_ctx: int,
    d_vocab: int,
    special: list[int],
    seeds: Sequence[int] | None = None,
    samples: int = COPYING_SAMPLES,
) -> Prompts:
    """The prompts that measure this run; random tokens are ranked by the training text's counts where known.

    `seeds` of random tokens (None: the run's own for evaluation); prompts of several are taken together. `samples` of
    the copying test for each. Held-out text is that of the run's own seed.
    """
    seeds = (run.eval_seed,) if seeds is None else tuple(seeds)
    counts, natural, bos_id = None, None, (special[0] if special else None)
    if run.data:
        store = open_store(run.folder.parent / "tokens" / run.data["store"])
        if store.index["fingerprint"] != run.data["fingerprint"]:
            raise InputError(f"{store.folder}: holds other text than this run was trained on; train the run again")
        counts = torch.from_numpy(store.counts)
        natural = windows(store.validation, n_ctx - 1, NATURAL_WINDOWS, run.eval_seed)
    vocab = random_token_vocab(counts, d_vocab, special)
    tests = [copying_test(vocab, n_ctx, samples, seed, bos_id) for seed in seeds]
    test = CopyingTest(*(torch.cat(column) for column in zip(*tests, strict=True)))
    length = fitting_length(n_ctx, 100, 2, bos_id)
    repeated = torch.cat([repeated_random_tokens(vocab, length, LOSS_PROMPTS, seed, bos_id, 2) for seed in seeds])
    return Prompts(seeds, vocab, bos_id, test, repeated, natural)


def result_key(checkpoint: Checkpoint, *parts: object) -> str:
    """What a stored result depends on: the checkpoint's manifest and everything in `parts`."""
    return hashlib.sha256(repr((manifest_hash(checkpoint), *parts)).encode()).hexdigest()


def is_stored(path: Path, key: str) -> bool:
    """Whether the table at `path` is whole and was computed under `key`."""
    try:
        return path.is_file() and pl.read_parquet_metadata(path).get("key") == key
    except (pl.exceptions.PolarsError, OSError):
        return False


def store_table(table: pl.DataFrame, path: Path, key: str) -> None:
    """Writes a table, whole or not at all."""
    data = io.BytesIO()
    table.write_parquet(data, metadata={"key": key})
    write_bytes(path, data.getvalue())


def read_tables(run: Run, kind: str) -> pl.DataFrame:
    """All steps of a kind of table under results/. Raises InputError if nothing was computed yet."""
    paths = sorted((run.folder / "results" / kind).glob("step*.parquet"))
    if not paths:
        command = "ablate" if kind == "ablations" else "score"
        raise InputError(f"{run.folder}: no results/{kind} yet; run `copyscope {command} {run.folder}` first")
    known = {checkpoint.step for checkpoint in run.series.checkpoints}
    if run.config and run.config.checkpoints.keep != "all":
        known |= set(checkpoint_steps(run.config))  # scored before they were taken away
    try:
        return pl.concat([pl.read_parquet(path) for path in paths]).filter(pl.col("step").is_in(known)).sort("step")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{run.folder}/results/{kind}: a table is damaged ({error}); delete the folder and score again"
        ) from None


def read_metrics(run: Run) -> pl.DataFrame:
    """metrics.jsonl as a table; empty for a series that copyscope did not train."""
    path = run.folder / "metrics.jsonl"
    columns = ("step", "tokens", "loss", "validation_loss", "lr", "grad_norm", "tokens_per_second")
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


Progress = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""


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
