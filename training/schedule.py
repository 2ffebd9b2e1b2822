"""What happens at which update: learning rate, checkpoints. Pure functions of the configuration and the step."""

import math

from copyscope.training.config import RunConfig


def checkpoint_steps(config: RunConfig) -> list[int]:
    """The steps saved: 0, 1, 2, 4, … up to `checkpoints.every`, then evenly, plus the listed ones and the last."""
    every, last = config.checkpoints.every, config.train.steps
    powers = [2**k for k in range(every.bit_length()) if 2**k < every]
    steps = {0, *powers, *range(every, last + 1, every), *config.checkpoints.steps, last}
    return sorted(step for step in steps if 0 <= step <= last)


def kept_steps(config: RunConfig) -> set[int]:
    """Those of `checkpoint_steps` that stay on disk once `on_checkpoint` has seen them."""
    saved = set(checkpoint_steps(config))
    if config.checkpoints.keep == "all":
        return saved
    return saved & {*config.checkpoints.steps, config.train.steps} if config.checkpoints.keep == "subset" else set()


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
