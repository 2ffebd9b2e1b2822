"""The page on wide and narrow screens, light and dark, by keyboard and for screen readers; large series stay usable."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from browser_tab import Tab
from made_payload import Made, made

VIEWS = ["map", "attention", "compare", "circuit", "heads", "report"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_scrolls_sideways_on_a_phone(tab: Tab, address: str, dark: bool) -> None:
    tab.size(390, 844, dark)
    tab.open(address)
    for view in VIEWS:
        tab.go(view=view)
        # Not against innerWidth: a phone's grows with what is too wide.
        assert tab.run("return document.documentElement.scrollWidth") <= 390, view
    assert tab.errors() == 0


def test_the_reports_summary_is_read_without_a_scroll_of_its_own(tab: Tab, address: str) -> None:
    tab.size(390, 844)
    tab.open(f"{address}#view=report")
    inside = "return [...document.querySelectorAll('#view-report ul')].filter((e) => getComputedStyle(e).overflowY"
    assert tab.run(f"{inside} !== 'visible').length") == 0
    assert tab.run(f"{inside} === 'visible').length") > 0


def test_labels_of_the_attention_matrix_keep_apart_and_are_not_cut_off(
    tab: Tab, written: Callable[[Made], str]
) -> None:
    tab.size(390, 844)
    tab.open(written(made(n_steps=6, half=25)) + "#view=attention")
    # Where text is drawn, and how wide, in pixels of the canvas before it is turned.
    drawn = tab.driver.execute_async_script(
        """const done = arguments[0], draw = CanvasRenderingContext2D.prototype.fillText, found = [];
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
          if (this.canvas.matches('#matrix .over')) found.push([this.textAlign, y, this.measureText(text).width, parseFloat(this.font)]);
          return draw.apply(this, arguments);
        };
        copyscope.go({ query: 0 });
        copyscope.idle().then(() => { CanvasRenderingContext2D.prototype.fillText = draw; done(found); });"""  # noqa: E501
    )
    rows = sorted(y for align, y, *_ in drawn if align == "right")
    assert len(rows) > 5
    assert all(below - above >= 8 for above, below in pairwise(rows))
    assert max(width for _, _, width, _ in drawn) <= 69


def test_the_heads_of_a_layer_stand_beside_its_attention(tab: Tab, small: Made, address: str) -> None:
    run = small.index["runs"][0]
    tab.open(f"{address}#view=attention&head=1.0")
    assert tab.text("#layer-title") == "Heads of layer 1"
    names = tab.run("return [...document.querySelectorAll('#layer button')].map((b) => b.textContent)")
    assert names == [f"L1H{head}" for head in range(run["n_heads"])]
    tab.run("document.querySelector('#layer button:last-child').click()")
    assert tab.numbers()["head"] == f"1.{run['n_heads'] - 1}"
    current = "return [...document.querySelectorAll('#layer button')].map((b) => b.getAttribute('aria-current'))"
    assert tab.run(current) == ["false"] * (run["n_heads"] - 1) + ["true"]


def test_every_control_has_a_name_and_every_id_is_there_once(tab: Tab, address: str) -> None:
    tab.open(address)
    for view in VIEWS:
        tab.go(view=view)
        nameless = tab.run(
            """const named = (e) => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title ||
                 (e.labels && e.labels.length && e.labels[0].textContent.trim()) || e.textContent.trim();
            return [...document.querySelectorAll('button, select, input, textarea, [tabindex], [role=img], canvas')]
              .filter((e) => e.id !== 'main' && !e.closest('[aria-hidden=true]'))
              .filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 120))"""
        )
        assert nameless == []
        twice = tab.run(
            """const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
            return ids.filter((id, i) => ids.indexOf(id) !== i)"""
        )
        assert twice == []
    headers = tab.run("return [...document.querySelectorAll('th')].filter((th) => !th.scope).length")
    assert headers == 0


def test_tab_reaches_every_choice_of_a_view(tab: Tab, address: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    tab.open(f"{address}#view=attention")
    tab.run("document.activeElement.blur()")
    reached: list[str] = []
    for _ in range(90):
        ActionChains(tab.driver).send_keys(Keys.TAB).perform()
        reached.append(
            tab.run(
                "const e = document.activeElement; return e.id || e.className || e.closest('[id]')?.id || e.tagName"
            )
        )
    for wanted in ("step", "measure", "head", "pin", "tab-attention", "prompt", "over", "vis-head", "copy-python"):
        assert wanted in reached, wanted
    assert any("token" in name for name in reached)
    assert any("cell" in name for name in reached)
    assert reached.count("cell") <= 2  # one stop for the whole grid


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(tab: Tab, address: str, dark: bool) -> None:
    """Contrast of the page's colours, by the formula of WCAG 2: at least 4.5."""
    tab.size(1280, dark=dark)
    tab.open(address)
    colors = {
        name: tab.run("return Copyscope.color(arguments[0])", name)
        for name in ("ink", "soft", "paper", "shade", "accent", "found", "good", "bad")
    }

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for front in ("ink", "soft", "accent", "found", "good", "bad"):
        for back in ("paper", "shade"):
            high, low = sorted([luminance(colors[front]), luminance(colors[back])], reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_decided_claims_come_first_and_undecided_ones_are_folded(tab: Tab, address: str) -> None:
    tab.open(f"{address}#view=report")
    shown = """return [...document.querySelectorAll('#view-report .claim')]
        .filter((card) => card.checkVisibility()).map((card) => card.className)"""
    assert tab.run(shown) == ["claim supported", "claim contradicted"]
    tab.run("document.querySelectorAll('#view-report details').forEach((part) => (part.open = true))")
    assert tab.run(shown) == ["claim supported", "claim contradicted", "claim undecided"]


def test_messages_stay_in_sight_and_a_view_begins_at_its_top(tab: Tab, address: str) -> None:
    tab.size(1280)
    tab.open(f"{address}#view=attention")
    tab.run("window.scrollTo(0, document.body.scrollHeight); Copyscope.notice('the server has gone', 'server')")
    box = """const box = document.querySelector(arguments[0]).getBoundingClientRect();
        return [box.top, box.bottom, window.innerHeight]"""
    top, bottom, height = tab.run(box, "#notices .server")
    assert 0 <= top < bottom <= height
    assert tab.run(box, "#tabs")[1] < 0  # scrolled past the tabs
    tab.go(view="heads")
    top, bottom, height = tab.run(box, "#heads-title")
    assert 0 <= top < bottom <= height


def test_a_series_of_150_checkpoints_and_144_heads(
    tab: Tab, written: Callable[[Made], str], record_property: Callable[[str, object], None]
) -> None:
    large = made(n_layers=12, n_heads=12, n_steps=150, half=16, hostile=False)
    tab.open(written(large))
    assert len(tab.numbers()["rows"]) == 144
    steps = large.index["runs"][0]["steps"]
    for view, measured in (("map", "map"), ("attention", "grid")):
        tab.go(view=view)
        times = [tab.go(step=step)["ms"] for step in steps[-60::4]]
        record_property(f"{view}: ms of a redraw", sorted(time["redraw"] for time in times)[len(times) // 2])
        record_property(f"{view}: ms of the {measured}", sorted(time[measured] for time in times)[len(times) // 2])
    assert tab.run("return document.querySelectorAll('#grid .cell canvas').length") == 144
    value = tab.go(view="map", step=steps[100], head="11.11")["value"]
    assert value == pytest.approx(float(large.scores["scores/0/prefix_matching_sum"][100, -1]), abs=1e-6)
    assert tab.errors() == 0


def test_the_smallest_runs_have_a_page(tab: Tab, written: Callable[[Made], str]) -> None:
    """Two checkpoints, one head, nothing formed, no prompts, no curves, no ablations, no pairs."""
    tiny = made(n_layers=1, n_heads=2, n_steps=4, hostile=False)
    run = tiny.index["runs"][0]
    run |= {
        "prompts": [],
        "curves": {},
        "ablations": {},
        "pairs": [],
        "formation": {},
        "above_null": {},
        "settled": None,
        "copying": None,
        "tokens": [None] * 4,
        "tables": {},
        "config": "",
        "provenance": {},
    }
    tiny.index["claims"], tiny.index["summary"], tiny.index["left_out"] = [], [], []
    tab.open(written(tiny))
    for view in VIEWS:
        tab.go(view=view)
    assert tab.text("#attention-step") != ""  # why there is none
    assert tab.text("#band-words") != ""
    assert tab.errors() == 0
    assert tab.console() == []


def test_a_run_without_head_scores_has_a_page(tab: Tab, written: Callable[[Made], str]) -> None:
    bare = made(n_layers=1, n_heads=2, n_steps=6, hostile=False)
    bare.index["runs"][0] |= {"measures": [], "ablations": {}, "formation": {}, "above_null": {}}
    tab.open(written(bare))
    for view in VIEWS:
        tab.go(view=view)
    assert tab.text("#map-one .readout") != ""
    assert tab.errors() == 0


def test_without_a_run_the_page_says_so(tab: Tab, written: Callable[[Made], str]) -> None:
    empty = made(n_layers=1, n_heads=2, n_steps=4, hostile=False)
    empty.index["runs"] = []
    tab.open(written(empty))
    assert tab.text("#notices") != ""
