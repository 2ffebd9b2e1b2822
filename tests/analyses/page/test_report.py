"""The report: one whole file, of one run or several."""

import os
from pathlib import Path

import pytest
from written_run import config, write_run

from copyscope.analyses.page.report import report
from copyscope.training.errors import InputError


def test_it_is_one_file_in_the_runs_folder_that_names_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "planted", config(), copies_at=3000)
    out = report(folder)
    assert out == folder / "report.html"
    html = out.read_text(encoding="utf-8")
    assert "<title>copyscope: planted</title>" in html
    assert len(html) < 4_000_000


def test_several_runs_go_into_one_report(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"r{i}", config(**{"seeds.init": i}), 3000, seed=i) for i in (0, 1)]
    out = report(folders, tmp_path / "both.html")
    assert "<title>copyscope: r0, r1</title>" in out.read_text(encoding="utf-8")


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "planted", config(), copies_at=3000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left while writing"):
        report(folder, tmp_path / "out" / "report.html")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["old"]


def test_what_cannot_be_reported_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run given"):
        report([])
    folder = write_run(tmp_path / "planted", config(), copies_at=3000)
    for size in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InputError, match="--max-megabytes"):
            report(folder, max_megabytes=size)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="choose another place"):
        report(folder, tmp_path / "file" / "report.html")
    with pytest.raises(InputError, match="create it"):
        report(folder, tmp_path / "no" / "such" / "report.html")
    assert not (tmp_path / "no").exists()
    for path in (folder / "results" / "heads").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="copyscope score"):
        report(folder)
