"""A Ray cluster (Ray Core): one task a job. Its machines share the folder of the work and have copyscope."""

import logging
import os
import socket
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere

import ray
from ray.exceptions import RayError

from copyscope.training.engines.child import run_child, threads
from copyscope.training.engines.protocol import Ended, Job
from copyscope.training.errors import InputError, first_line

REACH_SECONDS = 5.0


class RayEngine:
    """One task a run. `jobs` at a time (None: as many as the cluster has room for).

    `address`: of a cluster, as in `10.0.0.1:6379` or `auto`; None starts one on this machine. Each run takes `cpus`
    cores, which are its threads, and `gpus`, of which a fraction such as 0.125 lets eight small runs share one (None:
    one where the cluster has any). Raises InputError if the cluster cannot be reached or has less than one run takes.
    """

    def __init__(
        self, jobs: int | None = None, address: str | None = None, cpus: float = 1.0, gpus: float | None = None
    ):
        if not ray.is_initialized():
            _connect(address)
        has = ray.cluster_resources()
        wanted = {"CPU": cpus, "GPU": (1.0 if has.get("GPU") else 0.0) if gpus is None else gpus}
        for kind, amount in wanted.items():
            if amount > has.get(kind, 0.0):
                raise InputError(
                    f"--option {kind.lower()}s={amount:g}: the Ray cluster has {has.get(kind, 0.0):g} {kind}s; ask for "
                    "less"
                )
        self._jobs = jobs or 1_000_000
        # What was killed is started again by the driver, which knows whether it got further.
        self._task: Any = ray.remote(max_retries=0, num_cpus=wanted["CPU"], num_gpus=wanted["GPU"])(run_child)
        self._environment = threads(max(1, int(cpus)), 1) | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        self._running: dict[Any, Job] = {}

    def room(self) -> int:
        return self._jobs - len(self._running)

    def start(self, job: Job) -> None:
        self._running[self._task.remote(job.anywhere(), self._environment)] = job

    def ended(self) -> list[Ended]:
        if not self._running:
            return []
        ended = []
        for task in ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]:
            job = self._running.pop(task)
            try:
                ended.append(Ended(job, ray.get(task)))
            except RayError as error:
                ended.append(Ended(job, None, f"Ray: {type(error).__name__}"))
        return ended

    def stop(self) -> None:
        for task in self._running:
            ray.cancel(task)
        try:
            ray.wait(list(self._running) or [ray.put(0)], num_returns=max(1, len(self._running)))
        except BaseException:
            for task in self._running:
                ray.cancel(task, force=True)
            raise


def _connect(address: str | None) -> None:
    if address not in (None, "auto", "local"):
        _reach(str(address))  # Ray itself tries for minutes, and then ends the process
    try:
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"--option address={address}: no Ray cluster there ({first_line(error, 150)}); start one with "
            "`ray start --head`, or leave the option out for one on this machine"
        ) from None


def _reach(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"--option address={address}: no Ray cluster answers there ({error}); give host:port as `ray start --head` "
            "prints it"
        ) from None
