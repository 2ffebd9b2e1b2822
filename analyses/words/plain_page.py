"""A page of words and tables alone: no script in it, nothing fetched, everything from outside escaped."""

from collections.abc import Sequence
from html import escape
from typing import Any

import polars as pl

from copyscope.analyses.words.text import visible

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636d; --line: #d9dde2; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #a2aab4; --line: #3a4047; --paper: #16181b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p { max-width: 75ch; }
.note { color: var(--soft); font-size: .92rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td { white-space: nowrap; }
.words td { min-width: 9em; white-space: normal; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
"""


def plain_page(title: str, parts: Sequence[str]) -> str:
    """A whole page; `parts` are HTML already."""
    csp = "default-src 'none'; style-src 'unsafe-inline'"
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{csp}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def text(value: Any) -> str:
    """Any value as harmless HTML text; control characters and lone surrogates are made visible."""
    return escape(visible(str(value)))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if abs(value) >= 1000:  # steps and tokens
            return f"{value:,.0f}".replace("-", "−")
        return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else text(value)


def html_table(table: pl.DataFrame, caption: str, words: bool = False) -> str:
    """A frame as an HTML table: numbers to the right, missing values as –, everything escaped."""
    numeric = {name: kind.is_numeric() for name, kind in table.schema.items()}
    kind = {name: ' class="number"' if number else "" for name, number in numeric.items()}
    head = "".join(f'<th scope="col"{kind[name]}>{text(name)}</th>' for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td{kind[name]}>{_cell(value)}</td>" for name, value in row.items()) + "</tr>"
        for row in table.iter_rows(named=True)
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    style = ' class="words"' if words else ""
    return f'<div class="scroll"><table{style}>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
