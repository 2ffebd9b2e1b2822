"""Attention of one head on paper: the matrix with its tokens, and a film of it over checkpoints."""

import io
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image

from copyscope.analyses.figures.paper import STYLE, VERMILLION, new_figure
from copyscope.training.errors import InputError
from copyscope.training.files import write_bytes

MASKED = "#e8e8e8"
"""Colour of what a query cannot attend to, since it comes later."""
MAX_LABELS = 64
"""Tokens that still get a label each."""
FILMS = (".gif", ".mp4")
LAST = 4
"""How many times as long the last frame of a film stays."""
MIN_SECONDS, MAX_SECONDS = 0.02, 60.0
"""A frame; browsers show a GIF's shorter ones more slowly."""


def paper_attention(
    pattern: Float[np.ndarray, "query key"],
    tokens: Sequence[str],
    targets: Sequence[Sequence[int]] = (),
    *,
    title: str = "",
    width: float = 3.25,
) -> Figure:
    """One head's attention, in [0, 1], as a matplotlib figure: a row a query, a column a key, white 0 to dark blue 1.

    `tokens`: as text, one a position; `targets`: for each query the keys to be outlined, such as those where a perfect
    induction head attends; `width` in inches. Raises InputError where tokens and pattern do not fit each other.
    """
    size = len(tokens)
    if pattern.shape != (size, size) or (targets and len(targets) != size):
        raise InputError(f"paper_attention: a pattern of {pattern.shape} with {size} tokens, {len(targets)} targets")
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, width)
        axes = figure.add_subplot()
        shown = np.ma.masked_where(np.triu(np.ones((size, size), dtype=bool), 1), pattern)
        colors = matplotlib.colormaps["Blues"].with_extremes(bad=MASKED)
        picture = axes.imshow(shown, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
        for query, keys in enumerate(targets):
            for key in keys:
                place = (key - 0.5, query - 0.5)
                axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=VERMILLION, linewidth=0.8))
        labels = [_readable(token) for token in tokens] if size <= MAX_LABELS else []
        font = max(3.0, min(7.0, 72 * width * 0.6 / size))
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font, family="monospace")
        axes.set_yticks(range(len(labels)), labels, fontsize=font, family="monospace")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_ylabel("query")
        axes.set_xlabel("key")
        axes.xaxis.set_label_position("bottom")
        bar = figure.colorbar(picture, ax=axes, fraction=0.04, pad=0.03)
        bar.set_label("attention", fontsize=7)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)  # type: ignore[operator]
        figure.suptitle("\n".join(textwrap.wrap(title, int(width * 15))), fontsize=8)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def write_film(frames: Sequence[Figure], path: str | Path, seconds: float = 0.35, dots: int = 150) -> Path:
    """Writes figures as a film, one after the other: .gif, or .mp4 where ffmpeg is installed.

    `seconds` a frame, 0.02 to 60; the last one stays `LAST` times as long. `dots` an inch. Raises InputError: no
    frames, another ending, such seconds, or no ffmpeg that writes H.264.
    """
    out = check_film(path, seconds)
    if not frames:
        raise InputError(f"{out}: a film has a frame or more, not 0")
    pictures = [_picture(figure, dots) for figure in frames]
    write_bytes(out, _gif(pictures, seconds) if out.suffix == ".gif" else _mp4(pictures, seconds))
    return out


def check_film(path: str | Path, seconds: float) -> Path:
    """The path of a film that can be written, before its frames are computed. Raises InputError as `write_film`."""
    out = Path(path)
    if out.suffix not in FILMS:
        raise InputError(f"{out}: a film ends in {' or '.join(FILMS)}")
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise InputError(f"seconds={seconds:g}: give {MIN_SECONDS:g} to {MAX_SECONDS:g} a frame")
    if out.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise InputError(f"{out}: needs ffmpeg, which is not installed; write a .gif instead")
    return out


def _gif(pictures: Sequence[Image.Image], seconds: float) -> bytes:
    times = [round(1000 * seconds)] * (len(pictures) - 1) + [round(1000 * LAST * seconds)]
    data = io.BytesIO()
    pictures[0].save(data, "GIF", save_all=True, append_images=list(pictures[1:]), duration=times, loop=0)
    return data.getvalue()


def _mp4(pictures: Sequence[Image.Image], seconds: float) -> bytes:
    """H.264 as every browser plays it: colours at half resolution, so of even width and height; its index in front."""
    rate = Fraction(1 / seconds).limit_denominator(1000)
    shown = [*pictures, *[pictures[-1]] * (LAST - 1)]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "film.mp4"
        command = ["ffmpeg", "-v", "error", "-f", "image2pipe", "-c:v", "png", "-framerate", str(rate), "-i", "-"]
        command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
        command += ["-movflags", "+faststart", str(made)]
        data = io.BytesIO()
        for picture in shown:
            picture.save(data, "PNG")
        done = subprocess.run(command, input=data.getvalue(), capture_output=True)
        if done.returncode:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise InputError(f"ffmpeg made no film ({last or done.returncode}); write a .gif instead")
        return made.read_bytes()


def _picture(figure: Figure, dots: int) -> Image.Image:
    data = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(data, format="png", dpi=dots)
    return Image.open(data).convert("RGB")


def _readable(token: str) -> str:
    """With signs for what cannot be seen, codes for what the font has not got, and no dollar that would begin a
    formula."""
    text = token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    text = "".join(sign if _drawable(sign) else _code(sign) for sign in text)
    return (text if len(text) <= 12 else text[:11] + "…").replace("$", r"\$")


@cache
def _drawable(sign: str) -> bool:
    """Whether the font of the labels has this character; others would be boxes, and a warning each."""
    font = get_font(findfont(FontProperties(family="monospace")))
    return font.get_char_index(ord(sign)) != 0


def _code(sign: str) -> str:
    """`\\x0b` for a control character, which comes as its picture (U+240B), else `\\u65e5`."""
    code = ord(sign)
    if 0x2400 <= code <= 0x241F:
        return f"\\x{code - 0x2400:02x}"
    return "\\x7f" if code == 0x2421 else f"\\u{code:04x}"
