"""`sweep.toml` to a list of runs: a base, fixed values, a grid, a list; each run named by the hash of its config."""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from copyscope.training.config import RunConfig
from copyscope.training.errors import InputError
from copyscope.training.files import write_json, write_text

PLAN = "sweep.json"
SEED = "seed"
"""In a grid or list: `seeds.init` and `seeds.data` at once. `seeds.eval` stays, so that all runs are tested alike."""
LAST = "last"
AskTasks = bool | Literal["last"]
"""When a run is asked the in-context tasks: at every checkpoint that is scored, never, or at the last alone."""
_KEYS = ("base", "score", "tasks", "samples", "values", "grid", "runs")


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep, before anything of it exists."""

    run_id: str
    label: str
    """What sets it apart in this sweep, as in `batch_size=8 seed=1`."""
    condition: str
    """The same without the seed: runs of one condition are repetitions."""
    values: dict[str, Any]
    """The fields that grid and list set, `seed` among them."""
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The runs of a sweep file, each checked."""

    runs: tuple[PlannedRun, ...]
    score: bool = False
    """Whether each checkpoint is scored while the run trains."""
    tasks: AskTasks = False
    """Whether it is asked the in-context tasks too, or its last checkpoint alone is."""
    samples: int | None = None
    """Of the copying test; None for the usual number."""


def load_sweep(path: str | Path, values: Mapping[str, Any] | None = None) -> Sweep:
    """Reads a sweep file; `values` go over all that it says.

    Keys: `base` (a preset, or a TOML file beside the sweep file or where we are), `[values]` (fixed fields), `[grid]`
    (field = list of values; every combination is a run), `[[runs]]` (a table of fields a run, and a `label` if it
    needs a name; with a grid, each of them with every combination), `score` (true or false), `tasks` (true, false, or
    "last": of the last checkpoint alone; only with scores), `samples`. Fields are dotted names as in `--set`, or
    `seed`. Raises InputError with one line that names the file and the key.
    """
    path = Path(path)
    content = read_toml(path)
    try:
        return parse_sweep(content, path.parent, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises InputError with one line that names it."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a sweep file (TOML)") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a sweep file (TOML)") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not valid TOML: {error}; fix the file") from None


def parse_sweep(content: Mapping[str, Any], beside: Path, values: Mapping[str, Any] | None = None) -> Sweep:
    """The content of a sweep file, as in `load_sweep`; `beside`: the folder that `base` may be in."""
    for key in content:
        if key not in _KEYS:
            raise InputError(f"no key {key!r}; keys are {', '.join(_KEYS)}")
    base, samples = content.get("base"), content.get("samples")
    score, tasks = content.get("score", False), content.get("tasks", False)
    if not isinstance(base, str):
        raise InputError("base: name a preset or a TOML file, as in base = 'quickstart'")
    if not isinstance(score, bool):
        raise InputError("score: give true or false")
    if not isinstance(tasks, bool) and tasks != LAST:
        raise InputError(f'tasks: give true, false, or "{LAST}" for the last checkpoint alone')
    if tasks and not score:
        raise InputError("tasks: are asked while scoring, so give score = true too")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise InputError(f"samples: give a whole number of at least 1, not {samples!r}")
    config = RunConfig.load(beside / base if (beside / base).is_file() else base)
    fixed = _fields(content.get("values", {}), "[values]")
    grid = _fields(content.get("grid", {}), "[grid]")
    listed = content.get("runs", [{}])
    if not isinstance(listed, list) or not listed:
        raise InputError("[[runs]]: give one table of fields a run")
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise InputError(f"[grid] {name}: give a list of values, as in {name} = [1, 2]")
    config = _with_values(config, fixed, "[values]")
    runs: dict[str, PlannedRun] = {}
    for number, table in enumerate(listed, 1):
        fields = _fields(table, f"[[runs]] number {number}")
        name = fields.pop("label", "")
        if not isinstance(name, str):
            raise InputError(f"[[runs]] number {number}: label has to be a text, not {name!r}")
        twice = fields.keys() & grid.keys()
        if twice:
            raise InputError(f"{min(twice)}: is in [grid] and in [[runs]]; take it out of one")
        for combination in itertools.product(*grid.values()):
            chosen = dict(zip(grid, combination, strict=True))
            where = f"[[runs]] number {number}" if fields else "[grid]"
            run = _with_values(_with_values(config, fields | chosen, where), values or {}, "--set")
            seeds = {key: value for key, value in (fields | chosen).items() if key.split(".")[0] in (SEED, "seeds")}
            first = [name] if name else _words(fields, seeds)
            condition = " ".join([*first, *_words(chosen, seeds)]) or "base"
            label = " ".join([condition, *_words(seeds, {})])
            if run.run_id in runs:
                raise InputError(f"{label}: the same run as {runs[run.run_id].label}; take one out")
            runs[run.run_id] = PlannedRun(
                run_id=run.run_id, label=label, condition=condition, values=fields | chosen, config=run
            )
    return Sweep(runs=tuple(runs.values()), score=score, tasks=tasks, samples=samples)


def asked_steps(steps: Sequence[int], tasks: AskTasks) -> list[int]:
    """Those of a run's checkpoints (ascending) that are asked the in-context tasks."""
    return list(steps[-1:] if tasks == LAST else steps if tasks else ())


def claim(sweep: Sweep, out: Path, update: bool = False) -> None:
    """Makes `out` the folder of this sweep: `sweep.json`, and each run's folder with its config.toml.

    Raises InputError if the folder holds a sweep of other runs, unless `update`: then runs are added, and those no
    longer planned stay where they are, untouched.
    """
    listed = [{"run_id": run.run_id, "label": run.label, "values": run.values} for run in sweep.runs]
    plan = {"score": sweep.score, "tasks": sweep.tasks, "samples": sweep.samples, "runs": listed}
    held = planned(out)
    if held is not None and not update:
        old, new = ({run["run_id"] for run in one["runs"]} for one in (held, plan))
        if old != new:
            raise InputError(
                f"{out}: holds a sweep of other runs ({len(new - old)} of the file's are not in it, {len(old - new)} "
                "of its are not in the file); give another --out, or --update to take the changed file"
            )
        held.setdefault("tasks", False)  # of a version that had none
        changed = [key for key in ("score", "tasks", "samples") if held.get(key) != plan[key]]
        if changed:
            raise InputError(
                f"{out}: holds this sweep with {changed[0]} = {held.get(changed[0])!r}, the file says "
                f"{plan[changed[0]]!r}; put it back, or give another --out"
            )
    for run in sweep.runs:
        if not (out / run.run_id / "config.toml").is_file():
            write_text(out / run.run_id / "config.toml", run.config.to_toml())
    if held != plan:
        write_json(out / PLAN, plan)


def planned(out: Path) -> dict[str, Any] | None:
    """What `sweep.json` in this folder says; None if there is none. Raises InputError if it cannot be read."""
    path = out / PLAN
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text("utf-8"))
        if not all({"run_id", "label", "values"} <= run.keys() for run in plan["runs"]):
            raise ValueError("a field is missing")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{path}: unreadable ({error}); delete it, and the same command rebuilds it") from None
    return plan


def _fields(table: Any, where: str) -> dict[str, Any]:
    """Dotted names to values; `train.steps = 3` and `[values.train] steps = 3` are the same."""
    if not isinstance(table, dict):
        raise InputError(f"{where}: write field = value, as in train.steps = 100")
    out: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            out |= {f"{name}.{field}": one for field, one in _fields(value, where).items()}
        else:
            out[name] = value
    return out


def _with_values(config: RunConfig, values: Mapping[str, Any], where: str) -> RunConfig:
    fields: dict[str, Any] = {}
    for name, value in values.items():
        fields |= {"seeds.init": value, "seeds.data": value} if name == SEED else {name: value}
    try:
        return config.with_values(fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _words(fields: Mapping[str, Any], without: Mapping[str, Any]) -> list[str]:
    return [f"{name.split('.')[-1]}={_short(value)}" for name, value in fields.items() if name not in without]


def _short(value: Any) -> str:
    """A value as a label shows it: of a path its last part."""
    return Path(value).name if isinstance(value, str) and "/" in value else str(value).replace(" ", "")
