"""How often the verdicts of `copyscope claims` are wrong: the table of docs/claims.md.

    python tests/simulations/claim_rates.py [STUDIES]

Plants STUDIES (default 1,000) studies for every claim and three kinds of truth: no effect, a real one, and the real one
with runs that scatter by a factor of e (*drowned*). What is planted is the evidence of each run (formation steps with
their intervals, formed heads, when the loss settled); the verdicts are those of `analyses.claims`.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from copyscope.analyses.claims.across_runs import (
    learning_rate,
    optimization_intensity,
    regularization,
    updates_not_tokens,
)
from copyscope.analyses.claims.events import FUNCTION_VECTOR, SINKS, TOKEN_COPYING, WHOLE_COPYING, Step
from copyscope.analyses.claims.evidence import CopyingStep, Evidence
from copyscope.analyses.claims.order import induction_before_function_vector, sinks_after_induction, token_before_whole
from copyscope.analyses.claims.verdict import Verdict
from copyscope.analyses.claims.within_runs import delayed_emergence, shallow_to_deep, stage_after_stage
from copyscope.analyses.formation.emergence import Emergence
from copyscope.analyses.formation.loss import LossSettled

KINDS = ("no effect", "real", "drowned")
SCATTER, DROWNED = 0.15, 1.0
"""Standard deviation of ln step over seeds."""
LAST = 20_000
STAGES = ("previous-token head", "induction head", "copying (loss)")


def run(
    number: int,
    rng: np.random.Generator,
    step: float = 2000.0,
    config: dict[str, Any] | None = None,
    settled: float = 2000.0,
    heads: pl.DataFrame | None = None,
    order: list[float] | None = None,
    accuracy: float = 0.5,
    events: dict[str, Step | None] | None = None,
) -> Evidence:
    """The evidence of one run in which copying forms at `step`, or later than the last checkpoint."""
    formed = step < LAST
    copying = CopyingStep(
        measure="copying_accuracy_token",
        formed=formed,
        step=step if formed else None,
        low=step / 1.1 if formed else None,
        high=step * 1.1 if formed else None,
        provisional=False,
    )
    config = {"optimizer.lr": 1e-3, "train.batch_size": 8, "model.attention_dropout": 0.0} | (config or {})
    loss = LossSettled(
        step=int(settled),
        tokens=None,
        bracket_low=int(settled / 1.1),
        low=settled / 1.1,
        high=settled * 1.1,
        level=3.0,
        start=7.0,
        lowest=2.0,
        share=0.05,
        source="loss",
        last=LAST,
    )
    surge = (step, step / 1.1, step * 1.1) if formed else (None, None, None)
    emergence = Emergence(
        verdict="undecided",
        reason="",
        measure="copying_accuracy_token",
        settled=loss,
        settled_leniently=loss,
        surge=surge[0],
        surge_low=surge[1],
        surge_high=surge[2],
        delay=None,
        delay_tokens=None,
        ratio=None,
        ratio_low=None,
        ratio_high=None,
        abruptness=2.0,
        fell_back=False,
        dip=None,
        dip_step=None,
    )
    none = pl.DataFrame(schema={"layer": pl.Int64, "head": pl.Int64, "formed": pl.Boolean, "step": pl.Int64})
    since = None if order is None else [None, *("later" if b > a else "earlier" for a, b in pairwise(order))]
    stages = (
        pl.DataFrame()
        if order is None
        else pl.DataFrame(
            {
                "stage": STAGES,
                "step": [int(at) for at in order],
                "estimate": order,
                "low": [at / 1.1 for at in order],
                "high": [at * 1.1 for at in order],
                "since_previous": since,
            }
        ).with_columns(formed=True, began_earlier=False)
    )
    return Evidence(
        run=f"run{number}",
        source=f"run{number}",
        run_id=None,
        config=config,
        n_layers=6,
        induction=none if heads is None else heads,
        previous=None,
        order=stages,
        copying=copying,
        copying_loss=None,
        emergence=emergence,
        final={"copying_accuracy_token": accuracy + 0.03 * rng.normal()},
        rates=np.full(LAST, config["optimizer.lr"]),
        tokens_per_step=2048.0,
        events=events or {},
        last_step=LAST,
    )


def _steps(kind: str, effects: list[float], rng: np.random.Generator) -> list[float]:
    """Formation steps: ln step is shifted by the effects (unless there are none) and scatters."""
    scatter = DROWNED if kind == "drowned" else SCATTER
    return [2000 * math.exp((kind != "no effect") * effect + scatter * rng.normal()) for effect in effects]


def _late(kind: str, rng: np.random.Generator) -> list[Evidence]:
    return [run(i, rng, step) for i, step in enumerate(_steps(kind, [math.log(2)] * 4, rng))]


def _batches(kind: str, rng: np.random.Generator) -> list[Evidence]:
    sizes = [4, 8, 16, 32] * 3
    steps = _steps(kind, [-0.5 * math.log(size / 8) for size in sizes], rng)
    return [
        run(i, rng, step, {"train.batch_size": size}) for i, (size, step) in enumerate(zip(sizes, steps, strict=True))
    ]


def _depth(kind: str, rng: np.random.Generator) -> list[Evidence]:
    layers = rng.permutation(6) if kind == "no effect" else np.arange(6)
    scatter = 3 * DROWNED if kind == "drowned" else SCATTER
    runs = []
    for i in range(4):
        rows = [
            (layer, head, True, int(500 * math.exp(0.3 * layers[layer] + scatter * rng.normal())))
            for layer in range(6)
            for head in range(2)
        ]
        table = pl.DataFrame(rows, schema=["layer", "head", "formed", "step"], orient="row")
        runs.append(run(i, rng, heads=table))
    return runs


def _stages(kind: str, rng: np.random.Generator) -> list[Evidence]:
    shifts = [0.0, 0.0, 0.0] if kind == "no effect" else [0.0, 0.5, 1.0]
    scatter = DROWNED if kind != "real" else 0.1
    return [run(i, rng, order=[500 * math.exp(shift + scatter * rng.normal()) for shift in shifts]) for i in range(5)]


def _dropout(kind: str, rng: np.random.Generator) -> list[Evidence]:
    values = [0.0, 0.1] * 4
    steps = _steps(kind, [-0.5 * (value > 0) for value in values], rng)
    return [
        run(i, rng, step, {"model.attention_dropout": value})
        for i, (value, step) in enumerate(zip(values, steps, strict=True))
    ]


def _rates(kind: str, rng: np.random.Generator) -> list[Evidence]:
    rates = [5e-4, 1e-3, 2e-3] * 4
    steps = _steps(kind, [-math.log(rate / 1e-3) for rate in rates], rng)
    return [run(i, rng, step, {"optimizer.lr": rate}) for i, (rate, step) in enumerate(zip(rates, steps, strict=True))]


def _two(first: str | None, second: str) -> Callable[[str, np.random.Generator], list[Evidence]]:
    """Studies of five runs in which `second` forms 1.65 times as late as `first` (None: the induction head), each
    event scattering for itself; what would form after the last checkpoint has not formed."""

    def plant(kind: str, rng: np.random.Generator) -> list[Evidence]:
        runs = []
        for i in range(5):
            one, other = ((at, at / 1.1, at * 1.1) if at < LAST else None for at in _steps(kind, [0.0, 0.5], rng))
            events = {second: other} if first is None else {first: one, second: other}
            runs.append(run(i, rng, heads=_induction(one if first is None else None), events=events))
        return runs

    return plant


def _induction(step: Step | None) -> pl.DataFrame:
    """One induction head that formed at this step, or none."""
    rows = [] if step is None else [(0, 0, True, False, False, 0.9, *step)]
    columns = ["layer", "head", "formed", "fell_back", "began_earlier", "peak", "estimate", "low", "high"]
    types = [*[pl.Int64] * 2, *[pl.Boolean] * 3, *[pl.Float64] * 4]
    table = pl.DataFrame(rows, schema=dict(zip(columns, types, strict=True)), orient="row")
    return table.with_columns(step=pl.col("estimate").cast(pl.Int64))


@dataclass(frozen=True)
class Claim:
    """One claim, how its studies are planted, and which verdicts would be wrong."""

    name: str
    judge: Callable[[list[Evidence]], Verdict]
    plant: Callable[[str, np.random.Generator], list[Evidence]]
    planted: str
    """The real effect, in words."""
    wrong: dict[str, tuple[str, ...]]


BOTH = ("supported", "contradicted")
USUAL = {"no effect": BOTH, "real": ("contradicted",), "drowned": ("contradicted",)}
ORDER = "the second 1.65 times as late, 5 runs"
CLAIMS = (
    Claim("copying after the loss settled", delayed_emergence, _late, "twice as late, 4 runs", USUAL),
    Claim(
        "updates count, not tokens",
        updates_not_tokens,
        _batches,
        "exponent −1/2, 12 runs",
        {"no effect": ("contradicted",), "real": ("supported",), "drowned": ("supported",)},
    ),
    Claim("shallow to deep", shallow_to_deep, _depth, "a factor of 1.35 a layer, 4 runs", USUAL),
    Claim(
        "stage after stage",
        stage_after_stage,
        _stages,
        "a factor of 1.65 a stage, 5 runs",
        {"no effect": ("supported",), "real": ("contradicted",), "drowned": ()},
    ),
    Claim("regularization helps", regularization, _dropout, "39 % earlier, 8 runs", USUAL),
    Claim("a higher learning rate is faster", learning_rate, _rates, "exponent −1, 12 runs", USUAL),
    Claim(
        "optimization intensity",
        optimization_intensity,
        _rates,
        "the same summed rate, 12 runs",
        {"no effect": ("supported",), "real": ("contradicted",), "drowned": ("contradicted",)},
    ),
    Claim(
        "token copying before whole-entity copying",
        token_before_whole,
        _two(TOKEN_COPYING, WHOLE_COPYING),
        ORDER,
        USUAL,
    ),
    Claim(
        "induction before function-vector heads",
        induction_before_function_vector,
        _two(None, FUNCTION_VECTOR),
        ORDER,
        USUAL,
    ),
    Claim("sinks after induction heads", sinks_after_induction, _two(None, SINKS), ORDER, USUAL),
)


def rates(claim: Claim, kind: str, studies: int, seed: int = 0) -> Counter[str]:
    """Verdicts of so many planted studies."""
    rng = np.random.default_rng([seed, KINDS.index(kind), *map(ord, claim.name[:4])])
    return Counter(claim.judge(claim.plant(kind, rng)).verdict for _ in range(studies))


def main(studies: int) -> None:
    """Prints the table."""
    print(f"Of {studies:,} studies each: supported / contradicted / undecided, and how many of these are wrong.\n")
    print("| claim | what is real | " + " | ".join(KINDS) + " |\n|---|---|---|---|---|")
    for claim in CLAIMS:
        cells = []
        for kind in KINDS:
            found = rates(claim, kind, studies)
            wrong = sum(found[verdict] for verdict in claim.wrong[kind])
            cells.append(f"{found['supported']} / {found['contradicted']} / {found['undecided']}; {wrong} wrong")
        print(f"| {claim.name} | {claim.planted} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
