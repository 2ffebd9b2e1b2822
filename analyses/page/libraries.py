"""The JavaScript libraries of the page, read from the installed Python packages that carry them, and their notices."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from copyscope.training.errors import InputError

LIBRARIES = ("circuitsvis",)
NOTICES = {
    "circuitsvis": """CircuitsVis: copyright 2022 Alan Cooney; MIT licence. Its bundle holds React, React DOM, scheduler
and prop-types (Meta Platforms), Chart.js, react-chartjs-2 and chartjs-chart-matrix, Popper and react-popper,
react-grid-system, tinycolor2, colord, seedrandom and @kurkle/color (all MIT licence), TensorFlow.js (Google) and
long.js (Apache License 2.0).""",
}
LICENCES = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions: The
above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN
THE SOFTWARE. (MIT licence.)
TensorFlow.js and long.js: licensed under the Apache License, Version 2.0; the text is at
apache.org/licenses/LICENSE-2.0."""


@cache
def library(name: str) -> str:
    """The code of `circuitsvis`. Raises InputError for another, or if the installed package does not hold it."""
    if name != "circuitsvis":
        raise InputError(f"no JavaScript library {name!r}; there are {', '.join(LIBRARIES)}")
    spec = find_spec("circuitsvis")  # found, not imported: importing it takes torch
    bundle = Path(spec.origin or "").parent / "dist" / "cdn" / "iife.js" if spec else None
    if bundle is None or not bundle.is_file():
        raise InputError("circuitsvis: its browser bundle is not installed; run `pip install circuitsvis`")
    return bundle.read_text(encoding="utf-8")
