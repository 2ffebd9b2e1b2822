"""Trains a run in a process of its own, under `torchrun`; dies, is asked to stop, or forks it where the environment
says."""

import os
import signal
import sys

from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.config import RunConfig
from copyscope.training.errors import Stopped
from copyscope.training.fork import fork
from copyscope.training.trainer import train


def main() -> None:
    def die(checkpoint: Checkpoint) -> None:
        if checkpoint.step == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)

    def stop(what: str, step: int, total: int, note: str = "") -> None:
        if step >= int(os.environ.get("STOP_AT", 10**9)):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(RunConfig.load(sys.argv[1]), sys.argv[2], die, stop)
        if "FORK_AT" in os.environ:
            fork(sys.argv[2], int(os.environ["FORK_AT"]), out=f"{sys.argv[2]}-fork")
    except Stopped as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    main()
