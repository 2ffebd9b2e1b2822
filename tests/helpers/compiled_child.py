"""Compares the compiled loss of a small model with the eager one: `python compiled_child.py cpu|cuda`; prints JSON.

On a CPU what is traced is run by PyTorch's own operations; code is generated for it on a GPU only.
"""

import json
import sys
from functools import partial
from typing import Any

import torch

from copyscope.training.config import RunConfig
from copyscope.training.model.interventions import Intervention
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss

SIZES = {"model.n_layers": 2, "model.d_model": 128, "model.d_mlp": 96, "model.n_heads": 2}


def compare(device: str, intervention: Intervention | None) -> dict[str, Any]:
    batch = torch.randint(0, 9, (4, 65), generator=torch.Generator().manual_seed(1)).to(device)
    model: Any = build_model(RunConfig().with_values(SIZES), 300)
    model.to(device)
    results = []
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        loss_of = NextTokenLoss(model, 64, torch.bfloat16, compiled=compiled).to(device)
        for _ in range(2):  # the second time nothing is compiled again
            loss_of.intervention = intervention and Intervention(*intervention)
            loss = loss_of(batch)
            model.zero_grad()
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        loss_of.eval()
        with torch.no_grad():
            results.append((loss.item(), gradient, loss_of(batch).item()))
    (wanted, exact, eager_validation), (loss, near, validation) = results
    return {
        "loss": loss,
        "eager_loss": wanted,
        "gradients_apart": float((near - exact).norm() / exact.norm()),
        "validation_loss": validation,
        "eager_validation_loss": eager_validation,
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
    }


def main() -> None:
    device = sys.argv[1]
    if device == "cpu":
        torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    held = (None, Intervention({1: [0]}, "uniform", True))
    print(json.dumps([compare(device, intervention) for intervention in held]))


if __name__ == "__main__":
    main()
