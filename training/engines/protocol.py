"""What a driver asks of an engine: take jobs, say which have ended, stop."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process: `python -m module folder arguments…`. What it prints goes to log.txt in its folder."""

    folder: Path
    module: str
    arguments: tuple[str, ...] = ()
    directory: Path | None = None
    """Where its relative paths (a corpus) start from; None: where the engine's processes are."""

    def anywhere(self) -> "Job":
        """The same job for a process that is somewhere else."""
        return replace(self, folder=self.folder.resolve(), directory=Path.cwd())

    def command(self) -> list[str]:
        """What follows the interpreter. Modules are not looked for where we happen to be (-P)."""
        return ["-P", "-m", self.module, str(self.folder), *self.arguments]


class Ended(NamedTuple):
    """A job's process that has ended."""

    job: Job
    code: int | None
    """Exit code; -9 is killed by signal 9; None where only the engine knows why."""
    reason: str = ""
    """What the engine says of it."""


@runtime_checkable
class Engine(Protocol):
    """Works on jobs. Whether the work is done is in its folder, not here: an engine may lose a job, never harm it."""

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
