"""The notebook's one-liners: the page in its frame, and figures that say what the tables say."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from page_reader import read
from tiny_series import tiny_series
from written_run import config, write_run

from copyscope.analyses.formation.heads import formation_steps
from copyscope.analyses.notebook import ablations, above_chance, attention, curves, explore, film, formation_map, story
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import score_tables
from copyscope.training.errors import InputError


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("notebook") / "planted", config(), copies_at=3000)


def test_the_page_shows_itself_in_a_frame_that_may_do_nothing_else(tmp_path: Path) -> None:
    folder = tiny_series(tmp_path / "tiny", (0, 8))
    found = explore(folder, "#view=attention&step=8")
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', found._repr_html_())
    assert frame
    inside = html.unescape(frame[1])
    assert inside == found.save(tmp_path / "page.html").read_text(encoding="utf-8")
    index = json.loads(read(inside).data["index"])
    assert index["start"] == "#view=attention&step=8"
    assert index["runs"][0]["prompts"][0]["steps"] == [0, 8]


def test_several_runs_stand_side_by_side(planted: Path, tmp_path: Path) -> None:
    other = tiny_series(tmp_path / "tiny", (0, 8))
    index = json.loads(read(explore([planted, other]).html).data["index"])
    assert [run["name"] for run in index["runs"]] == ["planted", "tiny"]


def test_figures_come_in_one_line(planted: Path) -> None:
    heads = score_tables(open_run(planted)).heads
    formed = formation_steps(heads, "prefix_matching_sum").filter("formed").height
    figure: Any = formation_map(str(planted), measure="prefix_matching_sum")
    marks = [trace for trace in figure.data if trace.name == "formed"]
    assert len(marks[0].x) == formed > 0
    lines: Any = curves(planted)
    names = [trace.name for trace in lines.data]
    assert "per token" in names
    both: Any = story(planted)
    assert len(both.data) > len(names)


def test_the_effect_of_an_ablation_is_a_map_too(tmp_path: Path) -> None:
    folder = tiny_series(tmp_path / "tiny", (0, 8))
    with pytest.raises(InputError, match="copyscope ablate"):
        formation_map(folder, "zero:copying_loss")
    rows = [
        ("tiny", step, None, layer, head, "zero", "copying_loss", step + layer + head / 10)
        for step in (0, 8)
        for layer in range(2)
        for head in range(2)
    ]
    names = ("run", "step", "tokens", "layer", "head", "method", "measure", "value")
    table = pl.DataFrame(rows, schema=names, orient="row").cast({"tokens": pl.Int64})
    (folder / "results" / "ablations").mkdir()
    for (step,), part in table.group_by("step"):
        part.write_parquet(folder / "results" / "ablations" / f"step{step:08}.parquet")
    figure: Any = formation_map(folder, "zero:copying_loss")
    cells = np.concatenate([np.asarray(trace.z) for trace in figure.data if trace.type == "heatmap"], axis=1)
    # step 0 is drawn last, in a slot of its own
    assert cells == pytest.approx(np.array([[8, 0], [8.1, 0.1], [9, 1], [9.1, 1.1]]))


def test_figures_of_short_runs_have_no_marks(tmp_path: Path) -> None:
    figure: Any = formation_map(tiny_series(tmp_path / "tiny", (0, 8)))
    assert not [trace for trace in figure.data if trace.name == "formed"]


def test_what_is_not_there_is_named(planted: Path) -> None:
    with pytest.raises(InputError, match="copyscope ablate"):
        ablations(planted)
    with pytest.raises(InputError, match="no measure 'prefix_matching_sum_null'"):
        above_chance(planted)
    with pytest.raises(InputError, match="did you mean 'previous_token'"):
        formation_map(planted, "previous_tokens")


def test_the_story_is_written_for_a_paper_without_kaleido(planted: Path, tmp_path: Path) -> None:
    figure = story(planted)
    assert figure.layout.title.text.startswith("planted: previous-token L0H1 at")  # type: ignore[union-attr]
    figure.write_image(tmp_path / "story.pdf")
    assert (tmp_path / "story.pdf").read_bytes().startswith(b"%PDF")
    figure.write_image(str(tmp_path / "story"), format="svg")
    assert b"<svg" in (tmp_path / "story").read_bytes()
    with pytest.raises(InputError, match="write_html"):
        figure.write_image("story.jpeg")
    low, high = story(planted).layout.xaxis.range, story(planted, whole=True).layout.xaxis.range  # type: ignore[union-attr]
    assert low[0] > high[0]


def test_attention_of_a_head_is_a_figure_and_a_film(tmp_path: Path) -> None:
    import torch

    from copyscope.analyses.page.prompts import default_prompts
    from copyscope.analyses.page.texts import texts_of
    from copyscope.interp.models.hooked import load_hooked

    folder = tiny_series(tmp_path / "tiny", (0, 8))
    run = open_run(folder)
    ids = default_prompts(run, texts_of(run))[0].ids
    _, cache = load_hooked(folder / "step8").run_with_cache(torch.tensor([list(ids)]))
    drawn = attention(folder, "L1H0").axes[0].images[0].get_array()
    expected = cache["pattern", 1][0, 0].numpy()[np.tril_indices(len(ids))]
    assert np.asarray(drawn[~drawn.mask]) == pytest.approx(expected, abs=1 / 255)
    assert attention(folder, "L1H0", step=0, text="two two").axes[0].get_yticklabels()[1].get_text() != ""
    assert film(folder, "L0H1", tmp_path / "film.gif").stat().st_size > 1000
    with pytest.raises(InputError, match="gif or"):
        film(folder, "L9H9", tmp_path / "film.avi")  # said before a model is loaded
    for head in ("L2H0", "L0H2", "L0"):
        with pytest.raises(InputError, match="L0H0 to L1H1"):
            attention(folder, head)
