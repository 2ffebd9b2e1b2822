"""Maps on paper: the same cells, colours, marks and words as the Plotly map, in files that carry their fonts."""

import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from synthetic_run import checkpoint_steps, series_table, synthetic_run

from copyscope.analyses.figures.figures import formation_map_figure, story_figure
from copyscope.analyses.figures.map_data import NO_SCORE, Band, phase_change, scale_of, scale_words
from copyscope.analyses.figures.paper import FORMATS, paper_map, rendered
from copyscope.analyses.figures.paper_matrix import paper_attention, write_film
from copyscope.analyses.figures.paper_panels import paper_phase_change, paper_seeds, paper_story
from copyscope.analyses.formation.heads import copying_formation, formation_map, formation_steps
from copyscope.analyses.tables.averages import AVERAGED
from copyscope.training.errors import InputError

RUN = synthetic_run()
BAND = phase_change(copying_formation(RUN.model))


def words(figure: Figure) -> set[str]:
    return {note.get_text() for note in figure.axes[0].texts} | {figure.axes[0].get_title("left")}


def mesh_values(figure: Any) -> list[np.ndarray]:
    """The scores drawn, a (row, step) matrix for each block of cells, NaN where grey."""
    meshes = [mesh for mesh in figure.axes[0].collections if mesh.__class__.__name__ == "QuadMesh"]
    return [np.ma.filled(np.ma.asarray(mesh.get_array()).astype(float), np.nan) for mesh in meshes]


@pytest.mark.parametrize(("measure", "title"), [("previous_token", "score"), ("zero:copying_loss", "effect")])
def test_colours_of_an_effect_are_not_called_a_score(measure: str, title: str) -> None:
    named = RUN.heads.filter(pl.col("measure") == "previous_token").with_columns(pl.lit(measure).alias("measure"))
    assert paper_map(named, measure).axes[1].get_title() == title
    scales: Any = [trace for trace in formation_map_figure(named, measure).data if isinstance(trace, go.Heatmap)]
    assert [trace.colorbar.title.text for trace in scales if trace.showscale] == [title]


@pytest.mark.parametrize("measure", ["previous_token", "prefix_matching_sum", "induction_score"])
def test_both_libraries_show_the_same(measure: str) -> None:
    lacking = RUN.heads.filter(~((pl.col("step") == 16) & (pl.col("layer") == 1)))
    formed = formation_steps(lacking, measure)
    steps = [*checkpoint_steps(), 3000 + 1]  # one that nobody scored
    plotly = formation_map_figure(lacking, measure, formed, steps, BAND)
    paper = paper_map(lacking, measure, formed, steps, BAND)
    drawn: Any = plotly.data
    heatmaps = [trace for trace in drawn if isinstance(trace, go.Heatmap)]
    cells = mesh_values(paper)
    assert len(heatmaps) == len(cells) == 2
    for heatmap, values in zip(heatmaps, cells, strict=True):
        np.testing.assert_allclose(np.asarray(heatmap.z, dtype=float), values, atol=1e-6)
    assert np.isnan(cells[0]).sum() == 4 + 16
    axes = paper.axes[0]
    layout: Any = plotly.layout
    assert tuple(layout.xaxis.range) == pytest.approx(axes.get_xlim())
    assert tuple(layout.yaxis.range) == pytest.approx(axes.get_ylim())
    assert list(layout.yaxis.ticktext) == [label.get_text() for label in axes.get_yticklabels()]
    assert list(layout.xaxis.ticktext) == [label.get_text() for label in axes.get_xticklabels()]
    assert list(layout.xaxis.tickvals) == pytest.approx(axes.get_xticks().tolist())
    mesh: Any = axes.collections[0]
    assert (heatmaps[0].zmin, heatmaps[0].zmax) == mesh.get_clim()
    marks = next(trace for trace in drawn if trace.name == "formed")
    dots: Any = next(c for c in axes.collections if c.get_label() == "formed")
    assert np.stack([marks.x, marks.y], axis=1) == pytest.approx(np.asarray(dots.get_offsets()))
    texts = {re.sub("<.*?>", "", note.text) for note in layout.annotations}
    assert texts == words(paper)
    assert BAND is not None
    assert BAND.rule in texts
    outline = next(shape for shape in layout.shapes if shape.name == BAND.rule)
    line = next(one for one in axes.lines if one.get_label() == BAND.rule)
    ends = np.asarray(line.get_xdata(), dtype=float)
    assert (outline.x0, outline.x1) == pytest.approx((ends.min(), ends.max()))


@pytest.mark.parametrize("measure", ["previous_token", "induction_score"])
def test_both_libraries_use_the_same_colours(measure: str) -> None:
    found = formation_map(RUN.heads, measure)
    scale = scale_of(measure, found.values)
    mesh: Any = paper_map(RUN.heads, measure).axes[0].collections[0]
    for place, color in scale.colors:
        seen = (np.array(mesh.cmap(mesh.norm(scale.low + place * (scale.high - scale.low)))[:3]) * 255).round()
        parts = re.findall(r"\d+", color) if color.startswith("rgb") else [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert seen == pytest.approx(np.array(parts, dtype=float), abs=3)
    assert mesh.cmap(np.ma.masked)[:3] == pytest.approx([int(NO_SCORE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    plotly: Any = formation_map_figure(RUN.heads, measure).data[0]
    assert [tuple(part) for part in plotly.colorscale] == [tuple(part) for part in scale.colors]


def simulated(rgb: np.ndarray, kind: str) -> np.ndarray:
    """A colour as a dichromat sees it (Viénot, Brettel and Mollon 1999, in linear light)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_cones = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    lost = np.eye(3)
    if kind == "protan":
        lost[0] = [0, 2.02344, -2.52581]
    else:
        lost[1] = [0.494207, 0, 1.24827]
    return np.linalg.inv(to_cones) @ lost @ to_cones @ linear


@pytest.mark.parametrize("kind", ["protan", "deutan"])
@pytest.mark.parametrize("measure", ["previous_token", "induction_score"])
def test_colours_can_be_told_apart_by_the_colour_blind(kind: str, measure: str) -> None:
    mesh: Any = paper_map(RUN.heads, measure).axes[0].collections[0]
    colors = [simulated(np.array(mesh.cmap(place)[:3]), kind) for place in np.linspace(0, 1, 9)]
    apart = [np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]]
    assert min(apart) > 0.02


def test_a_measure_without_a_range_is_symmetric_about_0() -> None:
    heads = series_table({(0, 0): np.array([0.0, -1.5, 3.0, 2.0])}, [0, 1, 2, 4], "zero:copying_loss")
    scale = scale_of("zero:copying_loss", formation_map(heads, "zero:copying_loss").values)
    assert (scale.low, scale.high) == (-3.0, 3.0)
    assert scale_words("zero:copying_loss", scale) == "−3 to 3 nats"
    assert scale_of("zero:copying_accuracy_token", np.array([[0.1]]))[:2] == (-1, 1)
    assert scale_of("zero:copying_loss", np.array([[np.nan]]))[:2] == (-1, 1)
    entropy = scale_of("attention_entropy", np.array([[3.0, np.nan]]))  # no upper limit: as far as it goes
    assert entropy[:2] == (0, 3)
    assert scale_words("attention_entropy", entropy) == "0 to 3 nats"
    title = "Copying loss: change when the head is removed (zero), −3 to 3 nats"
    assert words(paper_map(heads, "zero:copying_loss")) == {title}
    notes: Any = formation_map_figure(heads, "zero:copying_loss").layout
    assert notes.annotations[0].text == f"<b>{title}</b>"


def test_the_band_names_its_rule() -> None:
    assert BAND is not None
    assert BAND.rule == "phase change: 10–90 % of the rise of copying loss"
    assert BAND.low < 2600 < BAND.high
    assert phase_change(copying_formation(RUN.model.filter(pl.col("step") < 300))) is None
    accuracy = copying_formation(RUN.model.filter(pl.col("measure") == "copying_accuracy_token"))
    found = phase_change(accuracy)
    assert found is not None
    assert found.rule.endswith("copying accuracy")


def test_files(tmp_path: Any) -> None:
    figure = paper_map(RUN.heads, "previous_token", formation_steps(RUN.heads, "previous_token"), band=BAND)
    files = {kind: rendered(figure, kind) for kind in FORMATS}
    assert files["pdf"].startswith(b"%PDF")
    assert b"/FontFile2" in files["pdf"]  # the TrueType font is inside
    svg = files["svg"].decode()
    assert "<text" not in svg  # letters are shapes: no font is needed
    assert not re.search(r'href="(?!#|data:)|url\((?!#)|@import|<script', svg)  # nothing is fetched
    image = Image.open(io.BytesIO(files["png"]))
    assert image.size[0] == 2100  # 7 inches of 300 dots
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100
    assert rendered(figure, "svg") == rendered(figure, "svg")
    with pytest.raises(InputError, match="no format 'gif'; use html, pdf, svg, png"):
        rendered(figure, "gif")


def test_odd_tables_still_draw() -> None:
    one = series_table({(0, 0): np.array([0.5])}, [1000], "previous_token")
    only_zero = series_table({(0, 0): np.array([0.5])}, [0], "previous_token")
    for heads in (one, only_zero):
        assert rendered(paper_map(heads, "previous_token", band=Band(10, 20, "phase change: planted")), "png")
    many = series_table(
        {(layer, head): np.full(3, 0.5) for layer in range(24) for head in range(16)}, [0, 1, 2], "previous_token"
    )
    labels = paper_map(many, "previous_token").axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [f"L{layer}" for layer in range(24)]


def test_matplotlib_is_loaded_for_paper_only() -> None:
    program = (
        "import sys, copyscope.analyses.figures.figures, copyscope.analyses.page.report; "
        "print('matplotlib' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def clipped(figure: Figure) -> list[str]:
    """Words that reach beyond the paper."""
    figure.draw_without_rendering()
    box = figure.bbox.padded(1)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text.get_text() for text in texts if not _within(text.get_window_extent(), box)]


def _within(inner: Any, outer: Any) -> bool:
    return inner.x0 >= outer.x0 and inner.x1 <= outer.x1 and inner.y0 >= outer.y0 and inner.y1 <= outer.y1


MAPS = {measure: formation_steps(RUN.heads, measure) for measure in ("previous_token", "prefix_matching_sum")}
FIGURES: dict[str, Any] = {
    "map": lambda width: paper_map(
        RUN.heads, "prefix_matching_sum", MAPS["prefix_matching_sum"], None, BAND, width=width, name="a run"
    ),
    "story": lambda width: paper_story(
        RUN.heads, RUN.model, RUN.metrics, maps=MAPS, band=BAND, title="a run: " + "words " * 20, width=width
    ),
    "phase change": lambda width: paper_phase_change(RUN.heads, RUN.model, RUN.metrics, band=BAND, width=width),
    "seeds": lambda width: paper_seeds(dict.fromkeys("abcd", (RUN.heads, RUN.model)), width=width),
    "attention": lambda width: paper_attention(
        np.tril(np.ones((30, 30))), [f"token{i}" for i in range(30)], title="a run: L0H0 at 1,000", width=width
    ),
}


@pytest.mark.parametrize("width", [3.25, 7.0])
@pytest.mark.parametrize("kind", FIGURES)
def test_nothing_is_cut_off_in_a_column_or_on_a_page(kind: str, width: float) -> None:
    figure = FIGURES[kind](width)
    assert figure.get_figwidth() == width
    assert clipped(figure) == []


def test_cells_have_no_seams_and_a_figure_has_its_runs_name() -> None:
    figure = FIGURES["map"](7.0)
    for mesh in figure.axes[0].collections:
        if mesh.__class__.__name__ == "QuadMesh":
            assert mesh.get_linewidth()[0] > 0  # in the colour of the cell
            assert (mesh.get_edgecolor() == mesh.get_facecolor()).all()
    assert figure.axes[0].get_title("left").startswith("a run: ")
    with pytest.raises(InputError, match="width=1"):
        FIGURES["map"](1.0)


def test_a_story_has_the_curves_of_the_one_in_the_browser() -> None:
    means = RUN.model.filter(pl.col("measure") == "copying_accuracy_token").tail(2)
    model = RUN.model.vstack(means.with_columns(pl.lit(AVERAGED).alias("measure")))
    on_paper = paper_story(RUN.heads, model, RUN.metrics, maps=MAPS)
    drawn = {str(line.get_label()): line for axes in on_paper.axes[:3] for line in axes.lines}
    browser: Any = story_figure(RUN.heads, model, RUN.metrics, maps=MAPS).data
    traces = {trace.name: trace for trace in browser if trace.type == "scatter" and trace.name != "formed"}
    assert drawn.keys() == traces.keys()
    assert {"per token, mean of weights", "first time", "repeated"} < drawn.keys()
    for name, line in drawn.items():
        if name != "training":  # thinned in the browser
            known = np.isfinite(np.asarray(traces[name].y, dtype=float))
            assert np.asarray(line.get_ydata()) == pytest.approx(np.asarray(traces[name].y)[known], rel=1e-5)


def test_a_story_is_cut_to_its_steps_and_its_ticks_with_it() -> None:
    figure = paper_story(RUN.heads, RUN.model, RUN.metrics, maps=MAPS, span=(100, 1000))
    assert all(axes.get_xlim() == pytest.approx((2, 3)) for axes in figure.axes if axes.get_title("left"))
    assert len(figure.axes[0].lines) == 2
    labels = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels() if label.get_text()]
    assert {"100", "1k"} <= set(labels)


def test_seeds_have_their_mean_and_one_map_each() -> None:
    half = RUN.model.with_columns(pl.col("value") / 2)
    figure = paper_seeds({"one": (RUN.heads, RUN.model), "two": (RUN.heads, half)})
    accuracy = RUN.model.filter(pl.col("measure") == "copying_accuracy_token").sort("step")["value"].to_numpy()
    mean = figure.axes[0].lines[-1]
    assert np.asarray(mean.get_ydata()) == pytest.approx(0.75 * accuracy)
    assert [axes.get_title("left") for axes in figure.axes[1:]] == ["one", "two"]
    with pytest.raises(InputError, match="two or more"):
        paper_seeds({"one": (RUN.heads, RUN.model)})


def test_attention_shows_the_pattern_its_targets_and_what_is_masked() -> None:
    pattern = np.tril(np.random.default_rng(0).random((4, 4)))
    figure: Any = paper_attention(pattern, ["a", " $b", "\n", "<i>"], [[], [], [1], []])
    shown: Any = figure.axes[0].images[0].get_array()
    assert np.asarray(shown[~shown.mask]) == pytest.approx(pattern[np.tril_indices(4)])
    assert shown.mask.sum() == 6
    assert [patch.get_xy() for patch in figure.axes[0].patches] == [(0.5, 1.5)]
    assert all(rendered(figure, kind) for kind in FORMATS)
    with pytest.raises(InputError, match="with 3 tokens"):
        paper_attention(pattern, ["a", "b", "c"])


def test_tokens_that_the_font_has_not_got_are_codes() -> None:
    from copyscope.analyses.words.text import visible

    tokens = [visible(token) for token in ("\v\x7f", "\U00020000", "é a\n", "$x")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = paper_attention(np.eye(4), tokens)
        rendered(figure, "png")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["\\x0b\\x7f", "\\u20000", "é␣a↵", r"\$x"]


def test_a_film_has_a_frame_a_figure(tmp_path: Path) -> None:
    frames = [paper_attention(np.tril(np.full((2, 2), x)), ["a", "b"], width=2.0) for x in (0.1, 0.9, 0.5)]
    path = write_film(frames, tmp_path / "film.gif", seconds=0.1, dots=50)
    with Image.open(path) as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
        assert film.info["duration"] == 100
    with pytest.raises(InputError, match="gif or"):
        write_film(frames, tmp_path / "film.avi")
    with pytest.raises(InputError, match="not 0"):
        write_film([], tmp_path / "film.gif")
    with pytest.raises(InputError, match="seconds=0"):
        write_film(frames, tmp_path / "film.gif", seconds=0.0)


@pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="no ffmpeg and ffprobe on PATH")
def test_a_film_is_an_mp4_that_browsers_play(tmp_path: Path) -> None:
    frames = [paper_attention(np.tril(np.full((2, 2), x)), ["a", "b"], width=2.02) for x in (0.1, 0.9, 0.5)]
    path = write_film(frames, tmp_path / "film.mp4", seconds=0.35, dots=50)  # 101 dots: an odd width
    asked = "stream=codec_name,pix_fmt,width,height,nb_frames,duration"
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", asked, "-of", "json", str(path)], capture_output=True, check=True
    )
    stream = json.loads(told.stdout)["streams"][0]
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    assert (stream["width"], stream["height"], stream["nb_frames"]) == (102, 102, "6")
    assert float(stream["duration"]) == pytest.approx(6 * 0.35, abs=0.01)
    raw = ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    pictures = np.frombuffer(subprocess.run(raw, capture_output=True, check=True).stdout, np.uint8).reshape(6, 102, 102)
    light = pictures.mean(axis=(1, 2))
    assert light[1] < light[2] < light[0]  # in order, the darkest the one of most attention
    assert light[3:] == pytest.approx(light[2], abs=1)
    assert list(tmp_path.iterdir()) == [path]


def test_an_ffmpeg_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bin" / "ffmpeg"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho Unknown encoder libx264 >&2\nexit 1\n")
    broken.chmod(0o755)
    frames = [paper_attention(np.eye(2), ["a", "b"], width=2.0)]
    monkeypatch.setenv("PATH", str(broken.parent), prepend=":")
    with pytest.raises(InputError, match="Unknown encoder libx264"):
        write_film(frames, tmp_path / "film.mp4", dots=50)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="not installed"):
        write_film(frames, tmp_path / "film.mp4", dots=50)
    assert not (tmp_path / "film.mp4").exists()
