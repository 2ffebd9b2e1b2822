"""The report: complete, self-contained, and deaf to what hostile names would have it do."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from synthetic_run import SyntheticRun, synthetic_run

from analyses.report import script_json, text, write_report
from analyses.visible import visible
from training.errors import InputError

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\x00\u202e\ud800"
RUN = synthetic_run()


class Reader(HTMLParser):
    """Tags, their attributes and the text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.raw = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        if not self.raw:
            self.text.append(data)


def page(tmp_path: Path, run: SyntheticRun = RUN, **more: Any) -> str:
    options = {"title": "a run", "summary_lines": ["Copying appeared."], "ablations": run.ablations} | more
    out = write_report(tmp_path / "report.html", heads=run.heads, model=run.model, metrics=run.metrics, **options)
    return out.read_text(encoding="utf-8")


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_it_holds_everything(tmp_path: Path) -> None:
    html = page(tmp_path, config_toml="[model]\nn_layers = 4\n", provenance={"corpus": "abc123"})
    words = " ".join(read(html).text)
    for part in ("a run", "Copying appeared.", "n_layers = 4", "abc123", "L2 H1", "previous-token head", "1500 – 1750"):
        assert part in words, part
    assert html.count(get_plotlyjs()) == 1
    assert len(html) < 6_000_000
    assert "Content-Security-Policy" in html
    assert "default-src 'none'" in html


def test_the_figures_data_survive_the_escaping(tmp_path: Path) -> None:
    html = page(tmp_path)
    found = re.findall(r'<script type="application/json" id="plot-(\w+)-data">(.*?)</script>', html, re.DOTALL)
    assert [name for name, _ in found] == ["story", "null", "ablation"]
    for _, data in found:
        assert "<" not in data
        figure = json.loads(data)
        assert figure["config"]["showSendToCloud"] is False
        assert figure["data"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    heads = RUN.heads.with_columns(run=pl.lit(HOSTILE.replace("\ud800", "")))
    ablations = RUN.ablations.with_columns(method=pl.lit("</script><img src=x onerror=alert(2)>"))
    plain, hostile = (
        page(tmp_path),
        page(tmp_path, RUN._replace(heads=heads), title=HOSTILE, summary_lines=[HOSTILE], ablations=ablations,
             config_toml=HOSTILE, provenance={HOSTILE: HOSTILE}),
    )  # fmt: skip
    tags = [tag for tag, _ in read(hostile).tags]
    assert "img" not in tags
    assert tags.count("script") == [tag for tag, _ in read(plain).tags].count("script")
    assert "<img" not in hostile.replace(get_plotlyjs(), "")
    assert "</script><img src=x onerror=alert(1)>" in "".join(read(hostile).text)


def test_nothing_is_fetched(tmp_path: Path) -> None:
    for tag, attributes in read(page(tmp_path)).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert name not in attributes, (tag, attributes)
        assert not (tag == "meta" and (attributes.get("http-equiv") or "").lower() == "refresh")
    css = re.findall(r"<style>(.*?)</style>", page(tmp_path), re.DOTALL)
    assert not any("url(" in part or "@import" in part for part in css)


@given(st.text(max_size=40))
def test_any_text_is_harmless_in_html_and_in_scripts(value: str) -> None:
    assert not set(text(value)) & set("<>\"'")
    text(value).encode("utf-8")
    encoded = script_json(value_json := json.dumps([value]))
    assert not set(encoded) & set("<>&\u2028\u2029")
    assert json.loads(encoded) == json.loads(value_json)


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\x00b\x7f\u202ec\ud800\td\n") == "a\u2400b\u2421\\u202ec\\ud800\td\n"


def test_short_runs_get_a_report_that_says_so(tmp_path: Path) -> None:
    first = pl.col("step") < 2
    run = RUN._replace(heads=RUN.heads.filter(first), model=RUN.model.filter(first), metrics=RUN.metrics.head(2))
    words = " ".join(read(page(tmp_path, run, ablations=None)).text)
    assert "2 checkpoints; a formation step needs at least 4" in words
    assert "No head was ablated" in words
    assert "fewer than three" in words


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = page(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no space left while writing"):
        page(tmp_path, title="new")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == old
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="choose another place"):
        write_report(tmp_path / "file" / "report.html", title="", summary_lines=[], heads=RUN.heads, model=RUN.model,
                     metrics=RUN.metrics)  # fmt: skip
