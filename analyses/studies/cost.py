"""What a study will cost, from a few measured updates."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from copyscope.training.config import RunConfig
from copyscope.training.data.batches import batch
from copyscope.training.engines.child import usable_cores
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.optimizers import build_optimizers
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.sweeps.plan import AskTasks, asked_steps

SECONDS = 3.0
"""Time for the measured updates, after the first."""
MAX_OPERATIONS = 2e10
"""Multiplications of a measured forward pass, at most, if a sequence has no more: a large batch is measured by a part
of it."""
SCORING = 2 / 3
"""A token that is scored costs so much of one that is trained on; measured with the preset `study`."""
TASK_TOKENS = 200_000
"""Of all contexts and queries of the in-context tasks that need no words, whatever n_ctx."""
START = 10.0
"""Seconds a process takes to load its libraries."""


class Cost(NamedTuple):
    """What training and scoring the runs of a study will take."""

    runs: int
    updates: int
    tokens: int
    hours: float
    """Of this machine, `jobs` runs at a time."""

    def words(self) -> str:
        hours = f"{self.hours * 60:.0f} minutes" if self.hours < 2 else f"{self.hours:,.1f} hours"
        return (
            f"{self.runs} runs to do, {self.updates:,} updates, {self.tokens:,} tokens: about {hours} on this machine, "
            "from a measured probe"
        )


def cost_of(configs: Sequence[RunConfig], samples: int, jobs: int, tasks: AskTasks = False) -> Cost:
    """The cost of training and scoring runs of these configurations here, `jobs` at a time; `tasks`: with
    the in-context tasks at each checkpoint, or at the last.

    The first one's updates are measured, on random tokens; the others are taken to cost in proportion to their
    arithmetic. What else the machine is doing counts as it is at this moment.
    """
    if not configs:
        return Cost(0, 0, 0, 0.0)
    per_operation = update_seconds(configs[0], max(1, usable_cores() // jobs)) / (
        tokens_of(configs[0]) * operations(configs[0])
    )
    seconds = 0.0
    for config in configs:
        trained = config.train.steps * tokens_of(config)
        steps = checkpoint_steps(config)
        asked = len(asked_steps(steps, tasks))
        scored = (len(steps) * scored_tokens(config, samples) + asked * TASK_TOKENS) * SCORING
        seconds += START + (trained + scored) * operations(config) * per_operation
    updates = sum(config.train.steps for config in configs)
    tokens = sum(config.train.steps * tokens_of(config) for config in configs)
    return Cost(len(configs), updates, tokens, seconds / min(jobs, len(configs)) / 3600)


def tokens_of(config: RunConfig) -> int:
    """Tokens of an update."""
    return config.train.batch_size * config.model.n_ctx


def operations(config: RunConfig) -> float:
    """Multiplications of a forward pass, for each token: matrices, attention, unembedding."""
    m = config.model
    width = m.n_heads * m.head_width
    keys = (m.n_key_value_heads or m.n_heads) * m.head_width
    layer = 2 * m.d_model * (width + keys) + 3 * m.d_model * m.d_mlp + m.n_ctx * width
    return float(m.n_layers * layer + m.d_model * config.data.vocab_size)


def scored_tokens(config: RunConfig, samples: int) -> float:
    """Tokens that one checkpoint is scored on: held-out text, repeated random tokens, the copying test."""
    n_ctx = config.model.n_ctx
    return 64 * n_ctx + 10_000 + samples * (min(n_ctx, 1024) / max(1, n_ctx // 90) + 18)


def update_seconds(config: RunConfig, threads: int) -> float:
    """Seconds of an update of this configuration with so many threads, measured on random tokens."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = int(MAX_OPERATIONS / (operations(config) * config.model.n_ctx))
        rows = max(1, min(config.train.batch_size, rows))
        return _measured(config, rows) * config.train.batch_size / rows
    finally:
        torch.set_num_threads(before)


def _measured(config: RunConfig, rows: int) -> float:
    n_ctx, choice = config.model.n_ctx, config.data.repeat_choice
    text = np.random.default_rng(0).integers(1, config.data.vocab_size, (n_ctx + 1) * rows * choice * 8, np.uint16)
    surprisal = np.ones(len(text), np.float16) if choice > 1 else None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(config, config.data.vocab_size)
    loss_of = NextTokenLoss(model, n_ctx, torch.bfloat16 if device == "cuda" else torch.float32)
    loss_of.to(device)
    optimizers = build_optimizers(config.optimizer, model)
    started, done = time.perf_counter(), -1  # the first update also sets things up
    while True:
        loss_of(batch(text, n_ctx, rows, 0, done + 1, choice, surprisal).to(device)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done += 1
        if device == "cuda":
            torch.cuda.synchronize()
        if done == 0:
            started = time.perf_counter()
        elif time.perf_counter() - started > SECONDS:
            return (time.perf_counter() - started) / done
