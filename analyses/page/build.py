"""Puts the page together: its own files, the index and blocks as inert elements, and the libraries, packed.

Everything that comes from outside (names, tokens, config, tables) is in the index, where `<`, `>` and `&` are \\u
escapes; the page's scripts show it as text. A Content-Security-Policy forbids every request, or, of the live page,
every request but those to its own address.
"""

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from copyscope.analyses.page.libraries import LIBRARIES, LICENCES, NOTICES, library
from copyscope.analyses.words.text import visible

NO_REQUESTS = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
CSP = {
    "embedded": NO_REQUESTS,
    "kernel": NO_REQUESTS,
    "server": "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'",
}
"""By where the page has its data from: itself, a notebook's kernel (through the window that frames it), its server."""


def page(index: Mapping[str, Any], blocks: Mapping[str, bytes], source: str = "embedded") -> str:
    """The whole page as HTML.

    `embedded`: `index` (docs/explorer.md has its fields) and `blocks` (name to bytes) are in it, with the libraries,
    and it makes no requests; from a `server` or a `kernel`, it holds neither and asks for both. Raises ValueError if
    the index holds a number that JSON has no word for (NaN, infinities).
    """
    return Template(_file("page.html")).substitute(
        title=escape(visible(str(index["title"]))),
        csp=CSP[source],
        source=source,
        style=_file("page.css"),
        scripts=_scripts(),
        data=_notices() if source != "embedded" else "\n".join([_notices(), *_elements(index, blocks)]),
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside <script>: no `<`, `>`, `&` or line separator can end or confuse it.

    Control characters, direction controls and lone surrogates in its strings are made visible.
    """
    out = json.dumps(_visible(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        out = out.replace(character, f"\\u{ord(character):04x}")
    return out


def packed(data: bytes) -> str:
    """gzip, then base64; the same bytes give the same text."""
    return b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(item) for item in value]
    return value


def _elements(index: Mapping[str, Any], blocks: Mapping[str, bytes]) -> list[str]:
    return [
        f'<script type="application/json" id="index">{script_json(index)}</script>',
        *(
            f'<script type="application/octet-stream" id="block-{escape(visible(name))}">{packed(data)}</script>'
            for name, data in blocks.items()
        ),
        *(f'<script type="text/plain" id="lib-{name}">{_packed_library(name)}</script>' for name in LIBRARIES),
    ]


@cache
def _packed_library(name: str) -> str:
    return packed(library(name).encode())


def _notices() -> str:
    return "<!-- This page holds\n" + "\n".join(NOTICES.values()) + "\n" + LICENCES + "\n-->"


def _scripts() -> str:
    """The page's own scripts in the order of their names, an element each."""
    folder = files("copyscope.analyses.page").joinpath("js")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".js"))
    return "\n".join(f"<script>\n{_file(f'js/{name}')}</script>" for name in names)


def _file(name: str) -> str:
    return files("copyscope.analyses.page").joinpath(*name.split("/")).read_text(encoding="utf-8")
