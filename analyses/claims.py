"""Verdicts on the claims of "Language Models 'Grok' to Copy" (arXiv 2409.09281), from scored runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from analyses.claims_across import (
    RATE,
    SCHEDULE,
    learning_rate,
    optimization_intensity,
    regularization,
    updates_not_tokens,
)
from analyses.claims_within import delayed_emergence, shallow_to_deep, stage_after_stage
from analyses.evidence import Evidence, gather
from analyses.factors import comparable
from analyses.verdicts import Verdict
from training.errors import InputError


def claims(sources: Sequence[str | Path], factor: str | None = None) -> list[Verdict]:
    """A verdict on each claim from scored runs (`copyscope score`); undecided unless the runs decide it.

    `factor`: a setting such as `train.batch_size`; then the runs must differ in it alone (apart from seeds and from
    what does not change an update). Without it, each claim uses the runs that differ in its own setting alone, and
    names those it leaves out. Raises InputError: a run that was not scored, is given twice, has too few checkpoints,
    steps twice or out of order, scores that are not numbers; with `factor`, a run that differs in more.
    """
    if not sources:
        raise InputError("claims: no run given; name one or more run folders")
    runs = [gather(source) for source in sources]
    _no_doubles(runs)
    if factor is not None:
        also = SCHEDULE if factor == RATE else ()
        comparable([run.config for run in runs], factor, also, [run.run for run in runs])
    judges: tuple[Callable[[list[Evidence]], Verdict], ...] = (
        delayed_emergence, updates_not_tokens, shallow_to_deep, stage_after_stage, regularization, learning_rate,
        optimization_intensity,
    )  # fmt: skip
    return [judge(runs) for judge in judges]


def _no_doubles(runs: list[Evidence]) -> None:
    seen: dict[str, str] = {}
    for run in runs:
        for key in {run.run_id or "", str(Path(run.source).resolve())} - {""}:
            if key in seen:
                raise InputError(
                    f"{run.source}: the same experiment as {seen[key]}; give each once (other seeds count)"
                )
            seen[key] = run.source
