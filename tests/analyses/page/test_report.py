"""The report: one whole file, of one run or several."""

import json
import os
from pathlib import Path

import pytest
from page_reader import read
from tiny_series import tiny_series
from written_run import config, write_run

from copyscope.analyses.page.prompts import typed_prompt
from copyscope.analyses.page.report import report, report_page
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.opening import open_run
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


def test_it_does_not_say_where_on_the_disk_things_lay(tmp_path: Path) -> None:
    text = tmp_path / "private" / "letters.txt"
    folder = write_run(tmp_path / "planted", config(**{"data.corpus": str(text)}), copies_at=3000)
    (folder / "data.json").write_text(json.dumps({"corpus": str(text), "train": {"tokens": 10**6}}))
    for source in (folder, Path(os.path.relpath(folder))):
        html = report(source, tmp_path / "out.html").read_text("utf-8")
        assert str(tmp_path) not in html
        index = json.loads(read(html).data["index"])
        assert 'corpus = "letters.txt"' in index["runs"][0]["config"]
        assert index["runs"][0]["provenance"]["corpus"] == "letters.txt"
        assert any(note.startswith("copying accuracy of guessing: planted has no") for note in index["left_out"])


def test_typed_prompts_are_embedded_also_those_of_a_link(tmp_path: Path) -> None:
    """What the explorer calls a typed prompt has the same name in the saved page, so that its link opens there."""
    run = open_run(tiny_series(tmp_path / "tiny", (0, 8)))
    asked = typed_prompt(texts_of(run), "two cats & two")
    start = f"#view=attention&prompt={asked.id}&text=two%20cats%20%26%20two"
    found = read(report_page([run], start=start, prompts=["one"])).data
    prompts = json.loads(found["index"])["runs"][0]["prompts"]
    assert [p["text"] for p in prompts] == ["", "", "one", "two cats & two"]
    assert prompts[-1]["id"] == asked.id
    assert f"block-attention/0/{asked.id}/8" in found
    with pytest.raises(InputError, match="fit"):
        report_page([run], prompts=["word " * 200])


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
