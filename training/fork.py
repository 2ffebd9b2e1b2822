"""What would have happened: a run whose first steps are another run's, and which from then on differs in one thing.

Also what an engine starts for each fork of several: `python -m copyscope.training.fork FOLDER`.
"""

import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from safetensors.torch import load_file

from copyscope.training.checkpoints.manifest import check_files, read_manifest, weights_hash
from copyscope.training.checkpoints.series import Checkpoint, CheckpointSeries, Source, step_folder
from copyscope.training.checkpoints.trunk import (
    CHANGED,
    FAMILY,
    NULL,
    ORDER,
    PLACEBO,
    RECORDING,
    TRUNK,
    Trunk,
    as_json,
    place_of,
    read_trunk,
)
from copyscope.training.config import ForkConfig, RunConfig
from copyscope.training.data.corpora import check_corpus
from copyscope.training.data.store import token_store
from copyscope.training.engines import make_engine
from copyscope.training.engines.protocol import Engine
from copyscope.training.errors import InputError
from copyscope.training.files import write_json, write_text
from copyscope.training.processes import accelerator_of
from copyscope.training.progress import Progress
from copyscope.training.replay import STATES, nearest_states, replay, step_of, threads_of, tokens_there
from copyscope.training.run_folder import claim_text, text_of_fork
from copyscope.training.schedule import checkpoint_steps, kept_steps, order_of_data, settings_at, tokens_at, window_at
from copyscope.training.state import states
from copyscope.training.sweeps.driver import run_sweep
from copyscope.training.sweeps.plan import PlannedRun, Sweep
from copyscope.training.sweeps.worker import FAILED, FINISHED, as_child
from copyscope.training.tracking import check_trackers
from copyscope.training.trainer import Plan, reader, run_updates

logger = logging.getLogger(__name__)
TEXT = frozenset({"data.corpus", "data.field", "data.encoding", "data.ascii_only", "data.max_megabytes"})
"""Which text is read; the tokenizer stays the parent's."""
CHANGEABLE = (
    TEXT
    | RECORDING
    | {
        "model.attention_dropout",
        "model.residual_dropout",
        "data.repeat_choice",
        ORDER,
        *(f"optimizer.{name}" for name in ("lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "clip")),
        *(f"optimizer.{name}" for name in ("warmup_steps", "schedule", "decay_share", "final_lr_share")),
        *(
            f"train.{name}"
            for name in ("steps", "batch_size", "gradient_accumulation", "precision", "compile", "threads")
        ),
        *(f"intervention.{name}" for name in ("heads", "mode", "skip_predictable", "from_step", "until_step")),
    }
)
"""What may differ from the parent. Shapes, vocabulary, optimiser and initial weights are in the state that a fork
continues from; what is measured, and on which held-out text, has to be the same before and after."""
LENGTH = "train.steps"
LIMITED = {
    "model.attention_dropout",
    "model.residual_dropout",
    *(f"intervention.{name}" for name in ("heads", "mode", "skip_predictable")),
    *(field for field in CHANGEABLE if field.startswith("optimizer.")),
}
"""What may differ for some updates only: all that an update takes from its settings alone."""
Watch = Callable[[Path, RunConfig], Callable[[Checkpoint], object]]
LONGEST_NAME = 100
"""Characters of a fork's folder name; file systems take 255 bytes."""


class Fork(NamedTuple):
    """A fork that `fork` made."""

    folder: Path
    step: int
    """Its first own update is the one from this step on."""
    kind: str
    """`null` (nothing differs), `placebo` (the order of the text does) or `changed`."""
    label: str
    """What differs, in a word or two."""
    state: str
    """`finished`, `diverged` or `failed`."""
    reason: str
    """Why it is not finished."""
    compared: list[int]
    """Of a null fork: the steps after `step` that both it and its parent have."""
    differs: list[int]
    """Those of them at which its weights are not the parent's, bit for bit."""
    drift: float | None
    """Distance of both weights at the last of `compared`, as a share of the parent's norm; None without any."""


def fork(
    run: Source,
    at: int | Sequence[int],
    values: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    out: str | Path | None = None,
    *,
    lasting: int | None = None,
    placebo: int = 0,
    engine: str | Engine | None = None,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
    child: tuple[str, ...] = ("copyscope.training.fork",),
    watch: Watch | None = None,
    progress: Progress | None = None,
) -> list[Fork]:
    """Trains the run in folder `run` again from step `at` on with other `values`, into folder `out`, or resumes that.

    The fork's first `at` updates are the run's: its checkpoints up to there are referred to by hash, not copied, and
    the run is never written to. `values`: dotted fields as in `{"optimizer.lr": 6e-3}`, those of `CHANGEABLE`; none is
    the null fork, which must end with the run's weights. Several steps, and a sequence of such mappings, make a fork
    for each combination in a folder of `out`. `lasting`: after so many updates all fields of `LIMITED` are the run's
    again; only those may then differ, and what stays: the order of the text (`seeds.data`) and, at a constant learning
    rate, `train.steps`. `placebo`: so many further
    forks at each step that differ in the order of the text alone (`seeds.data`), as a measure of chance; without
    `values` there is then no null fork.

    Step `at` is reached from the nearest full state before it by exact replay, once for all forks of that step; the
    state is kept in `out`. Several forks run one after the other, or `jobs` at a time on an `engine` (`local`, `ray`,
    `slurm`; `options` as the engine's own), which starts the module `child[0]` with the fork's folder and the rest of
    `child`. Without an engine `watch(folder, config)` gives what is called with each checkpoint of a fork. Safe to
    interrupt: call it again to resume; an `out` with several forks may get more of the same run, also a single one.

    Raises InputError before anything is written: a step that the run has not reached, no state to start from, a field
    that cannot change, an `out` that is something else. A single fork that diverges raises InputError too; one of
    several is marked so.
    """
    run = Path(run)
    steps = [at] if isinstance(at, int) else list(at)
    settings = [values] if isinstance(values, Mapping) else list(values)
    if placebo < 0:
        raise InputError(f"placebo={placebo}: give 0 or more")
    if lasting is not None and lasting < 1:
        raise InputError(f"--for {lasting}: give a number of updates, 1 or more")
    config = _parent_config(run)
    out = Path(out) if out is not None else run.parent / f"{run.name}-fork"
    planned = _plan(run, config, steps, settings or ([] if placebo else [{}]), lasting, placebo, out)
    several = len(planned) > 1 or placebo > 0 or (out / FAMILY).is_file()
    _check_out(planned, run, config, out, several)
    accelerator = accelerator_of(config, out, track=False)
    if several and accelerator.is_main_process:
        _note_family(planned, run, config, out)
    for one in planned:
        _claim(one, run, config, out, accelerator, progress)
    if engine is not None or jobs is not None:
        if several:
            return _by_engine(planned, out, engine or "local", jobs, options, child, progress)
        logger.info("one fork alone is trained in this process")
    done = []
    for one in planned:
        state, reason = FINISHED, ""
        try:
            continue_fork(one.folder, watch and watch(one.folder, one.config), progress)
        except InputError as error:
            if not several:
                raise
            state, reason = "diverged" if (one.folder / "diverged.json").is_file() else FAILED, str(error)
            logger.warning(f"{one.label}: {reason}")
        done.append(_judged(one, state, reason))
    return done


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A fork before it is trained."""

    folder: Path
    at: int
    kind: str
    label: str
    changes: dict[str, tuple[Any, Any]]
    """Field → its value in the parent and here."""
    config: RunConfig


def _parent_config(run: Path) -> RunConfig:
    if not run.is_dir():
        raise InputError(f"{run}: no such folder; give the folder of a run that `copyscope train` made")
    if (run / FAMILY).is_file():
        raise InputError(f"{run}: holds several forks; give one of them")
    if not (run / "config.toml").is_file() or not (run / "data.json").is_file():
        raise InputError(
            f"{run}: no run of `copyscope train` (it lacks config.toml or data.json); only such a run can be "
            "forked, so give its folder"
        )
    return RunConfig.load(run / "config.toml")


def _plan(
    run: Path,
    config: RunConfig,
    steps: Sequence[int],
    settings: Sequence[Mapping[str, Any]],
    lasting: int | None,
    placebo: int,
    out: Path,
) -> list[_Planned]:
    """Every fork that is asked for, each checked."""
    if not steps:
        raise InputError("at: give the step to fork at")
    if twice := [at for place, at in enumerate(steps) if at in steps[:place]]:
        raise InputError(f"--at: step {twice[0]} is given twice; take one out")
    known = [checkpoint.step for checkpoint in CheckpointSeries.open(run).checkpoints]
    known += [int(path.name.removeprefix("step")) for path in states(run / "resume")]
    reached = max(known, default=0)
    for at in steps:
        if not 0 <= at <= reached:
            raise InputError(f"--at {at}: not a step of {run}, which is trained to step {reached}")
        if at < config.fork.at:
            raise InputError(f"--at {at}: before step {config.fork.at}, where {run} itself was forked; fork its parent")
    seeds = [{ORDER: config.seeds.data + number} for number in range(1, placebo + 1)]
    wanted = [(one, "") for one in settings] + [(one, f"placebo{i}") for i, one in enumerate(seeds, 1)]
    planned: dict[str, _Planned] = {}
    for at in steps:
        for values, name in wanted:
            changed = _changed(settings_at(config, at), values)
            matters = changed.keys() - RECORDING
            named = matters or changed.keys()
            kind = PLACEBO if matters == {ORDER} else CHANGED if matters else NULL
            ends = changed.get(LENGTH, (0, config.train.steps))[1]
            until = None if lasting is None or name else _until(config, at, lasting, matters, ends)
            label = name or " ".join(
                f"{field.split('.')[-1]}={_short(changed[field][1])}" for field in changed if field in named
            )
            label = " ".join([*([f"at {at}"] if len(steps) > 1 else []), label or NULL])
            label += "" if until is None else f" for {lasting}"
            own = replace_fork(config, {field: new for field, (_, new) in changed.items()}, at, until)
            if own.train.steps <= at:
                raise InputError(
                    f"--at {at}: nothing is left to train, as train.steps is {own.train.steps}; set train.steps too"
                )
            alone = len(steps) * len(wanted) == 1 and not placebo and not (out / FAMILY).is_file()
            folder = out if alone else out / _folder_name(label, own.run_id)
            if own.run_id in planned:
                raise InputError(f"{label}: asked for twice; take one out")
            if any(folder == other.folder for other in planned.values()):
                folder = folder.with_name(f"{folder.name}-{own.run_id}")
            planned[own.run_id] = _Planned(folder=folder, at=at, kind=kind, label=label, changes=changed, config=own)
    return list(planned.values())


def _until(config: RunConfig, at: int, lasting: int, fields: Set[str], ends: int) -> int:
    """The update at which a change that lasts so long is over, in a fork that `ends` at that step. Raises InputError
    for one that cannot end."""
    lasts = {ORDER, LENGTH} if config.optimizer.schedule == "constant" else {ORDER}  # or rates hang on length
    endless = sorted(fields - LIMITED - lasts)
    if endless:
        raise InputError(
            f"--for {lasting}: {endless[0]} cannot change for some updates only; what can: {_listed(LIMITED)}"
        )
    if not fields & LIMITED:
        raise InputError(f"--for {lasting}: nothing differs that could end; give --set, or leave --for out")
    if config.fork.until is not None and at < config.fork.until:
        raise InputError(
            f"--for {lasting}: at step {at} a change of the run itself lasts, until step {config.fork.until}; fork "
            "there, or leave --for out"
        )
    if at + lasting >= ends:
        raise InputError(f"--for {lasting}: lasts to the end, step {ends}; leave --for out")
    return at + lasting


def _changed(config: RunConfig, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, with both values as JSON has them. Raises InputError for one that cannot change."""
    after = config.with_values(values)
    for field in values:
        if field not in CHANGEABLE:
            raise InputError(
                f"{field}: cannot change in a fork, which continues from its parent's weights, optimiser and tokenizer "
                f"and is measured like it; what can: {_listed(CHANGEABLE)}"
            )
    old, new = config.model_dump(mode="json"), after.model_dump(mode="json")
    parts = [field.split(".") for field in values]
    return {
        f"{section}.{name}": (old[section][name], new[section][name])
        for section, name in parts
        if old[section][name] != new[section][name]
    }


def _listed(fields: Set[str]) -> str:
    """Dotted fields, section by section."""
    sections: dict[str, list[str]] = {}
    for section, name in sorted(field.split(".") for field in fields):
        sections.setdefault(section, []).append(name)
    return "; ".join(f"{section}.{{{', '.join(names)}}}" for section, names in sections.items())


def replace_fork(config: RunConfig, values: Mapping[str, Any], at: int, until: int | None = None) -> RunConfig:
    """The configuration of the fork at step `at` of the run that `config` describes, with other `values`; those of
    `LIMITED` up to update `until`. A change of the run itself that lasts at `at` still ends when it does."""
    other_text = not TEXT.isdisjoint(values)
    before, now = config.fork, settings_at(config, at)
    after = now.only(LIMITED & values.keys()) if until is not None else {}
    if before.until is not None and at < before.until:
        after = {field: value for field, value in before.after.items() if field not in values}
        until = before.until if after else None
    branch = ForkConfig(
        of=config.run_id,
        at=at,
        tokens=tokens_at(config, at),
        window=0 if other_text else window_at(config, at),
        order=() if other_text else order_of_data(config),
        until=until,
        after=after,
    )
    return RunConfig.parse({**now.with_values(values).model_dump(mode="json"), "fork": branch.model_dump()})


def _folder_name(label: str, run_id: str) -> str:
    """The label as a folder's name that a shell takes as it stands: a list's brackets, which are patterns there, go.
    One longer than a file system likes is cut, and ends in the run's id."""
    name = re.sub(r"\b(at|for) ", r"\1", label).replace("],[", "+").replace(" ", "-")
    name = re.sub(r"[^\w.,=+-]+", "_", re.sub(r"[][]", "", name))
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}-{run_id}"


def _short(value: Any) -> str:
    return Path(value).name if isinstance(value, str) and "/" in value else str(value).replace(" ", "")


def _check_out(planned: Sequence[_Planned], run: Path, config: RunConfig, out: Path, several: bool) -> None:
    """InputError for a folder that holds something else."""
    if run.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"--out {out}: is in the run that is forked, which is never written to; choose another")
    if several and (out / FAMILY).is_file():
        try:
            of = json.loads((out / FAMILY).read_text("utf-8"))["parent"]["run_id"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out / FAMILY}: damaged ({error}); choose another --out") from None
        if of != config.run_id:
            raise InputError(f"--out {out}: holds forks of another run; choose another")
    elif several:
        _check_new(out)
    for one in planned:
        if (one.folder / "config.toml").is_file() and (one.folder / TRUNK).is_file():
            there = RunConfig.load(one.folder / "config.toml")
            if there.run_id != one.config.run_id:
                raise InputError(f"--out {one.folder}: holds another fork; choose another, or what it was made with")
        elif not (one.folder / TRUNK).is_file():
            _check_new(one.folder)


def _check_new(folder: Path) -> None:
    if folder.is_file() or any(parent.is_file() for parent in folder.parents):
        raise InputError(f"--out {folder}: is a file or lies under one, not a folder; choose another")
    if (folder / TRUNK).is_file():
        raise InputError(f"--out {folder}: is a single fork; several go into a folder above theirs, so choose another")
    if folder.is_dir() and any(entry.name[:1] != "." for entry in folder.iterdir()):
        raise InputError(f"--out {folder}: exists and is no fork of this run; choose another")


def _note_family(planned: Sequence[_Planned], run: Path, config: RunConfig, out: Path) -> None:
    """Writes forks.json: those there already, and the ones planned now."""
    path, rows = out / FAMILY, {}
    if path.is_file():
        rows = {row["folder"]: row for row in json.loads(path.read_text("utf-8"))["forks"]}
    for one in planned:
        name = one.folder.relative_to(out).as_posix()
        rows[name] = {"folder": name, "step": one.at, "kind": one.kind, "label": one.label}
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"parent": {**place_of(run, out), "run_id": config.run_id}, "forks": list(rows.values())})


class _Reached(NamedTuple):
    """The full state at a step of the parent, and what it took to get there."""

    state: Path | None
    """None at step 0 of a run, which follows from its seed."""
    facts: dict[str, Any]


def _claim(
    one: _Planned, run: Path, config: RunConfig, out: Path, accelerator: Accelerator, progress: Progress | None
) -> None:
    """Makes the fork's folder with all that `continue_fork` needs; config.toml last: then all is there."""
    if (one.folder / "config.toml").is_file():
        accelerator.wait_for_everyone()
        return
    store = tokens_there(run)
    text = text_of_fork(run)
    with accelerator.main_process_first():
        if any(field in TEXT for field in one.changes):
            check_corpus(one.config.data.corpus)
            text = token_store(one.config.data, out.parent / "tokens", store.tokenizer_path)
        reader(one.config, text or store)(one.at)  # a corpus too small is refused before anything is written
    reached = _reach(run, config, one.at, out / STATES, accelerator, progress)
    if accelerator.is_main_process:
        first = [c for c in CheckpointSeries.open(run).checkpoints if c.step <= one.at]
        trunk = Trunk(
            step=one.at,
            tokens=one.config.fork.tokens,
            run_id=config.run_id,
            place=place_of(run, one.folder),
            store=place_of(store.folder, one.folder),
            text=None if text is None else place_of(text.folder, one.folder),
            changes=one.changes,
            until=one.config.fork.until,
            kind=one.kind,
            label=one.label,
            state=None if reached.state is None else _state_hash(reached.state),
            replay=reached.facts,
            checkpoints={c.step: digest for c in first if (digest := weights_hash(Path(c.path))) is not None},
        )
        write_json(one.folder / TRUNK, as_json(trunk))
        claim_text(one.folder, store)
        write_text(one.folder / "config.toml", one.config.to_toml())
    accelerator.wait_for_everyone()


def _state_hash(folder: Path) -> str:
    (digest,) = read_manifest(folder)["files"].values()
    return str(digest)


def _reach(
    run: Path, config: RunConfig, at: int, home: Path, accelerator: Accelerator, progress: Progress | None
) -> _Reached:
    """The full state at step `at`: the parent's own, one that was reached before, or by replay into `home`."""
    if at == 0:
        return _Reached(None, {"from": 0, "compared": [], "differs": []})
    name = step_folder(at)
    begin = sorted({*nearest_states(run, config, at), *states(home, at)}, key=lambda path: path.name, reverse=True)
    for folder in [folder for folder in begin if folder.name == name]:
        try:
            check_files(folder)
        except InputError as error:
            logger.warning(f"{error}; it is replayed")
            begin.remove(folder)
            continue
        noted = home / f"replay{at}.json"
        here = folder.parent == home and noted.is_file()
        return _Reached(folder, json.loads(noted.read_text()) if here else {"from": at, "compared": [], "differs": []})
    known = step_of(begin)
    logger.info(f"step {at:,} of {run}: {at - known:,} updates from its nearest full state, at step {known:,}")
    there = {c.step: Path(c.path) for c in CheckpointSeries.open(run).checkpoints if known < c.step <= at}
    compared: list[int] = []
    differs: list[int] = []

    def compare(checkpoint: Checkpoint) -> None:
        compared.append(checkpoint.step)
        if weights_hash(Path(checkpoint.path)) != weights_hash(there[checkpoint.step]):
            differs.append(checkpoint.step)

    place = home / f"replay{at}"
    plan = Plan(last=at, saved=frozenset(there), kept=frozenset(), start_from=tuple(begin))
    replay(run, config, place, plan, compare, progress)
    accelerator.wait_for_everyone()
    facts = {"from": known, "compared": compared, "differs": differs}
    if accelerator.is_main_process:
        if differs:
            logger.warning(
                f"the replay of {run} differs from it at step {differs[0]}: this machine, its threads, the number of "
                "processes, or the version of PyTorch or copyscope is not that of the run, so its forks here share its "
                "first steps only nearly"
            )
        write_json(home / f"replay{at}.json", facts)
        if not (home / name).is_dir():
            (place / "resume" / name).rename(home / name)
        shutil.rmtree(place)
    accelerator.wait_for_everyone()
    return _Reached(home / name, facts)


def continue_fork(
    folder: Path,
    on_checkpoint: Callable[[Checkpoint], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Trains the fork in `folder` to its end, from where it is. Raises as `training.trainer.train`."""
    config, trunk = RunConfig.load(folder / "config.toml"), read_trunk(folder)
    if trunk is None or not config.fork.of:
        raise InputError(f"{folder}: not a fork; give the folder of one")
    at = config.fork.at
    check_trackers(config)
    begin: list[Path] = []
    if at and not states(folder / "resume"):
        begin = [path for path in nearest_states(folder, config, at) if _state_hash(path) == trunk.state]
    own = {at} - trunk.checkpoints.keys()
    plan = Plan(
        last=config.train.steps,
        saved=frozenset(own.union(checkpoint_steps(config))),
        kept=frozenset(kept_steps(config).union(own if config.checkpoints.keep == "all" else ())),
        start_from=tuple(begin),
        begin=at,
        text=text_of_fork(folder),
    )
    parent = trunk.parent(folder) or folder
    with threads_of(parent, at):
        accelerator = accelerator_of(config, folder)
        run_updates(config, folder, tokens_there(folder), plan, accelerator, on_checkpoint, progress)
    return folder


def _by_engine(
    planned: Sequence[_Planned],
    out: Path,
    engine: str | Engine,
    jobs: int | None,
    options: Mapping[str, Any] | None,
    child: tuple[str, ...],
    progress: Progress | None,
) -> list[Fork]:
    runs = [
        PlannedRun(
            run_id=one.folder.relative_to(out).as_posix(),
            label=one.label,
            condition=one.label,
            values={field: new for field, (_, new) in one.changes.items()},
            config=one.config,
        )
        for one in planned
    ]
    chosen = make_engine(engine, out, jobs, options) if isinstance(engine, str) else engine
    outcomes = run_sweep(Sweep(runs=tuple(runs)), out, chosen, child[0], child[1:], progress)
    return [
        _judged(one, outcome.status.state, outcome.status.reason)
        for one, outcome in zip(planned, outcomes, strict=True)
    ]


def _judged(one: _Planned, state: str, reason: str) -> Fork:
    compared, differs, drift = (
        compare_with_parent(one.folder) if one.kind == NULL and state == FINISHED else ([], [], None)
    )
    return Fork(one.folder, one.at, one.kind, one.label, state, reason, compared, differs, drift)


def compare_with_parent(folder: Path) -> tuple[list[int], list[int], float | None]:
    """The steps after the fork's that both have, those of them whose weights differ, and how far the last are apart, as
    a share of the parent's norm (None without any)."""
    trunk = read_trunk(folder)
    parent = None if trunk is None else trunk.parent(folder)
    if trunk is None or parent is None:
        return [], [], None
    own, there = (
        {c.step: Path(c.path) for c in CheckpointSeries.open(run).checkpoints if c.step > trunk.step}
        for run in (folder, parent)
    )
    compared = sorted(own.keys() & there.keys())
    differs = [step for step in compared if weights_hash(own[step]) != weights_hash(there[step])]
    return compared, differs, distance_share(own[compared[-1]], there[compared[-1]]) if compared else None


def distance_share(one: Path, other: Path) -> float:
    """Euclidean distance of the weights of two checkpoints, as a share of the norm of the second."""
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    apart = sum(float((mine[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return math.sqrt(apart / sum(float(value.double().square().sum()) for value in theirs.values()))


if __name__ == "__main__":
    sys.exit(as_child(Path(sys.argv[1]), lambda config, folder: continue_fork(folder)))
