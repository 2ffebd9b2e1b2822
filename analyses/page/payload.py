"""What the page shows of one or several runs: the index and its blocks, from tables on disk. Needs no torch."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from copyscope.analyses.claims.judge import claims
from copyscope.analyses.claims.verdict import Verdict, interval
from copyscope.analyses.page.contents import Entry, Payload
from copyscope.analyses.page.entry import run_entry
from copyscope.analyses.page.family import family_entries, family_lines
from copyscope.analyses.page.task_curves import TASK
from copyscope.analyses.tables.run import Run
from copyscope.analyses.words.glossary import describe
from copyscope.analyses.words.json_values import table
from copyscope.training.errors import InputError

VERSION = 1
"""Of the index' layout."""
PACKAGES = {
    "copyscope": "copyscope",
    "torch": "torch",
    "transformers": "transformers",
    "transformer_lens": "transformer-lens",
    "circuitsvis": "circuitsvis",
}


def payload(runs: Sequence[Run], live: bool = False) -> Payload:
    """Index and blocks of these scored runs, without attention: `prompts` of every run is empty.

    Raises InputError without a run, for two of one folder, or for one that was not scored.
    """
    if not runs:
        raise InputError("no run given; name one or more scored runs")
    folders = [run.folder.resolve() for run in runs]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise InputError(f"{runs[i].folder}: given twice; name each run once")
    entries = [run_entry(run, place) for place, run in enumerate(runs)]
    names = _names(runs)
    for entry, name in zip(entries, names, strict=True):
        entry.fields.update(name=name, prompts=[])
    several = len(runs) > 1
    found = family_entries(runs, entries)
    verdicts, unclear = _claims(runs)
    notes = [
        f"{name}: {note}" if several else note
        for name, entry in zip(names, entries, strict=True)
        for note in entry.notes
    ]
    index = {
        "version": VERSION,
        "live": live,
        "title": f"copyscope: {', '.join(names)}",
        "made": _made(),
        "summary": _summary(names, entries, family_lines(names, found)),
        "left_out": [*notes, *unclear],
        "measures": {name: _words(name) for name in _measure_names(entries)},
        "claims": verdicts,
        "runs": [entry.fields for entry in entries],
        "families": found,
    }
    return Payload(index, {name: data for entry in entries for name, data in entry.blocks.items()}, entries)


def _names(runs: Sequence[Run]) -> list[str]:
    """The runs' names; with their folder in front where two have the same."""
    names = [run.name for run in runs]
    return [
        run.name if names.count(run.name) == 1 else f"{run.folder.resolve().parent.name}/{run.name}" for run in runs
    ]


def _made() -> dict[str, str]:
    versions = {name: _version(package) for name, package in PACKAGES.items()}
    return versions | {"python": platform.python_version(), "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _summary(names: Sequence[str], entries: Sequence[Entry], forked: Mapping[int, str]) -> list[str]:
    """The lines of a single run; of several, when copying formed in each. `forked`: of forks what they share."""
    if len(entries) == 1:
        lines = entries[0].fields["summary"]
        return [*lines, f"Fork: {forked[0]}."] if forked else lines
    out = []
    for place, (name, entry) in enumerate(zip(names, entries, strict=True)):
        copying, steps = entry.fields["copying"], entry.fields["steps"]
        when = f"copying formed at step {copying['step']:,}" if copying else "copying has not formed"
        of = f"; {forked[place]}" if place in forked else ""
        out.append(f"{name}: {len(steps)} checkpoints to step {steps[-1]:,}; {when}{of}.")
    return out


def _measure_names(entries: Sequence[Entry]) -> list[str]:
    names: dict[str, None] = {}
    for entry in entries:
        names |= dict.fromkeys([*entry.fields["measures"], *entry.fields["curves"], *entry.fields["ablations"]])
    return list(names)


def _words(name: str) -> dict[str, Any]:
    words = describe(name)
    if name.startswith(TASK):
        words = replace(describe("choice_accuracy"), title=f"{name.removeprefix(TASK)}: choice accuracy")
    return asdict(words) | {"signed": words.signed, "scale": words.scale}


def _claims(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[str]]:
    """Verdicts as the page takes them; where the runs cannot be judged, none and why."""
    try:
        return [_claim(verdict) for verdict in claims([run.series.source for run in runs]).verdicts], []
    except InputError as error:
        return [], [f"claims were not judged: {error}"]


def _claim(verdict: Verdict) -> dict[str, Any]:
    value = verdict.value
    known = value is not None and math.isfinite(value)
    details = verdict.details
    return {
        "claim": verdict.claim,
        "verdict": verdict.verdict,
        "effect": verdict.effect + (f": {value:.3g}" if known else ""),
        "interval": interval(verdict),
        "runs": verdict.runs,
        "rule": verdict.rule,
        "break_condition": verdict.breaks,
        "text": verdict.reason,
        "details": None if details is None or details.is_empty() else table("Behind it", details),
    }
