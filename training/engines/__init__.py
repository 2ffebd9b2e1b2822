"""Where work runs that is in parts, such as the runs of a sweep: this machine, a Ray cluster, a Slurm cluster."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError

ENGINES = ("local", "ray", "slurm")
PACKAGES = {"ray": "ray", "slurm": "submitit"}


def check_engine(name: str, jobs: int | None = None, options: Mapping[str, Any] | None = None) -> None:
    """Raises InputError for what `make_engine` refuses before it reaches out: another name or option, a number of jobs,
    a package that is missing."""
    if name not in ENGINES:
        raise InputError(f"--engine {name}: no such engine; use {', '.join(ENGINES)}")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: give at least 1")
    package = PACKAGES.get(name)
    if package and find_spec(package) is None:
        raise InputError(f'--engine {name}: {package} is not installed; pip install "copyscope[{name}]"')
    known = {"local": (), "ray": ("address", "cpus", "gpus")}.get(name)
    for option in options or {}:
        if known is not None and option not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise InputError(f"--option {option}: the engine {name} {has}")


def make_engine(name: str, out: Path, jobs: int | None = None, options: Mapping[str, Any] | None = None) -> Engine:
    """The engine of this name, its own files under `out`; `options` as the engine's own (`address`, `gpus`, …).

    Raises InputError for another name or option, a package that is missing, or a cluster that cannot be reached.
    """
    check_engine(name, jobs, options)
    options = dict(options or {})
    if name == "ray":
        from copyscope.training.engines.ray_cluster import RayEngine

        amounts = {option: _amount(option, options[option]) for option in ("cpus", "gpus") if option in options}
        return RayEngine(jobs, str(options["address"]) if "address" in options else None, **amounts)
    if name == "slurm":
        from copyscope.training.engines.slurm import SlurmEngine

        return SlurmEngine(out / "slurm", jobs, **options)
    from copyscope.training.engines.local import LocalEngine

    return LocalEngine(jobs)


def _amount(option: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise InputError(f"--option {option}={value}: give a number, as in {option}=0.5")
    return float(value)
