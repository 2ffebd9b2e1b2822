"""The tutorial on induction runs on the committed tables, and prints what the page says it prints."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "induction.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)


def test_the_page_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__docs__"}
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    assert len(blocks) == 6
    for code, said in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(PAGE), "exec"), names)
        lines = [line.rstrip() for line in printed.getvalue().splitlines()]
        assert lines == said.splitlines()
    drawn, committed = (place / "induction.png" for place in (tmp_path, ROOT / "docs" / "results" / "quickstart"))
    assert drawn.read_bytes()[:8] == committed.read_bytes()[:8]
    assert abs(drawn.stat().st_size / committed.stat().st_size - 1) < 0.2
