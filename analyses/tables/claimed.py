"""What a worker does: measures whichever checkpoint is free, until none is left."""

import logging
import random
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from copyscope.analyses.tables.board import FAILED, MEASURED, STARTED, Board, Claim, Outcome
from copyscope.analyses.tables.measurer import Measurer
from copyscope.analyses.tables.run import Run
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError

MAX_STARTS = 3
"""How often a checkpoint is begun whose worker is killed each time."""
BEGAN = "began"
"""A file beside the worker's log, once it has begun a checkpoint."""
PAUSE = 0.3
"""Seconds until a worker looks again, when others are at all that is left."""


def work(run: Run, measurer: Measurer, checkpoints: Sequence[Checkpoint], board: Board, log: Path) -> None:
    """Measures each of the checkpoints that is free. Returns when all are done, by whomever.

    Of a hub series the next one is claimed while one is measured, so that its weights come meanwhile.
    """
    order = random.sample(list(checkpoints), len(checkpoints))  # workers of several machines seldom ask for the same
    claims: list[Claim] = []
    try:
        while not board.is_done(checkpoints):
            if not claims and (claim := board.take(order)) is not None:
                claims.append(claim)
            if not claims:
                time.sleep(PAUSE)
                continue
            step = claims[0].checkpoint.step
            if claims[0].checkpoint.revision is not None and (claim := board.take(order, but=step)) is not None:
                claims.append(claim)
            measurer.models.next = claims[1].checkpoint if len(claims) > 1 else None
            measure_claimed(run, measurer, claims[0].checkpoint, board, log)
            claims.pop(0).release()
    finally:
        for claim in claims:
            claim.release()


def measure_claimed(run: Run, measurer: Measurer, checkpoint: Checkpoint, board: Board, log: Path) -> None:
    """Measures a checkpoint that this process has claimed, and notes what became of it."""
    step = checkpoint.step
    before = board.read(step)  # left by workers that died there
    if before.times >= MAX_STARTS:
        why = f"its process was killed {before.times} times, as when memory runs out; give more, or fewer jobs"
        board.write(step, replace(before, state=FAILED, why=why))
        return
    if not measurer.todo(run, [checkpoint]):
        board.write(step, Outcome(state=MEASURED))
        return
    board.write(step, Outcome(state=STARTED, times=before.times + 1, log=str(log)))
    (log.parent / BEGAN).touch()
    measurer.checked.clear()
    state, why, see = MEASURED, "", ""
    try:
        with _Warnings() as warnings:
            measurer.measure(run, checkpoint)
    except InputError as error:
        state, why = FAILED, str(error)
    except KeyboardInterrupt:
        board.forget(step)
        raise
    except Exception as error:  # a bug: the other checkpoints are measured all the same
        traceback.print_exc()
        state, why, see = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", str(log)
    difference, said = max(measurer.checked, default=None), tuple(warnings.lines)
    board.write(step, Outcome(state=state, why=why, log=see, difference=difference, warnings=said))


class _Warnings(logging.Handler):
    """Collects what copyscope warns of, for the driver to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def __enter__(self) -> "_Warnings":
        logging.getLogger("copyscope").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("copyscope").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
