"""What happens at which update: learning rate, checkpoints. Pure functions of the configuration and the step."""

import math

from copyscope.training.config import RunConfig


def settings_at(config: RunConfig, step: int) -> RunConfig:
    """The settings of update `step` (from 0): those of a fork whose change lasts for a while until that is over, then
    its parent's."""
    fork = config.fork
    return config if fork.until is None or step < fork.until else config.with_values(fork.after)


def checkpoint_steps(config: RunConfig) -> list[int]:
    """The steps saved: 0, 1, 2, 4, … up to `checkpoints.every`, then evenly, plus the listed ones and the last; of a
    fork those after the step that it begins at."""
    every, last = config.checkpoints.every, config.train.steps
    powers = [2**k for k in range(every.bit_length()) if 2**k < every]
    steps = {0, *powers, *range(every, last + 1, every), *config.checkpoints.steps, last}
    first = config.fork.at + 1 if config.fork.of else 0
    return sorted(step for step in steps if first <= step <= last)


def kept_steps(config: RunConfig) -> set[int]:
    """Those of `checkpoint_steps` that stay on disk once `on_checkpoint` has seen them."""
    saved = set(checkpoint_steps(config))
    if config.checkpoints.keep == "all":
        return saved
    return saved & {*config.checkpoints.steps, config.train.steps} if config.checkpoints.keep == "subset" else set()


def tokens_at(config: RunConfig, step: int) -> int:
    """Tokens consumed by the first `step` updates."""
    return config.fork.tokens + (step - config.fork.at) * config.train.batch_size * config.model.n_ctx


def window_at(config: RunConfig, step: int) -> int:
    """The first window of the text that update `step` (from 0) chooses its sequences from, in the order of the data."""
    return config.fork.window + (step - config.fork.at) * config.train.batch_size * config.data.repeat_choice


def order_of_data(config: RunConfig) -> tuple[tuple[int, int], ...]:
    """Which seed orders the windows of the text, as (first window, seed): one for a run from step 0; a fork with
    another seed puts what its parent had not read yet in another order."""
    pieces = [*config.fork.order]
    if not pieces or pieces[-1][1] != config.seeds.data:
        pieces.append((config.fork.window, config.seeds.data))
    return tuple(pieces)


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of update `step` (from 0)."""
    optimizer = config.optimizer
    warm = min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
    length = max(1, round(config.train.steps * optimizer.decay_share))
    done = max(0.0, (step - (config.train.steps - length)) / length)
    if optimizer.schedule == "constant" or done == 0:
        return optimizer.lr * warm
    left = 1 - done if optimizer.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optimizer.lr * warm * (optimizer.final_lr_share + (1 - optimizer.final_lr_share) * left)
