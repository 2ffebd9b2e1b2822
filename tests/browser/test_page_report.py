"""The report of scored checkpoints on disk, as `copyscope report` writes it: the page's numbers are the tables' own."""

from pathlib import Path

import polars as pl
import pytest
from browser_tab import Tab
from tiny_series import STEPS, tiny_series

from copyscope.analyses.notebook import explore
from copyscope.analyses.page.report import report
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import read_tables


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_series(tmp_path_factory.mktemp("report") / "tiny")


def test_every_score_of_the_tables_is_on_the_page(tab: Tab, series: Path) -> None:
    tab.open(report(series).as_uri())
    heads = read_tables(open_run(series), "heads").filter(pl.col("measure") == "prefix_matching_sum")
    for step in STEPS:
        for row in heads.filter(pl.col("step") == step).iter_rows(named=True):
            found = tab.go(step=step, head=f"{row['layer']}.{row['head']}", measure="prefix_matching_sum")
            assert found["value"] == pytest.approx(row["value"], abs=1e-6)
    assert tab.go(view="attention", step=64)["attentionStep"] == 64
    for view in ("compare", "circuit", "heads", "report"):
        tab.go(view=view)
    assert tab.errors() == 0
    assert tab.console() == []


def test_a_notebook_shows_the_same_page_at_the_view_asked_for(tab: Tab, series: Path, tmp_path: Path) -> None:
    shown = explore(series, "#view=attention&step=8&head=1.0")
    cell = tmp_path / "cell.html"
    cell.write_text(f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{shown._repr_html_()}')
    tab.driver.get("about:blank")
    tab.logs()
    tab.driver.get(cell.as_uri())
    tab.driver.switch_to.frame(0)
    numbers = tab.numbers()
    assert (numbers["view"], numbers["step"], numbers["head"]) == ("attention", 8, "1.0")
    assert numbers["row"] is not None
    assert tab.errors() == 0
    tab.driver.switch_to.default_content()
    assert tab.console() == []
    assert [url for url in tab.requests() if url != cell.as_uri()] == []


@pytest.mark.parametrize("view", ["map", "attention", "heads", "circuit"])
def test_the_python_offered_runs_and_makes_the_figure(
    tab: Tab, series: Path, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where the run lies: a saved page does not say where that is."""
    tab.open(report(series).as_uri() + f"#view={view}&measure=prefix_matching_sum")
    tab.run("document.getElementById('copy-python').click()")
    code = tab.numbers()["lastCopied"]
    assert f'open_run("{series.name}")' in code
    monkeypatch.chdir(series.parent)
    names: dict[str, object] = {}
    *lines, last = code.strip().splitlines()
    exec("\n".join([*lines, f"figure = {last}"]), names)
    assert names["figure"] is not None
