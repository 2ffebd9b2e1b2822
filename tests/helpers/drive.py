"""A driver of a sweep in a process of its own, which a test kills: `drive.py OUT RUNS STEPS ENGINE`."""

import signal
import sys
from pathlib import Path

from copyscope.training.engines import make_engine
from copyscope.training.errors import Stopped
from copyscope.training.sweeps import driver as sweeps
from copyscope.training.sweeps.driver import run_sweep
from copyscope.training.sweeps.plan import Sweep, claim, parse_sweep
from copyscope.training.sweeps.worker import FINISHED


def counted_sweep(runs: int, steps: int) -> Sweep:
    values = {"train.steps": steps}
    return parse_sweep({"base": "quickstart", "values": values, "grid": {"seed": list(range(runs))}}, Path())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a script ignore it
    sweeps.BUSY_PAUSE, sweeps.POLL = 0.5, 0.05
    out, runs, steps, name = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    sweep = counted_sweep(runs, steps)
    claim(sweep, out)
    try:
        found = run_sweep(sweep, out, make_engine(name, out, 2), "counted_run")
    except Stopped as stopped:
        print(stopped)
        sys.exit(130)
    sys.exit(any(one.status.state != FINISHED for one in found))
