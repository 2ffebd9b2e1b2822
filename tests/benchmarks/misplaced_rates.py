"""How often `verify` misses a misplaced checkpoint by distances alone, and how often it reports a right one.

    .venv/bin/python tests/benchmarks/misplaced_rates.py              # simulated paths and small training runs
    .venv/bin/python tests/benchmarks/misplaced_rates.py --draws 20   # quicker

Prints the table of docs/cannot-tell.md. Each fault is put at every place (training runs) or at one drawn place of each
draw (simulated paths), and what `find_misplaced` says is compared with it.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from simulated_path import EVEN, KINDS, LOGS, simulated_path

from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.checkpoints.trajectory import find_misplaced
from copyscope.training.config import RunConfig
from copyscope.training.trainer import train


@dataclass(frozen=True)
class Case:
    """The weights [checkpoint, value] of a run and of another run at the same steps."""

    kind: str
    steps: list[int]
    run: np.ndarray
    other: np.ndarray


def swapped(path: Case, place: int) -> tuple[np.ndarray, set[int]]:
    weights = path.run.copy()
    place = min(place, len(weights) - 2)
    weights[[place, place + 1]] = weights[[place + 1, place]]
    return weights, {place, place + 1}


def from_other_run(path: Case, place: int) -> tuple[np.ndarray, set[int]]:
    weights = path.run.copy()
    weights[place] = path.other[place]
    return weights, {place}


def from_other_run_on(path: Case, place: int) -> tuple[np.ndarray, set[int]]:
    weights = path.run.copy()
    place = min(max(place, 2), len(weights) - 2)
    weights[place:] = path.other[place:]
    return weights, {place}


def repeated_far(path: Case, place: int) -> tuple[np.ndarray, set[int]]:
    """The weights of four places away or more, taken nearly as they are: equal ones are found before."""
    n = len(path.run)
    far = [p for p in range(n) if abs(p - place) >= 4]
    weights = path.run.copy()
    source = far[place % len(far)]
    neighbour = source + 1 if source + 1 < n else source - 1
    weights[place] = (weights[source] + weights[neighbour]) / 2
    return weights, {place}


FAULTS: dict[str, tuple[Callable[[Case, int], tuple[np.ndarray, set[int]]], Callable[[int, int], bool]]] = {
    "two neighbours swapped": (swapped, lambda place, n: 0 < place < n - 2),
    "the first two or last two swapped": (swapped, lambda place, n: place in (0, n - 2)),
    "another run's, inside": (from_other_run, lambda place, n: 0 < place < n - 1),
    "another run's, first": (from_other_run, lambda place, n: place == 0),
    "another run's, last": (from_other_run, lambda place, n: place == n - 1),
    "another run's from a step on": (from_other_run_on, lambda place, n: 2 <= place <= n - 2),
    "of four places away or more": (repeated_far, lambda place, n: True),
}


def reported(steps: list[int], weights: np.ndarray) -> set[int]:
    squares = (weights**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * weights @ weights.T, 0))
    return {one.place for one in find_misplaced(steps, lambda i, j: float(apart[i, j]))}


def simulated(draws: int) -> Iterator[Case]:
    for number in range(draws):
        for kind, how in KINDS.items():
            for steps in (EVEN, LOGS):
                run, other = (simulated_path(steps, seed, **how) for seed in (2 * number, 2 * number + 1))
                yield Case(kind, steps, run, other)


def trained() -> Iterator[Case]:
    """Four small models, a minute each: 0.1 M weights, 600 updates, constant and falling learning rate."""
    values = {
        "model.n_layers": 2,
        "model.d_model": 48,
        "model.d_mlp": 96,
        "model.n_ctx": 64,
        "data.vocab_size": 512,
        "data.max_megabytes": 2.0,
        "train.steps": 600,
        "train.batch_size": 4,
        "optimizer.warmup_steps": 50,
        "checkpoints.every": 50,
        "train.validation_sequences": 8,
    }
    with tempfile.TemporaryDirectory() as folder:
        for schedule in ("constant", "cosine"):
            runs = []
            for seed in (0, 1):
                config = RunConfig().with_values(
                    {**values, "optimizer.schedule": schedule, "seeds.init": seed, "seeds.data": seed}
                )
                run = train(config, Path(folder) / f"{schedule}{seed}")
                members = CheckpointSeries.open(run).checkpoints
                tensors = [load_file(Path(one.path) / "model.safetensors") for one in members]
                runs.append(np.array([np.concatenate([t[name].ravel() for name in sorted(t)]) for t in tensors], float))
            steps = [one.step for one in members]
            even = [i for i, step in enumerate(steps) if step % 50 == 0]
            for places in (even, list(range(len(steps)))):
                for run, other in (runs, runs[::-1]):
                    yield Case("trained", [steps[i] for i in places], run[places], other[places])


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--draws", type=int, default=100, help="of each kind of simulated path and spacing (100)")
    draws = arguments.parse_args().draws
    counts: dict[tuple[str, str], Counter[str]] = {}
    kinds = dict.fromkeys([*KINDS, "trained"])
    chance = random.Random(0)
    for paths, every in ((simulated(draws), False), (trained(), True)):
        for path in paths:
            n = len(path.steps)
            false = reported(path.steps, path.run)
            counts.setdefault(("none", path.kind), Counter())["exact" if not false else "other"] += 1
            for fault, (put, fits) in FAULTS.items():
                places = [place for place in range(n) if fits(place, n)]
                for place in places if every else [chance.choice(places)]:
                    weights, wrong = put(path, place)
                    said = reported(path.steps, weights)
                    verdict = "exact" if said == wrong else "partly" if said & wrong else "other" if said else "missed"
                    counts.setdefault((fault, path.kind), Counter())[verdict] += 1
    print("| fault | " + " | ".join(kinds) + " |")
    print("|---|" + "---:|" * len(kinds))
    for fault in ("none", *FAULTS):
        cells = []
        for kind in kinds:
            counter = counts[fault, kind]
            total = counter.total()
            missed, exact = counter["missed"] / total, counter["exact"] / total
            cells.append(f"{1 - exact:.1%}" if fault == "none" else f"{missed:.1%}, {exact:.0%}")
        print(f"| {fault} | " + " | ".join(cells) + " |")
    totals = {kind: counts["none", kind].total() for kind in kinds}
    print(f"\nSeries of each kind: {totals}")


if __name__ == "__main__":
    main()
