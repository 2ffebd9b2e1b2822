"""The mean of a run's weights since its last checkpoint, gathered while it trains."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from copyscope.training.checkpoints.average import MEAN, SINCE

PREFIX = "mean."
"""Before the names of its sums in a full state."""


class RunningMean:
    """Adds up the weights of a model every so many updates, from one checkpoint to the next.

    Sums are kept in float32, where the weights are. With `every` None there is nothing to do.
    """

    def __init__(self, model: nn.Module, every: int | None):
        self._model, self._every = model, every
        self._sums: dict[str, torch.Tensor] = {}
        self.count = 0
        """Of the weights in the sums."""
        self.since = 0
        """The step of the last checkpoint."""

    def add(self, step: int) -> None:
        """The weights after update `step`, if it is their turn."""
        if not self._every or step % self._every:
            return
        with torch.no_grad():
            for name, weight in self._model.named_parameters():
                if self.count:
                    self._sums[name] += weight
                else:
                    self._sums[name] = weight.detach().float().clone()
        self.count += 1

    def write(self, folder: Path) -> None:
        """Writes the mean into a checkpoint's folder, if there is any."""
        if self.count:
            means = {name: (total / self.count).cpu().contiguous() for name, total in self._sums.items()}
            save_file(means, folder / MEAN)

    @property
    def labels(self) -> dict[str, int]:
        """What the checkpoint's manifest says of the mean, if there is any."""
        return {SINCE: self.since} if self.count else {}

    def begin(self, step: int) -> None:
        """From a checkpoint at `step` on."""
        self.since, self.count, self._sums = step, 0, {}

    def state(self) -> dict[str, torch.Tensor]:
        """What a full state has to hold of it."""
        if not self._every:
            return {}
        sums = {f"{PREFIX}{name}": total.contiguous() for name, total in self._sums.items()}
        return sums | {"mean_count": torch.tensor(self.count), "mean_since": torch.tensor(self.since)}

    def load(self, state: dict[str, torch.Tensor], step: int) -> None:
        """Goes on from a full state of `step`; from one without, as if a checkpoint had been there."""
        self.begin(step)
        if not self._every or "mean_count" not in state:
            return
        places = {name: weight.device for name, weight in self._model.named_parameters()}
        self.count, self.since = int(state["mean_count"]), int(state["mean_since"])
        if self.count:
            self._sums = {name: state[f"{PREFIX}{name}"].to(place) for name, place in places.items()}
