"""Tokens per second of training, copyscope against three other ways, side by side in one run: `make bench`.

Same initial weights, same batches, same optimiser and learning rate; the ways take turns, a round of updates each.
Ratios mean something, absolute figures little. Prints a table per model: tokens/s (median round), ratio to
transformers' Trainer, held-out loss after the same number of updates, peak memory of the process, and the share of the
fastest matrix product that was seen on this machine, measured between the rounds.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from contenders import DTYPE

from copyscope.training.config import RunConfig
from copyscope.training.data.store import token_store

CPUINFO = Path("/proc/cpuinfo")
WAYS = ("copyscope", "Trainer", "plain loop", "HookedTransformer")
# Updates a round, rounds; the first round is left out of the median.
MODELS = {"quickstart": (20, 8), "small": (4, 6)}


PEAK_SHAPES = ((2048, 2048, 2048), (1024, 1024, 1024), (2048, 128, 1024), (2048, 1024, 128), (2048, 256, 768))
"""Rows, inner dimension, columns: large squares, and what the models here multiply."""


def peak_flops() -> float:
    """The fastest of products of several shapes in fp32 and bf16, in floating-point operations a second.

    Squares in one type alone understate it: where bf16 is slower than fp32 (emulated, or without AMX), training in fp32
    would exceed 100 %. A type that is far slower on a small square is left out.
    """
    best = product_flops(torch.float32, (512, 512, 512))
    for dtype in (torch.float32, torch.bfloat16):
        if 2 * product_flops(dtype, (512, 512, 512), repeats=2) > best:
            best = max(best, *(product_flops(dtype, shape) for shape in PEAK_SHAPES))
    return best


def product_flops(dtype: torch.dtype, shape: tuple[int, int, int], repeats: int = 6) -> float:
    """The fastest of a few products of this shape, in operations a second."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / min(seconds)


def processor() -> str:
    """The processor's name and the instructions that PyTorch uses of it."""
    names = re.findall(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.is_file() else []
    name = names[0].strip() if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def flops_per_token(config: RunConfig) -> float:
    """Of products, forward and backward: 6 a weight (the embedding is looked up), and the causal half of attention."""
    m = config.model
    attention = m.d_model * m.head_width * 2 * (m.n_heads + (m.n_key_value_heads or m.n_heads))
    weights = m.n_layers * (attention + 3 * m.d_model * m.d_mlp) + m.d_model * config.data.vocab_size
    return 6 * weights + 6 * m.n_layers * m.n_heads * m.head_width * m.n_ctx


def compare(name: str, round_size: int, rounds: int, folder: Path) -> None:
    config = RunConfig.load(name).with_values(
        {
            "data.max_megabytes": 3.0,
            "data.repeat_choice": 1,
            "optimizer.warmup_steps": 0,
            "optimizer.lr": 1e-3,
            "optimizer.schedule": "constant",
            "train.batch_size": 8,
            "train.steps": round_size * rounds,
        }
    )
    (folder / "config.toml").write_text(config.to_toml())
    token_store(config.data, folder)  # once, before anyone is measured
    child = str(Path(__file__).with_name("contenders.py"))
    processes = {
        way: subprocess.Popen(
            [sys.executable, child, way, str(folder / "config.toml"), str(folder), str(round_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for way in WAYS
    }

    def hear(way: str) -> dict[str, Any]:
        stream = processes[way].stdout
        assert stream is not None
        for line in stream:
            if line.startswith('{"'):  # the Trainer prints a dict of its own
                return json.loads(line)
        raise SystemExit(f"{way} ended early")

    def go(way: str) -> dict[str, Any]:
        stream = processes[way].stdin
        assert stream is not None
        stream.write("go\n")
        stream.flush()
        return hear(way)

    for way in WAYS:
        hear(way)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peak = 0.0
    for _ in range(rounds):
        for way in WAYS:
            seconds[way].append(go(way)["seconds"])
        peak = max(peak, peak_flops())
    tokens = round_size * config.train.batch_size * config.model.n_ctx
    speed = {way: tokens / statistics.median(seconds[way][1:]) for way in WAYS}
    ends = {way: go(way) for way in WAYS}
    threads = torch.get_num_threads()
    print(
        f"\n{name}: batch 8 x {config.model.n_ctx}, {threads} threads, {DTYPE}, {rounds} rounds of {round_size} updates"
    )
    print(f"{'':18} {'tokens/s':>10} {'ratio':>6} {'loss':>8} {'MB':>6} {'of peak':>8}")
    for way in WAYS:
        loss, share = ends[way]["loss"], speed[way] * flops_per_token(config) / peak
        print(
            f"{way:18} {speed[way]:10,.0f} {speed[way] / speed['Trainer']:6.2f} "
            f"{'' if loss is None else format(loss, '8.4f'):>8} {ends[way]['megabytes']:6.0f} {share:8.1%}"
        )


def main() -> None:
    print(processor())
    for name, (round_size, rounds) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            compare(name, round_size, rounds, Path(folder))


if __name__ == "__main__":
    main()
