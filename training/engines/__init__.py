"""Where the runs of a sweep are worked on: this machine, a Ray cluster, a Slurm cluster. One protocol."""

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from training.errors import InputError

ENGINES = ("local",)


class Job(NamedTuple):
    """One run to work on: `python -m module folder arguments…`."""

    folder: Path
    module: str
    arguments: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """What follows the interpreter. Modules are not looked for where we happen to be (-P)."""
        return ["-P", "-m", self.module, str(self.folder), *self.arguments]


class Ended(NamedTuple):
    job: Job
    code: int | None
    """Exit code; -9 is killed by signal 9; None where only the engine knows why."""
    reason: str = ""
    """What the engine says of it."""


@runtime_checkable
class Engine(Protocol):
    """Works on jobs. Whether a run is done is in its folder, not here: an engine may lose a job, never harm it."""

    def room(self) -> int:
        """How many more jobs it takes now."""
        ...

    def start(self, job: Job) -> None:
        """Takes a job. Raises InputError if it cannot take any."""
        ...

    def ended(self) -> list[Ended]:
        """The jobs that came to an end since this was asked last."""
        ...

    def stop(self) -> None:
        """Asks all jobs to save and stop, and waits until they have. A second Ctrl-C kills them."""
        ...


def make_engine(name: str, out: Path, jobs: int | None = None) -> Engine:
    """The engine of this name, its own files under `out`.

    Raises InputError for another name, a package that is missing, or a cluster that cannot be reached.
    """
    if name not in ENGINES:
        raise InputError(f"--engine {name}: no such engine; use {', '.join(ENGINES)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: give at least 1")
    from training.engines.local import LocalEngine

    return LocalEngine(jobs)
