"""A run's model as it was trained: with the heads that an intervention held still held."""

from collections.abc import Iterator
from contextlib import contextmanager

from copyscope.analyses.tables.run import Run
from copyscope.interp.ablation.hooks import hold_heads
from copyscope.interp.models.lens import HookedModel
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.model.interventions import Intervention, active


@contextmanager
def as_trained(model: HookedModel, run: Run, checkpoint: Checkpoint) -> Iterator[HookedModel]:
    """In its body the model's heads are held as in the update that led to `checkpoint` (`intervention.heads`).

    A head that was held all the while has queries and keys that nothing trained: without it the model is not the one
    whose loss went down. Plain runs are untouched.
    """
    intervention = held(run, checkpoint)
    if intervention is None:
        yield model
        return
    heads = [(layer, head) for layer, some in intervention.heads.items() for head in some]
    with hold_heads(model, heads, intervention.mode):
        yield model


def held(run: Run, checkpoint: Checkpoint) -> Intervention | None:
    """What held heads in the update that led to `checkpoint`; None if nothing did."""
    update = max(checkpoint.step - 1, 0)
    intervention = active(run.of_step(checkpoint.step).intervention(update), update)
    return intervention if intervention and intervention.heads else None


def held_key(run: Run, checkpoint: Checkpoint) -> tuple[object, ...]:
    """What stored results depend on besides the checkpoint; empty for plain runs."""
    intervention = held(run, checkpoint)
    return () if intervention is None else (sorted(intervention.heads.items()), intervention.mode)
