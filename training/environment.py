"""What a run was computed with: runs of one configuration end in the same bits only where all of it is the same.

A sum in another order differs in its last digit, and training makes that grow.
"""

import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copyscope.training.errors import InputError
from copyscope.training.files import write_json

if TYPE_CHECKING:
    import torch

FILE = "environment.json"


def environment(device: "torch.device", processes: int, precision: "torch.dtype", compiled: bool) -> dict[str, Any]:
    """Versions, device, processor and its instructions, processes, the threads of each, precision of the products, and
    whether the loss was `compiled` (which leaves the order of its sums to the version of PyTorch)."""
    import torch  # which those who only read a run's do without

    on_cpu = device.type == "cpu"
    return {
        "copyscope": version("copyscope"),
        "torch": torch.__version__,
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(device),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": processes,
        "precision": str(precision).removeprefix("torch."),
        "compiled": compiled,
    }


def note_environment(run: Path, step: int, facts: dict[str, Any]) -> None:
    """Adds to environment.json that from `step` on the run is computed with `facts`; nothing if that is so already."""
    before = environments(run)
    if not before or before[-1] != {"from_step": before[-1]["from_step"], **facts}:
        write_json(run / FILE, [*before, {"from_step": step, **facts}])


def environments(run: Path) -> list[dict[str, Any]]:
    """What the run was computed with, in order, each from its `from_step` on; empty for a run that did not note it.

    Raises InputError for a damaged file.
    """
    path = run / FILE
    if not path.is_file():
        return []
    try:
        notes = json.loads(path.read_text("utf-8"))
        return [{**note, "from_step": int(note["from_step"])} for note in notes]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it, and the run continues without its history") from None


def at_step(run: Path, step: int) -> dict[str, Any]:
    """What the update from `step` on was computed with; empty where nobody noted it."""
    return next((one for one in reversed(environments(run)) if one["from_step"] <= step), {})


def unlike(runs: Iterable[Path]) -> str:
    """In words, the first difference in what these runs were computed with; empty where there is none. A run that did
    not note it is passed over. Raises InputError for a damaged file."""
    noted = [one for run in runs for one in environments(run)]
    return next((words for one in noted[1:] if (words := differences(noted[0], one))), "")


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    """In words, what is not the same in both: `threads 2 and 1, device cpu and H100`; empty if nothing is."""
    names = [name for name in one if name in other and name != "from_step" and one[name] != other[name]]
    return ", ".join(f"{name} {one[name]} and {other[name]}" for name in names)
