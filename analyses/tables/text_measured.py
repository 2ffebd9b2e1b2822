"""Measures how much of its text a run has read, how much of that twice, and its loss on each kind of text."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Float

from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run
from copyscope.analyses.tables.stored import result_key
from copyscope.analyses.tables.text_read import FILE, TextRead, stored_text
from copyscope.interp.forward.memory import limit_memory
from copyscope.interp.measures.behavior import natural_losses
from copyscope.interp.models.devices import Compute, dtype_named
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.checkpoints.keys import checkpoint_key
from copyscope.training.checkpoints.trunk import read_trunk
from copyscope.training.config import RunConfig
from copyscope.training.data.batches import Order, batch, epoch_order, n_windows, sequence_starts, windows
from copyscope.training.data.repeats import repeat_value
from copyscope.training.data.shards import ShardedArray
from copyscope.training.data.store import TokenStore, open_store
from copyscope.training.files import write_json
from copyscope.training.run_folder import text_of_fork
from copyscope.training.schedule import order_of_data, window_at

VERSION = 1
WINDOWS = 64
"""Windows behind each loss."""
POSITIONS = 2000
"""Tokens of the text that are looked up; the standard error of a share of it is then at most 0.011."""
LOOKUPS = 10_000
"""Most look-ups of a token in a pass: runs of many passes look up fewer tokens."""
MAX_PAIRS = 1 << 24
"""Largest square of a vocabulary for which held-out windows are chosen as those of training are."""


def measure_text(
    run: Run, device: str = "auto", dtype: str = "float32", max_bytes: int | None = None
) -> TextRead | None:
    """Looks up what the run had read by its last checkpoint, takes two losses, and keeps both in results/text.json.

    `device`, `dtype` and `max_bytes` as for `score`. None for a series that copyscope did not train, or that keeps no
    checkpoints, and for a fork that chooses its windows otherwise than its parent. Of one that reads other text it is
    that text. Stored results are not computed again. Raises InputError where the run's tokens are gone.
    """
    if not run.data or not run.config or not run.series.checkpoints or not _chosen_alike(run):
        return None
    last, compute = run.series.checkpoints[-1], Compute(device=device, dtype=dtype, max_bytes=max_bytes)
    path, key = (
        run.folder / "results" / FILE,
        result_key(checkpoint_key(last), VERSION, run.config.run_id, *compute.key),
    )
    if path.is_file() and json.loads(path.read_text("utf-8")).get("key") == key:
        return stored_text(run)
    store = text_of_fork(Path(run.series.source)) or open_store(run.store)
    read = share_read(run.config, store, last.step)
    losses = _losses(run, run.config, store, last.path, compute)
    write_json(path, {"key": key, **asdict(read), **losses})
    return stored_text(run)


def _chosen_alike(run: Run) -> bool:
    """Whether all windows of the text were chosen as now: each as one of so many."""
    if run.config is None or not run.config.fork.window:
        return True
    parent = read_trunk(Path(run.series.source))
    place = None if parent is None else parent.parent(Path(run.series.source))
    before = None if place is None else open_run(place)
    if before is None or before.config is None:  # then it can only be counted
        fork = run.config.fork
        return fork.window == fork.tokens // run.config.model.n_ctx * run.config.data.repeat_choice
    return before.config.data.repeat_choice == run.config.data.repeat_choice and _chosen_alike(before)


def share_read(config: RunConfig, store: TokenStore, step: int, positions: int = POSITIONS) -> TextRead:
    """What updates 0 … `step` - 1 read of the training text, without the losses; of other text those of the fork.

    Exact where no window can have come twice; else an estimate from `positions` tokens drawn at random, each looked up
    in every pass: in which group of `repeat_choice` windows it lay, and whether the window that was chosen holds it.
    """
    length, k, total = config.model.n_ctx, config.data.repeat_choice, len(store.train)
    sequences = window_at(config, step) // k
    tokens, count = sequences * length, n_windows(store.train, length)
    if sequences * k <= count:
        distinct = float(tokens)
    elif k == 1:
        distinct = float(min(tokens, total))
    else:
        distinct = _share_of_positions(config, store, sequences, positions) * total
    distinct = min(distinct, float(tokens))
    return TextRead(
        step=step,
        tokens=tokens,
        text_tokens=total,
        passes=sequences * k / count,
        distinct_share=distinct / total,
        seen_before=1 - distinct / tokens if tokens else 0.0,
    )


def _share_of_positions(config: RunConfig, store: TokenStore, sequences: int, positions: int) -> float:
    """Share of random tokens of the text that lie in one of the first `sequences` windows trained on."""
    length, k, seed, total = config.model.n_ctx, config.data.repeat_choice, order_of_data(config), len(store.train)
    count = n_windows(store.train, length)
    passes = math.ceil(sequences * k / count)
    chosen: dict[int, int] = {}  # group of k windows to where the chosen one starts
    positions = max(min(positions, LOOKUPS // passes), 100)
    drawn = np.random.default_rng(0).integers(count * length, size=positions)
    unread = np.ones(positions, bool)
    for epoch in range(passes):
        order, offset = epoch_order(seed, epoch, count, length)
        place = np.argsort(order)
        for i in np.flatnonzero(unread):
            window = (int(drawn[i]) - offset) // length
            if window < 0:
                continue
            group = (epoch * count + int(place[window])) // k
            if group >= sequences:
                continue
            if group not in chosen:
                chosen[group] = _chosen_start(store, seed, group, k, total, length)
            unread[i] = not chosen[group] <= drawn[i] < chosen[group] + length
    return 1 - float(unread.mean())


def _chosen_start(store: TokenStore, seed: Order, group: int, k: int, total: int, length: int) -> int:
    """Where the window starts that training took of a group, as `training.data.batches.batch` takes it."""
    starts = sequence_starts(seed, group * k, k, total, length)
    tokens = np.stack([store.train[start : start + length + 1] for start in starts])
    weights = np.stack([store.surprisal[start + 1 : start + length + 1] for start in starts])
    return starts[int(repeat_value(tokens, weights).argmax())]


def _losses(
    run: Run, config: RunConfig, store: TokenStore, checkpoint: str, compute: Compute
) -> Mapping[str, float | None]:
    model = load_hooked(checkpoint, device=compute.device, dtype=dtype_named(compute.dtype), prove=False)
    limit_memory(model, compute.max_bytes)
    length, k = config.model.n_ctx - 1, config.data.repeat_choice
    text = windows(store.train, length, WINDOWS, run.eval_seed)
    losses: dict[str, float | None] = {"loss_training_text": natural_losses(model, text).mean().item()}
    groups = min(WINDOWS, n_windows(store.validation, length) // k)
    if k > 1 and groups and store.index["vocab_size"] ** 2 <= MAX_PAIRS:
        weights = held_out_surprisal(store)
        alike = batch(store.validation, length, groups, run.eval_seed, 0, k, weights)
        losses["loss_held_out_chosen"] = natural_losses(model, alike).mean().item()
    return losses


def held_out_surprisal(store: TokenStore) -> Float[np.ndarray, " token"]:
    """How hard each held-out token is to predict from the one before it, in nats, by the training text's pair counts;
    a pair that the training text does not have counts as its rarest."""
    size = store.index["vocab_size"]
    table = np.full((size, size), np.nan, np.float16)
    before = np.zeros(0, np.uint16)
    for tokens, values in zip(_pieces(store.train), _pieces(store.surprisal), strict=True):
        joined = np.concatenate([before, tokens])
        table[joined[:-1], joined[1:]] = values[len(values) - len(joined) + 1 :]
        before = tokens[-1:]
    held_out = store.validation[:]
    weights = np.zeros(len(held_out))
    weights[1:] = table[held_out[:-1], held_out[1:]]
    return np.nan_to_num(weights, nan=float(np.nanmax(table)))


def _pieces(array: ShardedArray, size: int = 1 << 22) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]
