"""Forks and the runs they were forked from as trees: a common trunk, then branches. Needs no torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from copyscope.analyses.tables.run import Run
from copyscope.interp.head_names import head_name
from copyscope.training.checkpoints.trunk import NULL, ORDER, PLACEBO, RECORDING, Trunk, read_trunk

RUN = "run"
"""The kind of a branch that is no fork."""
RATIOS = frozenset({"optimizer.lr", "optimizer.weight_decay", "train.batch_size"})
"""Fields whose change is said as a factor."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A run of a family: the one that was forked first, or a fork."""

    run: int | None
    """Its place among the runs that are looked at; None for one that is not among them."""
    name: str
    parent: int | None
    """The place in the family of the run that it is a fork of; None for the first."""
    at: int
    """Its checkpoints up to this step are its parent's."""
    until: int | None
    """The update at which its change is over; None for one that lasts."""
    kind: str
    """`run` (no fork), `null`, `placebo` or `changed`."""
    label: str
    """What differs from its parent, in a few words; of the first its name."""
    title: str
    """The labels from the first fork down to this one; no two of a family have the same."""


@dataclass(frozen=True)
class _Node:
    name: str
    trunk: Trunk | None
    above: int | str | None


def families(runs: Sequence[Run]) -> list[tuple[Branch, ...]]:
    """The runs that are forks, with the ones they were forked from, also those that are not among `runs`.

    Each family is in the order of its tree, every run before its forks, and the latest forks of a run first, so that
    no line of a drawn tree crosses another. A run without forks among `runs` that is no fork itself is in none.
    """
    nodes = _nodes(runs)
    below: dict[int | str, list[int | str]] = {key: [] for key in nodes}
    for key, node in nodes.items():
        if node.above is not None:
            below[node.above].append(key)
    roots = [key for key, node in nodes.items() if node.above is None and below[key]]
    return [_told_apart(_tree(root, nodes, below)) for root in roots]


def what_differs(trunk: Trunk) -> str:
    """What a fork does otherwise than its parent, in a few words: "null fork", "placebo 2", "lr × 2"."""
    fields = {field: values for field, values in trunk.changes.items() if field not in RECORDING}
    if trunk.kind == NULL or not fields:
        return "null fork"
    if trunk.kind == PLACEBO:
        before, after = fields[ORDER]
        _, marked, number = trunk.label.rpartition("placebo")
        return f"placebo {number}" if marked and number.isdecimal() else f"other order (seed {before} → {after})"
    words = ", ".join(_change(field, *values) for field, values in fields.items())
    return words if trunk.until is None else f"{words}, for {trunk.until - trunk.step:,} updates"


def _nodes(runs: Sequence[Run]) -> dict[int | str, _Node]:
    """Each run by its place, and by its run_id each one above that is not among them."""
    by_folder = {Path(run.series.source).resolve(): place for place, run in enumerate(runs)}
    by_id = {run.config.run_id: place for place, run in reversed([*enumerate(runs)]) if run.config}
    nodes: dict[int | str, _Node] = {}
    for place, run in enumerate(runs):
        key: int | str | None = place
        folder, name = Path(run.series.source), run.name
        while key is not None and key not in nodes:
            trunk = read_trunk(folder)
            nodes[key] = _Node(name, trunk, None)
            if trunk is None:
                break
            # A parent that is gone is still called what it was called, and tells its forks' family apart.
            parent = trunk.parent(folder) or Path(trunk.place["absolute"])
            above = by_folder.get(parent.resolve(), by_id.get(trunk.run_id, trunk.run_id))
            nodes[key] = _Node(name, trunk, above)
            key, folder, name = above, parent, parent.name
            if isinstance(above, int):
                folder, name = Path(runs[above].series.source), runs[above].name
    return nodes


def _tree(root: int | str, nodes: dict[int | str, _Node], below: dict[int | str, list[int | str]]) -> list[Branch]:
    out: list[Branch] = []

    def add(key: int | str, parent: int | None, title: str) -> None:
        node = nodes[key]
        label = node.name if node.trunk is None else what_differs(node.trunk)
        branch = Branch(
            run=key if isinstance(key, int) else None,
            name=node.name,
            parent=parent,
            at=0 if node.trunk is None else node.trunk.step,
            until=None if node.trunk is None else node.trunk.until,
            kind=RUN if node.trunk is None else node.trunk.kind,
            label=label,
            title=f"{title}, then {label}" if title else label,
        )
        place = len(out)
        out.append(branch)
        for under in sorted(below[key], key=lambda one: _order(one, nodes)):
            add(under, place, "" if parent is None else branch.title)

    add(root, None, "")
    return out


def _order(key: int | str, nodes: dict[int | str, _Node]) -> tuple[int, int, str]:
    """Latest forks first; at one step null forks, then changes, then placebos."""
    trunk = nodes[key].trunk
    if trunk is None:
        return 0, 0, nodes[key].name
    return -trunk.step, {NULL: 0, PLACEBO: 2}.get(trunk.kind, 1), nodes[key].name


def _told_apart(branches: Sequence[Branch]) -> tuple[Branch, ...]:
    """The branches with titles that differ: by their step where that does, else by their name too."""
    count = Counter(branch.title for branch in branches)
    told = [
        replace(one, title=f"{one.title} from {one.at:,}") if count[one.title] > 1 and one.kind != RUN else one
        for one in branches
    ]
    count = Counter(branch.title for branch in told)
    return tuple(replace(one, title=f"{one.title} ({one.name})") if count[one.title] > 1 else one for one in told)


def _change(field: str, before: Any, after: Any) -> str:
    name = field.split(".")[-1].replace("_", " ")
    if field in RATIOS and before > 0 and after > 0:
        return f"{name} × {after / before:.3g}"
    if field == "intervention.heads":
        return f"held heads {_heads(before)} → {_heads(after)}"
    return f"{name} {_value(before)} → {_value(after)}"


def _heads(heads: Sequence[Sequence[int]]) -> str:
    return ", ".join(head_name(layer, head) for layer, head in heads) or "none"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str):
        return Path(value).name if "/" in value else value
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
