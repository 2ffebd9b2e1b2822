"""Verdicts on the claims as lines, as one HTML page that opens offline, and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from copyscope.analyses.claims.evidence import STAGES
from copyscope.analyses.claims.judge import Claims
from copyscope.analyses.claims.verdict import Verdict, interval
from copyscope.analyses.words.json_values import plain
from copyscope.analyses.words.plain_page import html_table, plain_page, text
from copyscope.training.errors import InputError
from copyscope.training.files import write_json, write_text

CAPTION = (
    "Steps, with 95 % intervals, which are never narrower than the checkpoints; “2 of 3”: of those that formed it, the "
    "others being later or never"
)
SIGNS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}


def verdict_line(verdict: Verdict) -> str:
    """One line: verdict, claim, effect with interval (`above 0.2` where it is open), runs, reason."""
    return f"{verdict.verdict}: {verdict.claim}. {_effect(verdict)}{_runs(verdict.runs)}; {verdict.reason}."


def _effect(verdict: Verdict) -> str:
    value = None if verdict.value is None else f"{verdict.value:.3g}"
    closed = verdict.low is not None and verdict.high is not None
    ends = f"[{verdict.low:.3g}, {verdict.high:.3g}]" if closed else interval(verdict)
    known = " ".join(filter(None, (value, ends)))
    return f"{verdict.effect[:1].upper()}{verdict.effect[1:]}: {known}; " if known else ""


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"


def overview(verdicts: Sequence[Verdict]) -> pl.DataFrame:
    """A row a claim: verdict, effect, value, low, high, runs."""
    rows = [(f"{SIGNS[v.verdict]} {v.verdict}", v.claim, v.effect, v.value, v.low, v.high, v.runs) for v in verdicts]
    names = {
        "verdict": pl.String,
        "claim": pl.String,
        "effect": pl.String,
        "estimate": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "runs": pl.Int64,
    }
    return pl.DataFrame(rows, schema=names, orient="row")


def _in_words(runs: pl.DataFrame) -> pl.DataFrame:
    """Each stage as one column, such as "1,105 [1,000, 1,250], 2 of 3"."""
    ends = ("low", "high", "formed")
    words = [
        pl.struct(stage, *(f"{stage}, {end}" for end in ends), "runs")
        .map_elements(_formed, return_dtype=pl.String)
        .alias(stage)
        for stage in STAGES
    ]
    rest = runs.select(pl.exclude("runs", *(f"{stage}, {end}" for stage in STAGES for end in ends)))
    return rest.with_columns(runs.select(words).get_columns())


def _formed(row: dict[str, Any]) -> str:
    step, low, high, formed, runs = row.values()
    if step is None:
        return "not formed"
    return f"{step:,.0f} [{low:,.0f}, {high:,.0f}]" + (f", {formed} of {runs}" if formed < runs else "")


def write_claims(found: Claims, sources: Sequence[str], out: Path) -> Path:
    """Writes the page to `out` and the same as JSON beside it (`.json`); returns the page's path.

    Raises InputError if it cannot be written, or is no name of a page.
    """
    if not out.name or out.is_dir() or out.suffix == ".json":
        raise InputError(f"--out {out}: give the name of an HTML file; the JSON goes beside it")
    parts = [
        "<h1>Does this training speak for the claims of “Language Models ‘Grok’ to Copy”?</h1>",
        f'<p class="note">{_runs(len(sources))}: {text(", ".join(sources))}. Undecided is the default: a verdict needs '
        "runs that can decide it. Intervals are 95 %.</p>",
        html_table(overview(found.verdicts), "", words=True),
        "<h2>When things formed</h2>",
        html_table(_in_words(found.runs), CAPTION),
    ]
    for verdict in found.verdicts:
        facts = (
            ("Verdict", f"{SIGNS[verdict.verdict]} {verdict.verdict}"),
            ("Why", verdict.reason),
            ("Estimate", _effect(verdict).rstrip("; ") or "none"),
            ("Runs", str(verdict.runs)),
            ("Rule", verdict.rule),
            ("What would contradict it", verdict.breaks),
        )
        rows = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in facts)
        parts.append(f"<h2>{text(verdict.claim)}</h2>")
        parts.append(f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>')
        if verdict.details is not None and not verdict.details.is_empty():
            parts.append(html_table(verdict.details, "Behind it"))
    claims = [
        vars(verdict) | {"details": [] if verdict.details is None else verdict.details} for verdict in found.verdicts
    ]
    write_json(out.with_suffix(".json"), plain({"sources": list(sources), "runs": found.runs, "claims": claims}))
    write_text(out, plain_page("copyscope: claims", parts))
    return out
