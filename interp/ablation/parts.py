"""What can be removed from a model, and how: heads, whole attention layers, MLPs; the names of the methods."""

from collections.abc import Sequence
from typing import NamedTuple

from copyscope.interp.head_names import head_name, parse_heads
from copyscope.interp.models.lens import HookedModel
from copyscope.training.errors import InputError

METHODS = ("zero", "mean", "mean_over_positions", "resample", "frozen_patterns")
"""See `interp.ablation.hooks.ablate_heads`. The first is the one that tables and figures show first."""
Head = tuple[int, int]
Part = tuple[int, int | str]
"""(layer, head), (layer, "attention") for all heads of a layer, or (layer, "mlp")."""


class Parts(NamedTuple):
    """A set of heads and MLPs."""

    heads: dict[int, list[int]]
    """Layer → its heads, in rising order."""
    mlps: frozenset[int]
    """Layers."""

    @property
    def layers(self) -> list[int]:
        return sorted({*self.heads, *self.mlps})

    @property
    def pairs(self) -> list[Head]:
        """The heads as (layer, head), in order."""
        return [(layer, head) for layer in sorted(self.heads) for head in self.heads[layer]]

    def union(self, other: "Parts") -> "Parts":
        """All of both."""
        layers = sorted({*self.heads, *other.heads})
        heads = {i: sorted({*self.heads.get(i, ()), *other.heads.get(i, ())}) for i in layers}
        return Parts(heads, self.mlps | other.mlps)


def check_parts(model: HookedModel, parts: str | Sequence[Part]) -> Parts:
    """The set sorted by layer, from pairs or from text such as `L3H1,L2`.

    Raises InputError if it is empty or names something that the model does not have.
    """
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    parts = parse_heads(parts)
    if not parts:
        raise InputError("no head to ablate; give at least one (layer, head)")
    heads: dict[int, set[int]] = {}
    mlps: set[int] = set()
    for layer, what in parts:
        if what == "mlp" and 0 <= layer < n_layers and not model.cfg.attn_only:
            mlps.add(layer)
        elif what == "attention" and 0 <= layer < n_layers:
            heads[layer] = set(range(n_heads))
        elif isinstance(what, int) and 0 <= layer < n_layers and 0 <= what < n_heads:
            heads.setdefault(layer, set()).add(what)
        elif isinstance(what, int):
            raise InputError(
                f"head {head_name(layer, what)} does not exist: the model has {n_layers} layers × {n_heads} heads, "
                f"{head_name(0, 0)} to {head_name(n_layers - 1, n_heads - 1)}"
            )
        else:
            raise InputError(
                f"({layer}, {what!r}) does not exist: the model has layers 0 to {n_layers - 1}, each with heads, "
                f"'attention'{'' if model.cfg.attn_only else ' and mlp'}; write (layer, head) or (layer, 'attention')"
            )
    return Parts({layer: sorted(heads[layer]) for layer in sorted(heads)}, frozenset(mlps))


NOTHING = Parts({}, frozenset())


def all_heads(model: HookedModel) -> list[Head]:
    """Every head, layer by layer."""
    return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
