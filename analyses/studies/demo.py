"""The whole story on one machine: train, score, ablate, average, map, report."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from copyscope.analyses.figures.maps import map_formation
from copyscope.analyses.page.report import report
from copyscope.analyses.tables.ablations import ablate
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run_prompts import check_context
from copyscope.analyses.tables.scores import score
from copyscope.analyses.tables.summary import summary_lines
from copyscope.analyses.tables.text_measured import measure_text
from copyscope.analyses.tables.watch import Watch
from copyscope.training.checkpoints.average import average
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.config import RunConfig
from copyscope.training.progress import Progress
from copyscope.training.trainer import train

ABLATIONS = ("zero", "frozen_patterns")
"""Holding attention shows which heads act only on what later heads attend to."""
ABLATION_SAMPLES = 200
"""Of the copying test: enough for effects of whole heads."""


class DemoResult(NamedTuple):
    """Where the demo's run and report are, and what it printed."""

    run: Path
    report: Path
    summary: list[str]


def demo(
    out: str | Path = "runs/demo",
    config: RunConfig | str | Path = "quickstart",
    progress: Progress | None = None,
    on_scored: Callable[[Checkpoint], object] | None = None,
) -> DemoResult:
    """Trains, scores each checkpoint as it is written, ablates, maps and reports. After an interruption, call it again:
    whatever is done is not done twice.

    `config`: the settings, or a preset's name or TOML file. `progress` hears how training and ablation advance;
    `on_scored` is called with each checkpoint once it is scored. What changed at each is logged.

    Raises InputError before training if the context is too short for the copying test, and as the parts do.
    """
    config = config if isinstance(config, RunConfig) else RunConfig.load(config)
    check_context(config.model.n_ctx, config.data.vocab_size)
    run = train(config, out, on_checkpoint=Watch(out, config, on_scored), progress=progress)
    score(run, progress=progress)  # what a call that was killed between writing and scoring left
    measure_text(open_run(run))
    ablate(run, methods=ABLATIONS, samples=ABLATION_SAMPLES, progress=progress)
    if open_run(run).series.checkpoints:  # else they were taken away, and only tables are left
        means = average(run, progress=progress)
        # Earlier means lag behind a rise that is still going on.
        late = [step for step in means.of_several if 2 * step > config.train.steps]
        if late:
            score(means.folder, steps=late, progress=progress)
    map_formation(run)
    return DemoResult(run, report(run), summary_lines(open_run(run)))
