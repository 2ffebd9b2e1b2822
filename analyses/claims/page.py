"""Verdicts on the claims as lines, as one HTML page that opens offline, and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

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
BEHIND = "Behind it; in brackets 95 % intervals; < and > are bounds, of what has not happened yet"
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


def in_words(table: pl.DataFrame) -> pl.DataFrame:
    """The table with each value and its interval (`verdict.with_ends`) as one column of text: `1,105 [1,000, 1,250]`,
    and where only a bound is known `< 0.81` or `> 6,000`; with a column `NAME, formed` beside them, "2 of 3" too."""
    names = [name for name in table.columns if {f"{name}, low", f"{name}, high"} <= set(table.columns)]
    parts = [f"{name}, {part}" for name in names for part in ("low", "high", "formed")]
    many = "runs" in table.columns
    columns = []
    for name in table.columns:
        if name in names:
            rows = zip(*(_column(table, f"{name}{end}") for end in ("", ", low", ", high", ", formed")), strict=True)
            runs = table["runs"].to_list() if many else [None] * table.height
            said = [_estimate(*row, count) for row, count in zip(rows, runs, strict=True)]  # type: ignore[call-arg]
            columns.append(pl.Series(name, said, dtype=pl.String))
        elif name not in parts and not (many and name == "runs"):
            columns.append(table[name])
    return pl.DataFrame(columns)


def _column(table: pl.DataFrame, name: str) -> list[Any]:
    return table[name].to_list() if name in table.columns else [None] * table.height


def _estimate(value: float | None, low: float | None, high: float | None, formed: int | None, runs: int | None) -> str:
    if value is None:
        bound = f"< {_short(high)}" if high is not None else f"> {_short(low)}" if low is not None else None
        return bound or ("–" if formed is None else "not formed")
    if low is None or high is None:
        said = _short(value)
    elif formed is not None and low < 1:  # the checkpoint before is step 0: any step up to `high` is as good
        said = f"by {_short(high)}"
    else:
        said = f"{_short(value)} [{_short(low)}, {_short(high)}]"
    return said + (f", {formed} of {runs}" if formed is not None and runs is not None and formed < runs else "")


def _short(value: float) -> str:
    """A step as a whole number, a ratio with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_claims(judged: Claims, sources: Sequence[str], out: Path) -> Path:
    """Writes the page to `out` and the same as JSON beside it (`.json`); returns the page's path.

    Raises InputError if it cannot be written, or is no name of a page.
    """
    if not out.name or out.is_dir() or out.suffix == ".json":
        raise InputError(f"--out {out}: give the name of an HTML file; the JSON goes beside it")
    parts = [
        "<h1>Does this training speak for the claims of “Language Models ‘Grok’ to Copy” and others?</h1>",
        f'<p class="note">{_runs(len(sources))}: {text(", ".join(sources))}. Undecided is the default: a verdict needs '
        "runs that can decide it. Intervals are 95 %.</p>",
        html_table(overview(judged.verdicts), "", words=True),
        "<h2>When things formed</h2>",
        html_table(in_words(judged.runs), CAPTION),
    ]
    for verdict in judged.verdicts:
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
            parts.append(html_table(in_words(verdict.details), BEHIND))
    claims = [
        vars(verdict) | {"details": [] if verdict.details is None else verdict.details} for verdict in judged.verdicts
    ]
    write_json(out.with_suffix(".json"), plain({"sources": list(sources), "runs": judged.runs, "claims": claims}))
    write_text(out, plain_page("copyscope: claims", parts))
    return out
