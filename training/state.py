"""Full training states: weights, their running mean and the moments of the optimisers, whole or not there. Batches and
dropout follow from the step, so nothing else is needed to resume bit by bit."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from copyscope.training.checkpoints.manifest import read_manifest
from copyscope.training.checkpoints.series import step_folder
from copyscope.training.errors import InputError
from copyscope.training.files import sha256_of, write_folder
from copyscope.training.model.optimizers import Muon
from copyscope.training.running_mean import RunningMean

logger = logging.getLogger(__name__)
KEPT = 2
"""The newest states that stay; should the newest be damaged, there is the one before."""
ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")
MUON_MOMENTS = ("momentum_buffer",)
"""What the optimisers remember of each parameter, under PyTorch's names."""
_FILE = "state.safetensors"


def save_state(
    root: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    step: int,
    run_id: str,
    every: int | None,
    means: RunningMean,
) -> None:
    """Writes `root`/step…, then deletes older states but for the last two and multiples of `every` (None: none)."""

    def fill(folder: Path) -> None:
        state: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            state[f"model.{name}"] = parameter.detach().contiguous()
            moments = _optimizer_of(parameter, optimizers).state[parameter]
            state |= {f"{key}.{name}": moments[key] for key in (*ADAMW_MOMENTS, *MUON_MOMENTS) if key in moments}
        save_file(state | means.state(), folder / _FILE)

    write_folder(root / step_folder(step), fill, step=step, tokens=None, run_id=run_id)
    for old in sorted(root.glob("step*"))[:-KEPT]:
        if not every or int(old.name.removeprefix("step")) % every:
            shutil.rmtree(old)


def states(root: Path, until: int | None = None) -> list[Path]:
    """The folders of full states up to step `until` (None: all), newest first."""
    last = step_folder(until) if until is not None else "step~"
    return sorted((path for path in root.glob("step*") if path.name <= last), reverse=True)


def load_state(folders: list[Path], model: nn.Module, optimizers: Sequence[Optimizer], means: RunningMean) -> int:
    """Loads the first sound state of `folders`; returns its step, or 0 (nothing loaded) if there is none."""
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            if sha256_of(folder / _FILE) != manifest["files"][_FILE]:
                raise InputError(f"{folder}: damaged")
            state = load_file(folder / _FILE)
            moments = {name: _moments(state, name, p, optimizers) for name, p in model.named_parameters()}
        except (InputError, OSError, KeyError, SafetensorError) as error:
            logger.warning(f"full state {folder.name} cannot be used ({error}); going back to the one before")
            continue
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(state[f"model.{name}"])
                optimizer = _optimizer_of(parameter, optimizers)
                optimizer.state[parameter] = moments[name]
                if not isinstance(optimizer, Muon):  # AdamW's kernel also wants to know how many updates there were
                    optimizer.state[parameter]["step"] = torch.tensor(float(manifest["step"]), device=parameter.device)
        means.load(state, manifest["step"])
        return manifest["step"]
    return 0


def _moments(
    state: dict[str, torch.Tensor], name: str, parameter: torch.Tensor, optimizers: Sequence[Optimizer]
) -> dict[str, torch.Tensor]:
    """What the parameter's optimiser remembers of it; KeyError where the state is of another optimiser."""
    keys = MUON_MOMENTS if isinstance(_optimizer_of(parameter, optimizers), Muon) else ADAMW_MOMENTS
    return {key: state[f"{key}.{name}"].to(parameter.device) for key in keys}


def _optimizer_of(parameter: torch.Tensor, optimizers: Sequence[Optimizer]) -> Optimizer:
    groups = ((optimizer, group) for optimizer in optimizers for group in optimizer.param_groups)
    return next(optimizer for optimizer, group in groups if any(p is parameter for p in group["params"]))
