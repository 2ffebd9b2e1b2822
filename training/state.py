"""Full training states: weights and both moments of AdamW, whole or not there. Batches and dropout follow from the
step, so nothing else is needed to go on bit by bit."""

import logging
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import step_folder
from copyscope.training.errors import InputError
from copyscope.training.files import sha256_of, write_folder

logger = logging.getLogger(__name__)
KEPT = 2
"""The newest states that stay; should the newest be damaged, there is the one before."""
_FILE = "state.safetensors"


def save_state(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, run_id: str, every: int | None
) -> None:
    """Writes `root`/step…, then deletes older states but for the last two and multiples of `every` (None: none)."""

    def fill(folder: Path) -> None:
        state: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            moments = optimizer.state[parameter]
            state[f"model.{name}"] = parameter.detach().contiguous()
            state[f"exp_avg.{name}"], state[f"exp_avg_sq.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
        save_file(state, folder / _FILE)

    write_folder(root / step_folder(step), fill, step=step, tokens=None, run_id=run_id)
    for old in sorted(root.glob("step*"))[:-KEPT]:
        if not every or int(old.name.removeprefix("step")) % every:
            shutil.rmtree(old)


def states(root: Path, until: int | None = None) -> list[Path]:
    """The folders of full states up to step `until` (None: all), newest first."""
    last = step_folder(until) if until is not None else "step~"
    return sorted((path for path in root.glob("step*") if path.name <= last), reverse=True)


def load_state(folders: list[Path], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Loads the first sound state of `folders`; returns its step, or 0 (nothing loaded) if there is none."""
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            if sha256_of(folder / _FILE) != manifest["files"][_FILE]:
                raise InputError(f"{folder}: damaged")
            state = load_file(folder / _FILE)
        except (InputError, OSError, KeyError, SafetensorError) as error:
            logger.warning(f"full state {folder.name} cannot be used ({error}); going back to the one before")
            continue
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[f"model.{name}"])
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(manifest["step"]), device=parameter.device),  # the fused kernel wants it
                    "exp_avg": state[f"exp_avg.{name}"].to(parameter.device),
                    "exp_avg_sq": state[f"exp_avg_sq.{name}"].to(parameter.device),
                }
        return manifest["step"]
    return 0
