"""A Slurm cluster, by submitit: one batch job each. Its machines share the folder of the work and have copyscope."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError

from copyscope.training.engines.child import run_child
from copyscope.training.engines.protocol import Ended, Job
from copyscope.training.errors import InputError

POLL = 0.2
DEFAULTS = {"timeout_min": 24 * 60, "cpus_per_task": 4}


class Task:
    """What a batch job does. Also says how to go on when its time is over or its machine is taken."""

    def __init__(self, job: Job, note: Path):
        self.job, self.note = job, note

    def __call__(self) -> None:
        cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        environment = {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        self.note.write_text(str(run_child(self.job, environment)))

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit before the job is requeued. When this process ends, the child saves and ends too."""
        return submitit.helpers.DelayedSubmission(Task(self.job, self.note))


class SlurmEngine:
    """One batch job a run, `jobs` at a time (None: all are queued). submitit's scripts and logs are in `folder`.

    `settings`: submitit's parameters (`timeout_min`, `cpus_per_task`, `slurm_partition`, `gpus_per_node`, …), and
    `cluster`: `local` or `debug` for a trial without Slurm. Raises InputError where there is no Slurm, or for a
    parameter that submitit does not have. A driver that is killed leaves its jobs in the queue; Ctrl-C cancels them.
    """

    def __init__(self, folder: Path, jobs: int | None = None, cluster: str | None = None, **settings: Any):
        if cluster is None and shutil.which("sbatch") is None:
            raise InputError("--engine slurm: no sbatch on this machine; run it where Slurm's commands are")
        self._folder, self._jobs = folder.resolve(), jobs or 1_000_000
        try:
            self._executor = submitit.AutoExecutor(self._folder, cluster=cluster or "slurm")
            self._executor.update_parameters(name="copyscope", **(DEFAULTS | settings))
        except (NameError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"--option: submitit refuses it ({' '.join(str(error).split())[:200]})") from None
        self._running: list[tuple[Job, Any, Path]] = []

    def room(self) -> int:
        return self._jobs - len(self._running)

    def start(self, job: Job) -> None:
        note = self._folder / f"{job.folder.name}.code"
        note.unlink(missing_ok=True)
        try:
            submitted = self._executor.submit(Task(job.anywhere(), note))
        except FailedJobError as error:
            raise InputError(f"--engine slurm: sbatch refuses the job ({' '.join(str(error).split())[:200]})") from None
        self._running.append((job, submitted, note))

    def ended(self) -> list[Ended]:
        ended, running = [], []
        for job, submitted, note in self._running:
            if submitted.done():
                ended.append(_ended(job, submitted, note))
            else:
                running.append((job, submitted, note))
        self._running = running
        return ended

    def stop(self) -> None:
        for _, submitted, _ in self._running:
            submitted.cancel(check=False)
        while any(not submitted.done() for _, submitted, _ in self._running):
            time.sleep(POLL)


def _ended(job: Job, submitted: Any, note: Path) -> Ended:
    """From the note the task left: submitit's own result would have to be unpickled."""
    try:
        return Ended(job, int(note.read_text()))
    except (OSError, ValueError):
        return Ended(job, None, f"Slurm job {submitted.job_id}: {submitted.state}; see {submitted.paths.stderr}")
