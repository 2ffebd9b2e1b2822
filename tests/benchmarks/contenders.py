"""Four ways to train one model on the same batches, each in a process of its own: `python contenders.py NAME CONFIG`.

A way calls `tick()` after every update. It hands the seconds of a round of updates to standard output and waits for a
line on standard input before the next, so that the processes take turns and the machine's noise hits all of them.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from trainer_arguments import trainer_arguments
from transformers import LlamaForCausalLM, Trainer, TrainerCallback

from copyscope.training.config import RunConfig
from copyscope.training.data.batches import batch, windows
from copyscope.training.data.store import TokenStore, token_store
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.machine import fast_bf16, keep_freed_memory

DTYPE = torch.bfloat16 if fast_bf16() else torch.float32


class Setting:
    """The model, its batches, and the clock that hands the turn over."""

    def __init__(self, config: RunConfig, root: Path, round_size: int):
        self.config, self.round_size = config, round_size
        self.store: TokenStore = token_store(config.data, root)
        self.model: LlamaForCausalLM = build_model(config, self.store.index["vocab_size"])
        self.done = 0
        self.started = 0.0

    def batch(self, step: int) -> torch.Tensor:
        return batch(self.store.train, self.config.model.n_ctx, self.config.train.batch_size, 0, step)

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        o = self.config.optimizer
        groups = [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": o.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)

    def tick(self) -> None:
        self.done += 1
        if self.done % self.round_size == 0:
            say(seconds=time.perf_counter() - self.started)
            self.wait()

    def wait(self) -> None:
        sys.stdin.readline()
        self.started = time.perf_counter()

    def held_out_loss(self) -> float:
        """In fp32 by transformers, whatever trained the weights."""
        held_out = windows(self.store.validation, self.config.model.n_ctx, 16, 0)
        with torch.no_grad():
            logits = self.model.float()(input_ids=held_out[:, :-1], use_cache=False).logits
        return float(cross_entropy(logits.flatten(0, 1), held_out[:, 1:].flatten()))


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def peak_megabytes() -> float:
    """Of this process since it was started; getrusage would count what its parent had held."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


def loop(setting: Setting, model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor]) -> None:
    optimizer = setting.optimizer(model)
    for step in range(setting.config.train.steps):
        loss_of(setting.batch(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setting.config.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        setting.tick()


def copyscope(setting: Setting) -> None:
    keep_freed_memory()
    loop(setting, setting.model, NextTokenLoss(setting.model, setting.config.model.n_ctx, DTYPE))


def plain(setting: Setting) -> None:
    """A loop as in nanoGPT: the library's model, autocast, the fused attention of torch."""

    def loss_of(sequences: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=DTYPE is torch.bfloat16):
            logits = setting.model(input_ids=sequences[:, :-1], use_cache=False).logits
            return cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())

    setting.model.train()
    loop(setting, setting.model, loss_of)


def hooked(setting: Setting) -> None:
    """A TransformerLens HookedTransformer of the same weights, as its own `train` does it: its loss, under autocast."""
    import tempfile

    from copyscope.interp.models.hooked import load_hooked

    with tempfile.TemporaryDirectory() as folder:
        setting.model.save_pretrained(folder)
        model = load_hooked(folder, prove=False)
    model.train().requires_grad_(True)

    def loss_of(sequences: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=DTYPE is torch.bfloat16):
            logits = model(sequences[:, :-1], return_type="logits", prepend_bos=False)
            return cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())

    loop(setting, model, loss_of)


class Sequences(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    def __init__(self, setting: Setting):
        self.setting = setting

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self.setting.config.train.steps):
            for row in self.setting.batch(step):
                yield {"input_ids": row[:-1], "labels": row[1:], "shift_labels": row[1:]}


class Ticks(TrainerCallback):
    def __init__(self, setting: Setting):
        self.setting = setting

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.setting.tick()


def trainer(setting: Setting) -> None:
    """transformers' Trainer with its fused AdamW; it writes nothing and logs nothing."""
    train = setting.config.train
    arguments = trainer_arguments(setting.config, train.steps, train.batch_size, DTYPE is torch.bfloat16, on_cpu=True)
    Trainer(model=setting.model, args=arguments, train_dataset=Sequences(setting), callbacks=[Ticks(setting)]).train()


WAYS: dict[str, Callable[[Setting], None]] = {
    "copyscope": copyscope,
    "Trainer": trainer,
    "plain loop": plain,
    "HookedTransformer": hooked,
}


def main() -> None:
    name, config, root, round_size = sys.argv[1:]
    setting = Setting(RunConfig.load(config), Path(root), int(round_size))
    say(ready=True)
    setting.wait()
    WAYS[name](setting)
    # Of the hooked model the weights are not those measured here, so its loss is left out.
    say(megabytes=peak_megabytes(), loss=None if name == "HookedTransformer" else setting.held_out_loss())


if __name__ == "__main__":
    main()
