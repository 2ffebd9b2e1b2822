"""What one takes along from the page: tables, figures, attention, and Python that can be run."""

import csv
import io
import json
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from browser_tab import Tab
from made_payload import Made, checkpoints

STEPS = checkpoints(24)
SVG = "{http://www.w3.org/2000/svg}"


def score(small: Made, measure: str, head: int, step: int) -> float:
    return float(small.scores[f"scores/0/{measure}"][STEPS.index(step), head])


def test_the_map_is_saved_whole_as_csv_json_svg_and_png(tab: Tab, address: str, small: Made) -> None:
    tab.open(address)

    def save(kind: str) -> str:
        tab.run("document.querySelector(`#map-one [data-save='${arguments[0]}']`).click()", kind)
        return tab.numbers()["lastSaved"]["content"]

    rows = list(csv.DictReader(io.StringIO(save("csv"))))
    assert len(rows) == 24 * 12
    for row in rows:
        expected = score(small, "prefix_matching_sum", int(row["layer"]) * 4 + int(row["head"]), int(row["step"]))
        # As far as two digits of the standard error.
        assert row["value"] == "" if np.isnan(expected) else float(row["value"]) == pytest.approx(expected, abs=6e-4)
        assert len(row["value"]) <= 5
    assert {(row["run"], row["standard_error"]) for row in rows} == {("run 0", "0.012")}
    assert json.loads(save("json"))[0]["measure"] == "prefix_matching_sum"
    svg = ElementTree.fromstring(save("svg"))
    words = [text.text for text in svg.iter(f"{SVG}text")]
    for part in ("run 0: Prefix matching", "formed at", "448", "L2H3", "score", "step (log scale)"):
        assert part in words, part
    cells = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("fill", "").startswith("rgb")]
    assert len([rect for rect in svg.iter(f"{SVG}rect") if rect.get("class") == "layer"]) == 2
    assert len([rect for rect in svg.iter(f"{SVG}rect") if rect.get("class") == "band"]) == 2
    # Neighbours overlap, so that no viewer shows a seam between them.
    rows = {}
    for cell in cells[: 12 * 8]:
        rows.setdefault(cell.get("y"), []).append((float(cell.get("x", 0)), float(cell.get("width", 0))))
    first = next(iter(rows.values()))
    assert all(x + width > after for (x, width), (after, _) in pairwise(first))
    save("png")
    tab.driver.execute_async_script("setTimeout(arguments[0], 300)")
    assert tab.run("return Copyscope.lastSaved.type") == "image/png"


def test_the_attention_is_saved_pair_by_pair(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3&prompt=p1")
    tab.run("document.querySelector('#matrix + .saves button').click()")
    rows = list(csv.DictReader(io.StringIO(tab.numbers()["lastSaved"]["content"], newline="")))
    pattern = small.attention["attention/0/p1/1088"][11]
    assert len(rows) == 24 * 25 / 2
    for row in rows:
        expected = pattern[int(row["query"]), int(row["key"])] / 255
        assert float(row["attention"]) == pytest.approx(expected, abs=1e-4)
    assert rows[0]["query_token"] == "</script>"
    assert {(row["run"], row["step"], row["layer"], row["head"]) for row in rows} == {("run 0", "1088", "2", "3")}


def test_the_attention_is_a_picture_with_its_tokens_and_targets(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3")
    buttons = {b.text: b for b in tab.driver.find_elements("css selector", "#matrix + .saves button")}
    buttons["SVG"].click()
    saved = tab.numbers()["lastSaved"]
    assert saved["name"].endswith("_step1088.svg")
    svg = ElementTree.fromstring(saved["content"])
    words = [text.text for text in svg.iter(f"{SVG}text")]
    assert words.count("␣w3") == 4  # twice in the prompt, as query and as key
    assert {"run 0: L2H3 at step 1,088", "query", "key", "attention"} <= set(words)
    assert len([rect for rect in svg.iter(f"{SVG}rect") if rect.get("class") == "target"]) == 12
    dark = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("fill", "").startswith("rgb(8,")]
    assert len(dark) >= 10
    buttons["PNG"].click()
    tab.wait()
    assert tab.run("return Copyscope.lastSaved.content.size") > 1000


def test_curves_hold_the_index_and_are_saved_as_pictures(tab: Tab, address: str, small: Made) -> None:
    tab.open(address)
    drawn = [line for panel in tab.run("return Copyscope.curvesShown()")["panels"] for line in panel["lines"]]
    curves = small.index["runs"][0]["curves"]
    accuracy = next(line for line in drawn if line["name"] == "per token")
    assert accuracy["steps"] == STEPS
    assert accuracy["values"] == pytest.approx(curves["copying_accuracy_token"]["values"])
    buttons = "#curves-saves button"
    tab.run("document.querySelectorAll(arguments[0])[0].click()", buttons)
    assert tab.numbers()["lastSaved"]["content"].startswith("<svg")
    tab.run("document.querySelectorAll(arguments[0])[1].click()", buttons)
    tab.wait()
    assert tab.run("return Copyscope.lastSaved.content.size") > 1000
    assert tab.errors() == 0
    assert tab.console() == []


@pytest.mark.parametrize(
    ("view", "table", "count", "expected"),
    [
        (
            "heads",
            "#heads-table",
            12,
            {
                "layer": "2",
                "head": "3",
                "measure": "prefix_matching_sum",
                "standard_error": "0.012",
                "above_chance": "1",
            }
            | {"formation_step": "448", "formation_low": "384", "formation_high": "512", "final_step": "1152"},
        ),
        ("heads", "#layers-table", 3, {"layer": "2", "highest_head": "3", "first_formation_step": "448"}),
        ("circuit", "#order-table", 4, {"measure": "prefix_matching_sum", "layer": "2", "head": "3", "step": "448"}),
        ("circuit", "#circuit-table", 1, {"earlier_head": "1", "later_layer": "2", "path_score": "0.2"}),
        ("compare", "#compare-table", 12, {"layer": "2", "head": "3", "step_a": "0", "standard_error_b": "0.012"}),
        ("attention", "#sources", 5, {"query": "23", "key": "12", "expected_target": "1", "head": "3"}),
        ("attention", "#predicted-layers", 3, {"after_layer": "embedding", "position": "23", "step": "1088"}),
    ],
)
def test_tables_are_saved_tidy(
    tab: Tab, address: str, view: str, table: str, count: int, expected: dict[str, str]
) -> None:
    tab.open(f"{address}#view={view}&step=1088&head=2.3")
    tab.run("document.querySelector(arguments[0] + ' .saves button').click()", table)
    text = tab.numbers()["lastSaved"]["content"]
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == count
    assert all(name.replace("_", "").isalnum() for name in rows[0])
    assert rows[0].get("run", rows[0].get("run_a")) == "run 0"
    assert expected in [{name: row[name] for name in expected} for row in rows]


def test_a_table_saved_for_a_spreadsheet_holds_no_formula(tab: Tab, address: str) -> None:
    tab.open(f"{address}#view=report")
    tab.run(
        """const buttons = [...document.querySelectorAll('#view-report .saves button')];
        buttons.filter((button) => button.textContent === 'CSV').at(-1).click()"""
    )
    rows = list(csv.reader(io.StringIO(tab.numbers()["lastSaved"]["content"])))
    assert rows[0] == ["stage", "step"]
    assert rows[3] == ["'=cmd()", ""]


@pytest.mark.parametrize("view", ["map", "attention", "compare", "circuit", "heads", "report"])
def test_the_python_offered_is_python(tab: Tab, address: str, view: str) -> None:
    tab.open(f"{address}#view={view}")
    tab.run("document.getElementById('copy-python').click()")
    code = tab.numbers()["lastCopied"]
    compile(code, "copied", "exec")
    assert "run 0" in code
