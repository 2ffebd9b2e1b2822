"""While a run trains: scores each checkpoint as it is written, and says in one line what changed since the last."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from copyscope.analyses.formation.nulls import strong
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run
from copyscope.analyses.tables.run_prompts import COPYING_SAMPLES
from copyscope.analyses.tables.scores import Scorer
from copyscope.analyses.tables.tasks import TaskAsker
from copyscope.interp.head_names import head_name
from copyscope.interp.models.devices import Compute
from copyscope.training.checkpoints.series import Checkpoint, step_folder
from copyscope.training.config import RunConfig
from copyscope.training.schedule import checkpoint_steps
from copyscope.training.sweeps.plan import AskTasks, asked_steps

logger = logging.getLogger(__name__)

STAGES = (("previous_token", "previous-token head"), ("prefix_matching_sum", "induction head"))
"""Measures of heads that a line names the best head of, and what such a head is called."""
CHANGE = 0.02
"""A score that moved by less is shown alone, without what it was before."""

ON_ITS_WAY = 0.1
"""Score from which the best head is named before it counts as one of its kind."""


class Watch:
    """What `training.trainer.train` calls with each checkpoint: scores it, logs what changed and the time left.

    One `Scorer` serves all checkpoints, so training and scoring together take as long as one after the other.
    `then` is called after each; `samples` are those of the copying test; `device` and `dtype` as for `score`. `tasks`:
    asks the in-context tasks too, or of the last checkpoint alone.
    """

    def __init__(
        self,
        folder: str | Path,
        config: RunConfig,
        then: Callable[[Checkpoint], object] | None = None,
        samples: int = COPYING_SAMPLES,
        device: str = "auto",
        dtype: str = "float32",
        tasks: AskTasks = False,
    ) -> None:
        compute = Compute(device=device, dtype=dtype)
        self._folder, self._then = Path(folder), then
        self._scorer = Scorer(samples=samples, compute=compute)
        self._asker = TaskAsker(compute=compute) if tasks else None
        self._steps = checkpoint_steps(config)
        self._asked = set(asked_steps(self._steps, tasks))
        self._run: Run | None = None
        self._before: Scored | None = None
        self._clock = TimeLeft(self._steps)
        self._proved = False

    def __call__(self, checkpoint: Checkpoint) -> None:
        self._clock.trained_to(checkpoint.step)
        run = self._run = self._run or open_run(self._folder)
        if not self._scorer.is_stored(run, checkpoint):
            prove = not self._proved or checkpoint.step == self._steps[-1]
            self._scorer.measure(run, checkpoint, prove)
            self._proved = True
        if self._asker and checkpoint.step in self._asked and not self._asker.is_stored(run, checkpoint):
            self._asker.measure(run, checkpoint)
        now = read_scored(run, checkpoint.step)
        self._clock.scored()
        left = self._clock.words()
        logger.info(checkpoint_line(checkpoint.step, now, self._before) + (f" ({left})" if left else ""))
        self._before = now
        if self._then:
            self._then(checkpoint)


class Scored:
    """The stored scores of one checkpoint, as a line about it needs them."""

    def __init__(self, heads: pl.DataFrame, model: pl.DataFrame) -> None:
        """`heads`: layer, head, measure, value; `model`: measure, value; both of one step."""
        self.heads = heads
        self.model = dict(model.select("measure", "value").iter_rows())

    def value(self, measure: str, layer: int, head: int) -> float | None:
        """The score of one head; None where it was not measured."""
        rows = self.heads.filter((pl.col("measure") == measure) & (pl.col("layer") == layer) & (pl.col("head") == head))
        return None if rows.is_empty() else float(rows["value"][0])


def read_scored(run: Run, step: int) -> Scored:
    """The scores of a checkpoint from the run's results."""
    heads, model = (
        pl.read_parquet(run.folder / "results" / kind / f"{step_folder(step)}.parquet", glob=False)
        for kind in ("heads", "model")
    )
    return Scored(heads, model)


def checkpoint_line(step: int, now: Scored, before: Scored | None = None) -> str:
    """One line: the strongest previous-token head and induction head of a checkpoint, and how well it copies; "0.35 →
    0.93" where a value moved by `CHANGE` or more since the checkpoint `before`."""
    parts = []
    for measure, kind in STAGES:
        heads = strong(now.heads, measure)
        if heads.is_empty():
            parts.append(f"no {kind} yet{_best(now.heads, measure)}")
            continue
        layer, head, value = heads.select("layer", "head", "value").row(0)
        more = f" and {heads.height - 1} more" if heads.height > 1 else ""
        was = before.value(measure, layer, head) if before else None
        parts.append(f"{kind} {head_name(layer, head)} {_moved(was, value)}{more}")
    copying = "copying_accuracy_token"
    if copying in now.model:
        parts.append(f"copying accuracy {_moved(before.model.get(copying) if before else None, now.model[copying])}")
    return f"step {step:,}: " + "; ".join(parts)


def _best(heads: pl.DataFrame, measure: str) -> str:
    """The highest head that is on its way; nothing where none stands out."""
    rows = heads.filter(pl.col("measure") == measure).sort("value", descending=True)
    if rows.is_empty() or rows["value"][0] < ON_ITS_WAY:
        return ""
    return f" ({head_name(*rows.select('layer', 'head').row(0))} at {rows['value'][0]:.2f})"


def _moved(was: float | None, value: float) -> str:
    if was is None or abs(value - was) < CHANGE:
        return f"{value:.2f}"
    return f"{was:.2f} → {value:.2f}"


class TimeLeft:
    """How long training and scoring will still take, from what both took so far in this process."""

    ENOUGH = 20
    """Updates before a guess is worth anything."""

    def __init__(self, steps: list[int], clock: Callable[[], float] = time.monotonic) -> None:
        """`steps`: all that are saved, the last of them the end of the run; `clock` in seconds."""
        self._steps, self._clock = steps, clock
        self._step: int | None = None
        self._at = clock()
        self._updates, self._training, self._count, self._scoring = 0, 0.0, 0, 0.0

    def trained_to(self, step: int) -> None:
        """A checkpoint was written at `step`."""
        now = self._clock()
        if self._step is not None:
            self._updates += step - self._step
            self._training += now - self._at
        self._step, self._at = step, now

    def scored(self) -> None:
        """It was scored."""
        now = self._clock()
        self._count += 1
        self._scoring += now - self._at
        self._at = now

    def seconds(self) -> float | None:
        """None before `ENOUGH` updates, and at the end."""
        if self._step is None or self._updates < self.ENOUGH or self._step >= self._steps[-1]:
            return None
        checkpoints = sum(step > self._step for step in self._steps)
        updates = self._steps[-1] - self._step
        return updates * self._training / self._updates + checkpoints * self._scoring / max(self._count, 1)

    def words(self) -> str:
        """Such as "about 4 min left"; empty where there is no guess."""
        seconds = self.seconds()
        if seconds is None:
            return ""
        if seconds < 90:
            return f"about {max(round(seconds), 1)} s left"
        return f"about {round(seconds / 60)} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
