"""What is in a run or series, and what was computed of it, without computing anything. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run, read_metrics, stored_steps
from copyscope.training.checkpoints.trunk import read_trunk


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run at a glance."""

    name: str
    folder: Path
    source: str
    checkpoints: int
    first_step: int | None
    last_step: int | None
    trained_to: int | None
    """Last update of metrics.jsonl; None for a series that copyscope did not train."""
    steps: int | None
    """Updates that the config asks for."""
    scored: int
    """Steps with scores of heads."""
    ablated: dict[str, list[int]]
    """Kind of ablation to the steps it was done at."""
    megabytes: float
    """Of the folder, in 10^6 bytes."""
    pages: list[str]
    """Reports and figures, by path inside the folder."""


def info(source: str | Path) -> RunInfo:
    """Looks at a run or series. Raises InputError if there is no checkpoint in it."""
    run = open_run(source)
    steps = [checkpoint.step for checkpoint in run.series.checkpoints]
    results = run.folder / "results"
    ablated = {"heads": sorted(stored_steps(run, "ablations"))}
    if (results / "ablations").is_dir():
        kinds = [path.name for path in sorted((results / "ablations").iterdir()) if path.is_dir()]
        ablated |= {kind: sorted(stored_steps(run, f"ablations/{kind}")) for kind in kinds}
    logged = read_metrics(run)["step"].max()
    pages = [*run.folder.glob("*.html"), *(run.folder / "figures").glob("*")]
    return RunInfo(
        name=run.name,
        folder=run.folder,
        source=run.series.source,
        checkpoints=len(steps),
        first_step=min(steps, default=None),
        last_step=max(steps, default=None),
        trained_to=None if logged is None else int(logged),  # type: ignore[arg-type]
        steps=run.config.train.steps if run.config else None,
        scored=len(stored_steps(run, "heads")),
        ablated={kind: steps for kind, steps in ablated.items() if steps},
        megabytes=sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file()) / 1e6,
        pages=sorted(str(path.relative_to(run.folder)) for path in pages),
    )


def info_lines(source: str | Path) -> list[str]:
    """`info` in ten lines at most, and the next command to run. Raises as `info`."""
    run, about = open_run(source), info(source)
    lines = [f"{about.name}: {about.source} ({about.megabytes:,.0f} MB)", *_made_from(run), *_forked_from(run)]
    if about.steps is not None:
        reached = about.trained_to if about.trained_to is not None else about.last_step or 0
        command = "fork" if run.config and run.config.fork.of else "train"
        words = "finished" if reached >= about.steps else f"unfinished; rerun `copyscope {command}` to resume"
        lines.append(f"Training: step {reached:,} of {about.steps:,} ({words})")
    if about.checkpoints:
        lines.append(f"Checkpoints: {about.checkpoints}, steps {about.first_step:,} to {about.last_step:,}")
    else:
        lines.append("Checkpoints: none kept (checkpoints.keep)")
    lines.append(f"Scored: {about.scored} steps" if about.scored else "Scored: no")
    ablated = "; ".join(f"{kind} at {_listed(steps)}" for kind, steps in about.ablated.items())
    lines.append(f"Ablated: {ablated or 'no'}")
    lines.append(f"Formation mapped: {'yes' if (about.folder / 'results' / 'formation.json').is_file() else 'no'}")
    lines.append(f"Pages and figures: {', '.join(about.pages[:4]) or 'none'}{', …' if len(about.pages) > 4 else ''}")
    return [*lines, f"Next: {_next(about)}"]


def _made_from(run: Run) -> list[str]:
    if not run.config:
        return []
    m, data = run.config.model, run.data
    text = f"; corpus {data['corpus']}, {data['train']['tokens'] / 1e6:.1f} M tokens" if "train" in data else ""
    return [
        f"Model: {m.n_layers} layers of {m.n_heads} heads, d_model {m.d_model}, context {m.n_ctx}, vocabulary "
        f"{data.get('vocab_size', run.config.data.vocab_size):,}{text}"
    ]


def _forked_from(run: Run) -> list[str]:
    folder = Path(run.series.source)
    trunk = read_trunk(folder) if folder.is_dir() else None
    if trunk is None:
        return []
    changes = ", ".join(f"{name} {before} → {after}" for name, (before, after) in trunk.changes.items())
    parent = trunk.parent(folder)
    where = f"{trunk.place['absolute']} (not there any more)" if parent is None else str(parent)
    until = "" if trunk.until is None else f", until step {trunk.until:,}"
    return [f"Fork: of {where} from step {trunk.step:,} on, {trunk.kind}; {changes or 'nothing differs'}{until}"]


def _next(about: RunInfo) -> str:
    if not about.scored:
        return f"copyscope score {about.folder}"
    if not (about.folder / "results" / "formation.json").is_file():
        return f"copyscope map {about.folder}"
    if not about.ablated and about.checkpoints:
        return f"copyscope ablate {about.folder}"
    return f"copyscope explore {about.folder}"


def _listed(steps: list[int]) -> str:
    return f"step {steps[0]:,}" if len(steps) == 1 else f"{len(steps)} steps"
