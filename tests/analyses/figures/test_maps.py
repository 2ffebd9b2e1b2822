"""`copyscope map` on a planted run: which files it writes, what they hold, and what it refuses."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_run import ablation_table
from written_run import config, write_run

from copyscope.analyses.figures.maps import MAPPED, map_formation
from copyscope.training.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "planted", config(), 2000)


def test_formation_and_a_map_a_measure(run: Path) -> None:
    found = map_formation(run)
    assert [path.name for path in found.figures] == [f"formation_{m}.html" for m in MAPPED[:2]]  # as far as scored
    stored = json.loads((run / "results" / "formation.json").read_text())
    assert stored == json.loads(json.dumps(found.formation))
    formed = [row for row in stored["heads"]["prefix_matching_sum"] if row["formed"]]
    assert [(row["layer"], row["head"]) for row in formed] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    for row in formed:
        assert row["low"] <= 2000 * (0.5 + 0.1 * row["layer"]) <= row["high"]
    html = found.figures[0].read_text()
    assert "phase change: 10" in html


def test_files_for_paper(run: Path) -> None:
    found = map_formation(run, ["previous_token"], ["pdf", "svg", "png"])
    assert [path.suffix for path in found.figures] == [".pdf", ".svg", ".png"]
    assert all(path.stat().st_size > 5000 for path in found.figures)


def test_the_causal_map_once_several_checkpoints_were_ablated(run: Path) -> None:
    folder = run / "results" / "ablations"
    folder.mkdir()
    for step in (1000, 4000):
        ablation_table(5, 2, step, np.random.default_rng(step)).write_parquet(folder / f"step{step:08}.parquet")
        names = [path.name for path in map_formation(run).figures]
        assert ("formation_zero_copying_loss.html" in names) == (step == 4000)
    path = map_formation(run, ["zero:copying_accuracy_token"]).figures[0]
    assert "change when the head is removed (zero)" in path.read_text()


def test_a_checkpoint_that_was_not_scored_is_a_gap(run: Path) -> None:
    missing = run / "results" / "heads" / "step00001500.parquet"
    kept = missing.read_bytes()
    missing.unlink()
    try:
        html = map_formation(run, ["previous_token"]).figures[0].read_text()
    finally:
        missing.write_bytes(kept)
    assert re.search(r"step 1,500", html)


def test_bad_input(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(run.rglob("figures/*"))
    with pytest.raises(InputError, match="--figures gif: no such format; use html, pdf, svg, png"):
        map_formation(run, formats=["html", "gif"])
    with pytest.raises(InputError, match="did you mean 'previous_token'"):
        map_formation(run, ["previous_toke"])
    monkeypatch.setitem(sys.modules, "copyscope.analyses.figures.paper", None)
    with pytest.raises(InputError, match=r"install copyscope\[figures\]"):
        map_formation(run, formats=["html", "pdf"])
    assert sorted(run.rglob("figures/*")) == before  # refused before anything was written


def test_two_checkpoints_are_too_few(run: Path, tmp_path: Path) -> None:
    short = shutil.copytree(run, tmp_path / "short")
    for path in (short / "results").rglob("step*.parquet"):
        if pl.read_parquet(path)["step"][0] > 1:
            path.unlink()
    with pytest.raises(InputError, match="2 checkpoints; a formation step needs at least 4"):
        map_formation(short)


def test_the_story_is_one_more_file_a_format(run: Path) -> None:
    found = map_formation(run, ["previous_token"], ["html", "pdf"], story=True)
    names = [path.name for path in found.figures]
    assert names == ["formation_previous_token.html", "formation_previous_token.pdf", "story.html", "story.pdf"]
    html = (run / "figures" / "story.html").read_text()
    assert "planted: previous-token L0H1 at" in html
    assert (run / "figures" / "story.pdf").read_bytes().startswith(b"%PDF")
