"""Tokens per second of the training loss and update, against transformers' own forward, side by side in one run.

The two take turns on the same model, batches and optimiser, so that noise of the machine hits both. Run by
`make bench`; prints a table. Ratios mean something, absolute figures little.
"""

import statistics
import time
from collections.abc import Callable

import torch

from training.config import RunConfig
from training.forward import NextTokenLoss
from training.machine import native_bf16
from training.model import build_model

ROUNDS = 12


def main() -> None:
    config = RunConfig.load("quickstart")
    dtype = torch.bfloat16 if native_bf16() else torch.float32
    model = build_model(config, config.data.vocab_size)
    ours = NextTokenLoss(model, config.model.n_ctx, dtype)
    tokens = torch.randint(config.data.vocab_size, (config.train.batch_size, config.model.n_ctx + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def theirs() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def seconds(loss: Callable[[], torch.Tensor]) -> float:
        started = time.perf_counter()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    ways = {"copyscope": lambda: ours(tokens), "transformers + autocast": theirs}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, loss in ways.items():
            taken[name].append(seconds(loss))
    size = tokens[:, 1:].numel()
    print(f"quickstart model, {dtype}, {torch.get_num_threads()} threads, median of {ROUNDS - 2} updates")
    medians = {name: statistics.median(values[2:]) for name, values in taken.items()}
    for name, median in medians.items():
        print(f"{name:26} {size / median:10,.0f} tokens/s   {medians['transformers + autocast'] / median:5.2f}x")


if __name__ == "__main__":
    main()
