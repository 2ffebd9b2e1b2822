"""In what do runs differ? Which of them can be compared when one setting is asked about."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError

NOT_FACTORS = frozenset(
    {
        "seeds.init",
        "seeds.data",
        "seeds.eval",
        "train.log_every",
        "train.validate_every",
        "train.validation_sequences",
        "train.threads",
        "train.track",
        "train.steps",
        "train.gradient_accumulation",
        "checkpoints.every",
        "checkpoints.steps",
        "checkpoints.keep",
        "checkpoints.resume_every",
        "checkpoints.state_every",
    }
)
"""Settings that do not change what an update does: seeds, logging, what is saved, and when training stops."""
DECAY = frozenset({"optimizer.decay_share", "optimizer.final_lr_share", "optimizer.schedule"})

FORK = "fork"
"""Of which run a run is a fork, and from which step on; empty for a run from step 0."""


class Comparison(NamedTuple):
    """The runs that differ in one factor alone."""

    factor: str
    used: list[int]
    """Indices of the runs that can be compared."""
    values: list[Any]
    """The factor's value in each of them."""
    left_out: dict[int, list[str]]
    """Index of a run that cannot: the settings in which it differs as well."""


def flat(config: RunConfig) -> dict[str, Any]:
    """A configuration as `section.field` → value, without what does not change an update.

    The end of training decides when a decay of the learning rate begins, so that `train.steps` counts with a schedule.
    """
    values = config.model_dump(mode="json", exclude={"fork"})
    out = {f"{section}.{name}": _plain(value) for section, fields in values.items() for name, value in fields.items()}
    kept = {name: value for name, value in out.items() if name not in NOT_FACTORS}
    kept[FORK] = f"{config.fork.of} from step {config.fork.at}" if config.fork.of else ""
    if config.optimizer.schedule != "constant":
        kept["train.steps"] = config.train.steps
    else:
        kept = {name: value for name, value in kept.items() if name not in DECAY or name == "optimizer.schedule"}
    return kept


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def varied(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings in which the runs differ, sorted."""
    names = sorted({name for config in configs for name in config})
    return [name for name in names if len({config.get(name) for config in configs}) > 1]


def comparable(
    configs: Sequence[Mapping[str, Any]], factor: str, also: Iterable[str] = (), names: Sequence[str] = ()
) -> Comparison:
    """The runs that differ in `factor` (and the settings in `also`, which belong to it) alone.

    All other settings have to be those of most runs (of the first given, where as many have another value). With
    `names`, the runs' names, it is strict: InputError names a run that differs in more. Also InputError: a factor that
    no run has.
    """
    if not any(factor in config for config in configs):
        known = ", ".join(varied(configs)) or "no setting"
        raise InputError(f"--factor {factor}: no run has such a setting; the runs differ in {known}")
    free = {factor, *also}
    others = [name for name in varied(configs) if name not in free]
    usual = {name: Counter(config.get(name) for config in configs).most_common(1)[0][0] for name in others}
    used, left_out = [], {}
    for i, config in enumerate(configs):
        differs = [name for name in others if config.get(name) != usual[name]]
        if differs:
            left_out[i] = differs
        else:
            used.append(i)
    if names and left_out:
        i, differs = next(iter(left_out.items()))
        what = ", ".join(f"{name} = {configs[i].get(name)!r} (others {usual[name]!r})" for name in differs)
        raise InputError(f"{names[i]}: differs in more than {factor}: {what}; leave it out, or train it again without")
    return Comparison(factor, used, [configs[i].get(factor) for i in used], left_out)
