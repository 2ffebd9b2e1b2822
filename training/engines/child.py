"""A job as a child process: started with a pipe that ends when its parent does, and stopped by closing it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from copyscope.training.engines.protocol import Job

POLL = 0.2


def start_child(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts the job; what it prints goes to log.txt in its folder.

    It has a session of its own, so that Ctrl-C reaches its parent alone, which then asks it once. Nothing but the
    parent holds the other end of its standard input: should the parent die, however it dies, the child learns of it.
    """
    directory = job.directory if job.directory and job.directory.is_dir() else None  # not every machine has it
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *job.command()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=directory,
            env={**os.environ, **environment},
        )


def ask_to_stop(child: subprocess.Popen[bytes]) -> None:
    """The child saves and ends (`training.sweeps.worker`). Asking twice is asking once."""
    if child.stdin and not child.stdin.closed:
        child.stdin.close()


def run_child(job: Job, environment: dict[str, str]) -> int:
    """Runs the job to its end and returns the exit code. An interrupt, which is how clusters cancel, lets it save."""
    if threading.current_thread() is threading.main_thread():
        # Ignored where a script started the cluster or the driver in the background (`… &`).
        signal.signal(signal.SIGINT, signal.default_int_handler)
    child = start_child(job, environment)
    try:
        while child.poll() is None:
            time.sleep(POLL)
    except KeyboardInterrupt:
        ask_to_stop(child)
    return child.wait()


def stop_with_parent() -> None:
    """Called by the child: SIGTERM reaches it when its standard input ends, that is, when it is asked to stop or its
    parent has died."""
    threading.Thread(target=_stop_at_end, daemon=True).start()


def _stop_at_end() -> None:
    while os.read(0, 1):  # not sys.stdin: Python waits for its lock when it ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def threads(cores: int, jobs: int) -> dict[str, str]:
    """Environment in which `jobs` processes share `cores` and do not fight: idle threads sleep instead of spinning."""
    share = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return share | ({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"} if jobs > 1 else {"GOMP_SPINCOUNT": "3000"})


def jobs_at_once(jobs: int | None) -> int:
    """How many runs this machine works on at a time: as asked, or for half its cores, at least one."""
    return jobs or max(1, usable_cores() // 2)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
