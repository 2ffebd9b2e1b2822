"""This machine: one process a job, `jobs` at a time."""

import os
import subprocess
import time

from copyscope.training.engines.child import ask_to_stop, jobs_at_once, start_child, threads, usable_cores
from copyscope.training.engines.protocol import Ended, Job

POLL = 0.1


class LocalEngine:
    """One process a job. `jobs` (None: half the cores, at least one) share the cores evenly, and the visible GPUs in
    turn."""

    def __init__(self, jobs: int | None = None):
        self.jobs = jobs_at_once(jobs)
        self.environment = threads(usable_cores(), self.jobs)
        self._gpus = visible_gpus()
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
        """Slot → what runs in it."""

    def room(self) -> int:
        return self.jobs - len(self._running)

    def start(self, job: Job) -> None:
        slot = next(slot for slot in range(self.jobs) if slot not in self._running)
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else {}
        self._running[slot] = (job, start_child(job, self.environment | gpu))

    def ended(self) -> list[Ended]:
        ended = []
        for slot, (job, child) in list(self._running.items()):
            code = child.poll()
            if code is not None:
                ask_to_stop(child)  # closes our end of its pipe
                del self._running[slot]
                ended.append(Ended(job, code, f"killed by signal {-code}" if code < 0 else ""))
        return ended

    def stop(self) -> None:
        children = [child for _, child in self._running.values()]
        for child in children:
            ask_to_stop(child)
        try:
            while any(child.poll() is None for child in children):
                time.sleep(POLL)
        except BaseException:
            for child in children:
                child.kill()
            for child in children:
                child.wait()
            raise


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs this process sees, as `CUDA_VISIBLE_DEVICES` names them; none without the driver's own tool."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in listed.splitlines()))]
