"""Tokens per second of training the paper's model on one GPU, copyscope against two other ways: `make bench-gpu`.

Random tokens, an update of 128 sequences of 1,024 tokens in 4 parts, AdamW unless it says Muon, bf16 products. Each way
is warmed up (and compiled) first; then its updates are timed, 30 of them or as many as `--seconds` allow. Prints a line
as each finishes: tokens/s, MFU (`copyscope.training.speed`, by each model's own operations), peak memory, and how long
it took to warm up. `--tiny` runs a small model on the CPU, to see that everything works.

    python tests/benchmarks/gpu_train.py [--only NAME,…] [--seconds 5] [--out FILE] [--tiny]
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from copyscope.training.config import RunConfig
from copyscope.training.data.batches import batch
from copyscope.training.data.prefetch import batches_on
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss
from copyscope.training.model.optimizers import build_optimizers
from copyscope.training.processes import copied
from copyscope.training.speed import flops_per_token, mfu, peak_flops
from copyscope.training.trainer import step_optimizers

WARM_UP, UPDATES = 3, 30
TINY = {
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.d_model": 32,
    "model.d_mlp": 48,
    "model.n_ctx": 32,
    "data.vocab_size": 300,
    "train.batch_size": 8,
    "train.gradient_accumulation": 2,
}


class Clock:
    """Calls `tick` after each update; it says whether to go on."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.limit = device, seconds
        self.made = self._now()
        self.started = self.ended = 0.0
        self.updates = 0

    def tick(self) -> bool:
        self.updates += 1
        if self.updates == WARM_UP:
            self.started = self._now()
        if self.updates <= WARM_UP:
            return True
        # The CPU runs ahead of the GPU, so the limit is looked at every few updates only.
        if self.updates == WARM_UP + UPDATES or (self.updates % 5 == 0 and self._now() - self.started > self.limit):
            self.ended = self._now()
            return False
        return True

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Setting:
    config: RunConfig
    device: torch.device
    tokens: np.ndarray

    @property
    def rows(self) -> int:
        return self.config.train.batch_size // self.config.train.gradient_accumulation

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


Outcome = tuple[float, float, float]
"""Loss of the first and of the last update, and operations a token."""


def copyscope(setting: Setting, clock: Clock, compiled: bool = False, muon: bool = False) -> Outcome:
    """As `training.trainer` does it: its batches, loss, clipping and optimisers, and the norm read one update late."""
    config = setting.config.with_values({"optimizer.name": "muon" if muon else "adamw"})
    t, n_ctx, device = config.train, config.model.n_ctx, setting.device
    model: Any = build_model(config, config.data.vocab_size)
    model.to(device)
    loss_of = NextTokenLoss(model, n_ctx, torch.bfloat16, compiled=compiled).to(device)
    optimizers = build_optimizers(config.optimizer, model)
    losses, norm_before = [], None

    def read(step: int) -> Tensor:
        return batch(setting.tokens, n_ctx, t.batch_size, 0, step)

    with batches_on(device, read, range(1000)) as batches:
        for sequences in batches:
            total = torch.zeros((), device=device)
            for some in sequences.chunk(t.gradient_accumulation):
                loss = loss_of(some) / t.gradient_accumulation
                loss.backward()
                total += loss.detach()
            norm = copied(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)[None])
            if norm_before:
                norm_before()
            norm_before = norm
            step_optimizers(optimizers, config.optimizer.lr)
            losses.append(total)
            if not clock.tick():
                break
    return float(losses[0]), float(losses[-1]), flops_per_token(config.model, config.data.vocab_size)


class Gpt(nn.Module):
    """GPT-2's shape: learned positions, LayerNorm before each part, GELU, the unembedding tied to the embedding."""

    def __init__(self, layers: int, heads: int, width: int, n_ctx: int, vocabulary: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(n_ctx, width)
        self.blocks = nn.ModuleList(GptBlock(heads, width) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(inputs) + self.positions(torch.arange(inputs.shape[1], device=inputs.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class GptBlock(nn.Module):
    def __init__(self, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.o = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(), is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


def nanogpt(setting: Setting, clock: Clock) -> Outcome:
    """A loop in nanoGPT's manner: GPT-2 of as many layers and as wide, autocast, torch.compile of the whole model,
    fused AdamW, random windows copied from pinned memory."""
    c, device = setting.config, setting.device
    m = c.model
    model = Gpt(m.n_layers, m.n_heads, m.d_model, m.n_ctx, c.data.vocab_size).to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": c.optimizer.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (c.optimizer.beta1, c.optimizer.beta2)
    optimizer = torch.optim.AdamW(groups, lr=c.optimizer.lr, betas=betas, fused=device.type == "cuda")
    loss_of: Any = torch.compile(model)
    draw = np.random.default_rng(0)

    def read() -> Tensor:
        starts = draw.integers(0, len(setting.tokens) - m.n_ctx - 1, setting.rows)
        rows = np.stack([setting.tokens[start : start + m.n_ctx + 1] for start in starts]).astype(np.int64)
        on_cpu = torch.from_numpy(rows)
        return (on_cpu.pin_memory() if device.type == "cuda" else on_cpu).to(device, non_blocking=True)

    losses, parts = [], c.train.gradient_accumulation
    sequences = read()
    while True:
        total = torch.zeros((), device=device)
        for _ in range(parts):
            with setting.autocast():
                loss = loss_of(sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()) / parts
            sequences = read()  # while the GPU computes
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), c.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if not clock.tick():
            break
    weights = 12 * m.n_layers * m.d_model**2 + m.d_model * c.data.vocab_size
    return float(losses[0]), float(losses[-1]), 6.0 * weights + 12.0 * m.n_layers * m.d_model * m.n_ctx


class Rows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Random windows without end."""

    def __init__(self, setting: Setting):
        self.setting = setting

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        tokens, length = self.setting.tokens, self.setting.config.model.n_ctx
        draw = np.random.default_rng(0)
        while True:
            start = int(draw.integers(0, len(tokens) - length))
            row = torch.from_numpy(tokens[start : start + length].astype(np.int64))
            yield {"input_ids": row, "labels": row}


def trainer(setting: Setting, clock: Clock) -> Outcome:
    """transformers' Trainer with the same Llama and its fused AdamW; it writes and logs nothing."""
    from trainer_arguments import trainer_arguments
    from transformers import Trainer, TrainerCallback

    c = setting.config
    losses: list[Tensor] = []

    class Ticks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = not clock.tick()

    class Noted(Trainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss: Any = super().compute_loss(*args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).detach())
            return loss

    on_cpu = setting.device.type == "cpu"
    arguments = trainer_arguments(c, WARM_UP + UPDATES, setting.rows, bf16=True, on_cpu=on_cpu)
    model = build_model(c, c.data.vocab_size)
    Noted(model=model, args=arguments, train_dataset=Rows(setting), callbacks=[Ticks()]).train()
    parts = c.train.gradient_accumulation  # by which Trainer has divided the losses
    return float(losses[0]) * parts, float(losses[-1]) * parts, flops_per_token(c.model, c.data.vocab_size)


WAYS: dict[str, Callable[[Setting, Clock], Outcome]] = {
    "copyscope": copyscope,
    "copyscope-compiled": partial(copyscope, compiled=True),
    "copyscope-compiled-muon": partial(copyscope, compiled=True, muon=True),
    "copyscope-muon": partial(copyscope, muon=True),
    "trainer": trainer,
    "nanogpt": nanogpt,
}
BY_DEFAULT = [name for name in WAYS if name != "copyscope-muon"]


def measure(name: str, setting: Setting, seconds: float, peak: float | None) -> dict[str, Any]:
    on_gpu = setting.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(setting.device, seconds)
    try:
        first, last, operations = WAYS[name](setting, clock)
    except Exception as error:  # the others go on
        return {"name": name, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    tokens = setting.config.train.batch_size * setting.config.model.n_ctx
    updates = clock.updates - WARM_UP
    speed = tokens * updates / (clock.ended - clock.started)
    return {
        "name": name,
        "tokens_per_second": speed,
        "mfu": mfu(speed, operations, peak) if peak else None,
        "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None,
        "updates": updates,
        "ms_per_update": 1000 * (clock.ended - clock.started) / updates,
        "warm_up_seconds": clock.started - clock.made,
        "first_loss": first,
        "last_loss": last,
    }


def row(result: dict[str, Any]) -> str:
    name = result["name"]
    if "error" in result:
        return f"{name:24} {result['error']}"
    share = "-" if result["mfu"] is None else f"{result['mfu']:.1%}"
    memory = "-" if result["gigabytes"] is None else f"{result['gigabytes']:.1f}"
    r = result
    return (
        f"{name:24} {r['tokens_per_second']:>10,.0f} {share:>7} {memory:>6} {r['ms_per_update']:>10.1f} "
        f"{r['updates']:>7} {r['warm_up_seconds']:>9.1f} {r['first_loss']:>7.3f} {r['last_loss']:>7.3f}"
    )


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parse.add_argument("--only", help=f"Some of {', '.join(WAYS)}; all but copyscope-muon if not given.")
    parse.add_argument("--seconds", type=float, default=5.0, help="Most seconds of timed updates each.")
    parse.add_argument("--out", type=Path, help="Results are added to this file, a JSON object a line.")
    parse.add_argument("--tiny", action="store_true", help="A small model on the CPU.")
    given = parse.parse_args()
    names = given.only.split(",") if given.only else BY_DEFAULT
    if unknown := set(names) - WAYS.keys():
        parse.error(f"--only {', '.join(sorted(unknown))}: there are {', '.join(WAYS)}")
    if not given.tiny and not torch.cuda.is_available():
        parse.error("no NVIDIA GPU here; --tiny runs on the CPU")

    config = RunConfig.load("paper").with_values(TINY if given.tiny else {})
    device = torch.device("cpu" if given.tiny else "cuda")
    if given.tiny:
        torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    tokens = np.random.default_rng(0).integers(0, config.data.vocab_size, 4_000_000, dtype=np.uint16)
    setting = Setting(config=config, device=device, tokens=tokens)
    card = "CPU" if given.tiny else torch.cuda.get_device_name()
    peak = peak_flops(card)
    m, t = config.model, config.train
    print(f"{card}, torch {torch.__version__}, {t.batch_size} x {m.n_ctx} tokens in {t.gradient_accumulation} parts")
    if peak:
        most = peak / flops_per_token(m, config.data.vocab_size)
        print(f"peak {peak / 1e12:,.0f} TFLOP/s in bf16: {most:,.0f} tokens/s of the paper's model at an MFU of 100 %")
    print(
        f"{'':24} {'tokens/s':>10} {'MFU':>7} {'GB':>6} {'ms/update':>10} {'updates':>7} {'warm-up s':>9} "
        f"{'loss':>7} {'to':>7}",
        flush=True,
    )
    for name in names:
        result = measure(name, setting, given.seconds, peak)
        print(row(result), flush=True)
        if given.out:
            with given.out.open("a") as stream:
                stream.write(json.dumps(result | {"card": card, "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
