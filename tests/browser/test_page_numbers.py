"""What the page says it shows, against the tables it was made from: pointer, keys, menus, and tables."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from browser_tab import Tab
from made_payload import Made, checkpoints, made

pytest.importorskip("selenium", reason="selenium is not installed (copyscope[dev])")
from selenium.webdriver.common.keys import Keys

MAP = "#map-one .over"
STEPS = checkpoints(24)


def score(small: Made, measure: str, head: int, step: int) -> float:
    return float(small.scores[f"scores/0/{measure}"][STEPS.index(step), head])


def at(tab: Tab, row: int, step: int) -> tuple[float, float]:
    """Pixels of a map cell's middle, from its upper left corner."""
    return tuple(
        tab.run(
            """const [row, step] = arguments;
            const { axis, frame, top, height, steps } = copyscope.maps().one;
            const [a, b] = axis.cells(steps).find((cell) => steps[cell[2]] === step);
            return [axis.x((a + b) / 2, frame.left, frame.plot), top + (row + 0.5) * height]""",
            row,
            step,
        )
    )


@pytest.mark.parametrize(("row", "step"), [(11, 448), (5, 0), (1, 32), (8, 1152)])
def test_a_click_on_a_cell_shows_that_head_at_that_step(
    tab: Tab, address: str, small: Made, row: int, step: int
) -> None:
    tab.open(f"{address}#from=")
    tab.mouse(MAP, *at(tab, row, step), "move", "press", "release")
    numbers = tab.numbers()
    assert (numbers["head"], numbers["step"]) == (f"{row // 4}.{row % 4}", step)
    assert numbers["value"] == pytest.approx(score(small, "prefix_matching_sum", row, step), abs=1e-6)
    pattern = small.attention[f"attention/0/p0/{numbers['attentionStep']}"]
    query = numbers["query"]
    assert numbers["row"] == pytest.approx((pattern[row, query, : query + 1] / 255).tolist(), abs=1e-6)
    assert tab.text("#side-title") == f"L{row // 4}H{row % 4} at step {step:,}"


def test_hovering_reads_a_cell_without_choosing_it(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#from=")
    before = tab.numbers()
    tab.mouse(MAP, *at(tab, 11, 448), "move")
    tip = tab.text("#tip")
    for part in (
        f"{score(small, 'prefix_matching_sum', 11, 448):.3f}",
        "L2H3, step 448",
        "× uniform",
        "above chance",
        "formed at step 448",
    ):
        assert part in tip
    after = tab.numbers()
    assert after["hovered"] == {"measure": "prefix_matching_sum", "head": 11, "step": 448}
    assert (after["head"], after["step"]) == (before["head"], before["step"])
    tab.mouse(MAP, *at(tab, 0, 2), "move")
    assert "not measured" in tab.text("#tip")  # the generator left this score out
    tab.mouse("h1", 1, 1, "move")


def test_dragging_zooms_and_a_double_click_is_undone_by_its_button(tab: Tab, address: str) -> None:
    tab.open(address)
    (x0, y), (x1, _) = at(tab, 5, 64), at(tab, 5, 640)
    tab.mouse(MAP, x0, y, "move", "press")
    tab.mouse(MAP, x1, y, "move", "release")
    state = tab.run("return copyscope.state()")
    assert state["from"] == pytest.approx(64, rel=0.05)
    assert state["to"] == pytest.approx(640, rel=0.05)
    shown = tab.run("return Copyscope.curvesShown()")
    low, high = shown["low"], shown["high"]
    assert (10**low, 10**high) == (pytest.approx(state["from"], rel=0.01), pytest.approx(state["to"], rel=0.01))
    tab.run("document.getElementById('zoom-out').click()")
    tab.wait()
    assert tab.run("return copyscope.state().from") is None


def test_keys_move_step_head_query_view_and_pins(tab: Tab, address: str) -> None:
    tab.open(f"{address}#step=448&head=2.3&query=14")
    assert tab.press(Keys.ARROW_LEFT)["step"] == 384
    assert tab.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)["step"] == 512
    assert tab.press(Keys.HOME)["step"] == 0
    assert tab.press(Keys.END)["step"] == 1152
    assert tab.press("k")["head"] == "2.2"
    assert tab.press("j")["head"] == "2.3"
    assert tab.press("]", "]", "[")["query"] == 15
    tab.press("p")
    assert tab.run("return copyscope.state().pins") == "2.3"
    assert tab.press("m")["measure"] == "previous_token"
    assert tab.press("2")["view"] == "attention"
    assert tab.press("1")["view"] == "map"
    tab.press("?")
    assert tab.run("return document.getElementById('keys').open")
    tab.run("document.getElementById('keys').close()")
    numbers = tab.press(Keys.ARROW_UP, Keys.ARROW_LEFT, on=MAP)
    assert (numbers["head"], numbers["step"]) == ("2.2", 1088)
    assert "step 1,088" in tab.text("#map-one .readout")
    assert tab.press(Keys.ENTER, on=MAP)["view"] == "attention"
    assert tab.press(Keys.ARROW_UP, on="#matrix .over")["query"] == 14
    assert tab.press(Keys.ARROW_RIGHT, on="#tokens .token[tabindex='0']")["query"] == 15
    assert tab.press(Keys.ARROW_LEFT, on="#grid .cell[tabindex='0']")["head"] == "2.1"
    assert tab.press(Keys.ARROW_RIGHT, on="#tab-attention")["view"] == "compare"


def test_playing_walks_through_the_checkpoints_and_stops_at_the_end(tab: Tab, address: str) -> None:
    tab.open(f"{address}#step=1024")
    tab.press(" ")
    assert tab.text("#play") == "❚❚ Stop"
    tab.driver.execute_async_script(
        """const done = arguments[0];
        const stopped = () => document.getElementById('play').textContent.includes('Play');
        const look = () => (stopped() ? done() : setTimeout(look, 50));
        look();"""
    )
    assert tab.numbers()["step"] == 1152


def test_the_slider_is_the_same_cursor(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#step=448&head=0.1&measure=previous_token")
    assert tab.press(Keys.ARROW_LEFT, on="#step")["step"] == 384
    numbers = tab.numbers()
    assert numbers["value"] == pytest.approx(score(small, "previous_token", 1, 384), abs=1e-6)
    assert tab.text("#step-words") == "step 384, 393k tokens"
    assert numbers["tokens"] == 384 * 1024


def test_attention_of_a_step_that_was_not_saved_says_which_is_shown(tab: Tab, address: str, small: Made) -> None:
    saved = small.index["runs"][0]["prompts"][0]["steps"]
    tab.open(f"{address}#view=attention&step=1152")
    assert 1152 not in saved
    assert tab.numbers()["attentionStep"] == 1088
    assert all(step in tab.text("#attention-step") for step in ("1,088", "1,152"))


def test_hovering_a_token_shades_its_sources_and_marks_the_target(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3&query=14")
    tab.mouse("#tokens .token:nth-child(19)", 5, 5, "move")
    numbers = tab.numbers()
    assert (numbers["query"], numbers["targets"]) == (18, [7])
    row = small.attention["attention/0/p0/1088"][11, 18, :19] / 255
    assert numbers["row"] == pytest.approx(row.tolist(), abs=1e-6)
    marked = tab.run(
        """return [...document.querySelectorAll('#tokens .token')]
        .flatMap((token, i) => (token.classList.contains('target') ? [i] : []))"""
    )
    assert marked == [7]
    assert f"{row[7]:.0%}".replace("%", " %") in tab.text("#tokens .note")
    tab.mouse("h1", 1, 1, "move")
    assert tab.numbers()["query"] == 14
    # A head that fails is seen to fail: the target is outlined though nothing is there.
    assert tab.go(head="0.0", query=18)["targets"] == [7]
    table = tab.table("#sources")
    assert next(row for row in table if row[3] == "expected target")[0] == "7"


def test_the_matrix_holds_the_pattern_pixel_by_pixel(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3")
    size = 24
    pixels = np.array(
        tab.run(
            """const canvas = document.querySelector('#matrix .pixels');
            return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"""
        )
    ).reshape(size, size, 4)
    pattern = small.attention["attention/0/p0/1088"][11]
    below = np.tril(np.ones((size, size), dtype=bool))
    assert (pixels[~below] == pixels[0, -1]).all()  # one grey for what cannot be seen
    # White at 0, and ever darker: the red channel falls as attention rises.
    order = np.argsort(pattern[below])
    assert (np.diff(pixels[below][order][:, 0]) <= 0).all()
    assert pixels[13, 2, 0] < 40
    assert pixels[13, 2, 2] > 80


def test_the_map_is_coloured_by_score_and_grey_where_nothing_was_measured(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#step=0&from=")

    def color(row: int, step: int) -> list[int]:
        x, y = at(tab, row, step)
        return tab.run(
            """const canvas = document.querySelector('#map-one .stage canvas');
            const ratio = canvas.width / canvas.clientWidth;
            return [...canvas.getContext('2d').getImageData(arguments[0] * ratio, arguments[1] * ratio, 1, 1).data]""",
            x,
            y,
        )[:3]

    assert color(0, 2) == [0xC0] * 3
    assert score(small, "prefix_matching_sum", 11, 1152) > 0.85
    red, green, blue = color(11, 1152)  # the yellow end of viridis
    assert min(red, green) > 170 > 100 > blue
    assert score(small, "prefix_matching_sum", 11, 128) < 0.1
    red, green, blue = color(11, 128)  # its purple end
    assert max(red, green) < 90 < blue + 20 < 150
    # Signed measures are blue below 0 and red above it.
    tab.go(measure="induction_score")
    red, green, blue = color(11, 1152)
    assert score(small, "induction_score", 11, 1152) > 0.8
    assert red > 100 > 40 > green


def test_the_table_of_heads_holds_the_scores(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=heads&step=448")
    head, *rows = tab.table("#heads-table")
    assert head[:2] == ["head", "at step 448"]
    assert [row[0] for row in rows] == [f"L{h // 4}H{h % 4}" for h in range(12)]
    expected = [f"{score(small, 'prefix_matching_sum', h, 448):.3f}" for h in range(12)]
    assert [row[1] for row in rows] == expected
    assert rows[11][head.index("formed at")] == "448"
    assert rows[11][head.index("above chance")] == "yes"
    tab.go(step=832)
    assert tab.table("#heads-table")[12][-1] == "−0.700"
    tab.run("document.querySelectorAll('#heads-table th button')[1].click()")
    values = [float(row[1].replace("−", "-")) for row in tab.table("#heads-table")[1:]]
    assert values == sorted(values, reverse=True)


def test_sorting_and_filtering_reach_the_map_and_the_grid(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#sort=final")
    final = small.scores["scores/0/prefix_matching_sum"][-1]
    expected = [f"L{h // 4}H{h % 4}" for h in np.argsort(-final, kind="stable")]
    assert tab.numbers()["rows"] == expected
    tab.go(view="attention")
    grid = tab.run("return [...document.querySelectorAll('#grid .cell')].map((c) => c.dataset.head)")
    assert [f"L{g[0]}H{g[2]}" for g in grid] == expected
    assert tab.go(view="map", filter="formed")["rows"] == ["L2H3"]
    assert tab.go(filter="null")["rows"] == ["L2H3"]
    assert tab.go(filter="pinned", pins="0.1,1.2")["rows"] == (
        ["L0H1", "L1H2"] if final[1] > final[6] else ["L1H2", "L0H1"]
    )
    assert tab.go(filter="pinned", pins="")["rows"] == []
    assert tab.text("#map-one .readout") != ""
    assert tab.go(filter="all", sort="layer", rows="layers")["rows"] == ["L0", "L1", "L2"]
    assert tab.go(flip="1")["rows"] == ["L2", "L1", "L0"]


def test_two_maps_stand_under_one_another(tab: Tab, address: str) -> None:
    tab.open(f"{address}#measure=previous_token&beside=prefix_matching_sum")
    titles = tab.run("return [...document.querySelectorAll('.map:not([hidden]) h2')].map((h) => h.textContent)")
    assert titles == ["Previous-token attention", "Prefix matching"]


def test_an_effect_of_removal_is_a_measure_like_others(tab: Tab, address: str) -> None:
    tab.open(f"{address}#measure=zero:copying_accuracy_token&head=2.3&step=1088")
    steps = made().index["runs"][0]["ablations"]["zero:copying_accuracy_token"]["steps"]
    assert tab.numbers()["value"] == (None if 1088 not in steps else 0)
    assert tab.go(step=steps[-1])["value"] == pytest.approx(-0.7, abs=1e-6)


def test_pairs_and_order(tab: Tab, address: str) -> None:
    tab.open(f"{address}#view=circuit&step=1152")
    rows = tab.table("#circuit-table")
    assert rows[0][2:5] == ["path score", "K-composition", "effect of cutting the path"]
    assert [row[:4] for row in rows[1:]] == [["L0H1", "L2H3", "0.200", "0.400"]]  # the other has a twentieth of it
    assert "step 448" in tab.text("#circuit-title")
    order = tab.table("#order-table")[1:]
    assert [row[:3] for row in order][:2] == [
        ["Previous-token attention", "L0H1", "32"],
        ["Prefix matching", "L2H3", "448"],
    ]
    assert tab.press(Keys.ENTER, on="#circuit-figure [data-head='0.1']")["head"] == "0.1"


def test_pairs_are_drawn_from_a_threshold_by_what_one_chooses(tab: Tab, address: str) -> None:
    tab.open(f"{address}#view=circuit&cut=0")
    drawn = "return [...document.querySelectorAll('#circuit-figure path[data-pair]')].map((p) => p.dataset.pair).sort()"
    assert tab.run(drawn) == ["0.0 2.3", "0.1 2.3"]
    assert "2 of 2" in tab.text("#cut-words")
    numbers = tab.go(cut=25)
    assert numbers["pairs"] == [[1, 11, 0.2]]
    assert "1 of 2" in tab.text("#cut-words")
    numbers = tab.go(pairs="k_composition", cut=90)
    assert numbers["pairs"] == [[0, 11, 0.5]]
    link = numbers["hash"]
    tab.open(address + link)
    assert tab.numbers()["pairs"] == [[0, 11, 0.5]]
    tab.go(cut=0)
    at = tab.run(
        """const { cx, cy } = document.querySelector('#circuit-figure [data-head="0.1"] circle');
        return [cx.baseVal.value, cy.baseVal.value]"""
    )
    tab.mouse("#circuit-figure svg", at[0], at[1], "move")
    near = "return [...document.querySelectorAll('#circuit-figure path.near')].map((p) => p.dataset.pair)"
    assert tab.run(near) == ["0.1 2.3"]


def test_a_head_is_found_by_its_name(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.press("/")
    assert tab.run("return document.activeElement.id") == "head"
    numbers = tab.press("L1H2", Keys.ENTER, on="#head")
    assert numbers["head"] == "1.2"
    tab.press("L9H9", Keys.ENTER, on="#head")
    assert "L9H9" in tab.text("#notices")
    assert tab.numbers()["head"] == "1.2"


def test_the_cell_under_the_pointer_tells_its_tokens_and_value(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3")
    left, top, cell = tab.run(
        "const { left, top, size, nTokens } = copyscope.maps().matrix; return [left, top, size / nTokens]"
    )
    tab.mouse("#matrix .over", left + 7.5 * cell, top + 18.5 * cell, "move")
    value = small.attention["attention/0/p0/1088"][11, 18, 7] / 255
    tip = tab.text("#tip")
    assert f"“␣w6” (18) → “␣w7” (7): {value:.2f}" in tip
    assert "expected induction target" in tip
    tab.mouse("#matrix .over", left + 18.5 * cell, top + 7.5 * cell, "move")
    assert "masked" in tab.text("#tip")
    tab.mouse("h1", 1, 1, "move")


def test_several_heads_may_be_seen_as_one(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3&query=14")
    pattern = small.attention["attention/0/p0/1088"][:, 14, :15].astype(float)
    for pool, wanted in (("mean", pattern.mean(0)), ("max", pattern.max(0)), ("layer", pattern[8:12].mean(0))):
        numbers = tab.go(pool=pool)
        assert numbers["shownRow"] == pytest.approx((wanted / 255).tolist(), abs=0.5 / 255 + 1e-9)
        assert "pool=" + pool in numbers["hash"]
    assert tab.text("#matrix-title").startswith("Mean of layer 2")
    numbers = tab.go(pool="")
    assert numbers["shownRow"] == numbers["row"]
    assert tab.text("#matrix-title").startswith("L2H3")


def test_numbers_have_the_digits_that_they_mean(tab: Tab, address: str) -> None:
    tab.open(address)

    def said(function: str, *values: float) -> list[str]:
        return tab.run(f"return [...arguments].map((v) => Copyscope.{function}(v))", *values)

    assert said("number", 1.2e-5, -1.2e-5, 0, 0.0126, 12345) == ["< 0.001", "> −0.001", "0", "0.013", "12,345"]
    assert said("signed", 1.2e-5, 0.3, -0.3) == ["< 0.001", "+0.300", "−0.300"]
    assert said("precise", 3e-4, -0.01234, 0.2, 1.5) == ["0.0003", "−0.0123", "0.2", "1.500"]
    tab.run(
        """const rows = [[3e-4, 2e-5], [1e-3, 0.04]];
        const table = { title: 'x', name: 'x', exact: true, columns: ['rate', 'p'], rows };
        Copyscope.table(document.getElementById('order-table'), table)"""
    )
    assert tab.table("#order-table")[1:] == [["0.0003", "< 0.001"], ["0.001", "0.040"]]


LINES = """return [...document.querySelectorAll('#matrix .attention-lines .strong line')].map((l) =>
    [...l.dataset.pair.split(' ').map(Number), Number(l.getAttribute('stroke-opacity'))])"""


def test_attention_as_lines(tab: Tab, address: str, small: Made, written: Callable[[Made], str]) -> None:
    tab.open(f"{address}#view=attention&step=1088&head=2.3&prompt=p1&query=14&picture=lines")
    pattern = small.attention["attention/0/p1/1088"][11] / 255

    def seen(pairs: list[tuple[int, int]]) -> list[list[Any]]:
        return [[q, k, pytest.approx(pattern[q, k], abs=6e-4)] for q, k in pairs if pattern[q, k] >= 0.01]

    assert tab.run(LINES) == seen([(14, k) for k in range(15)])
    faint = tab.run("return document.querySelectorAll('#matrix .attention-lines .faint line').length")
    assert faint == int((np.tril(pattern) >= 0.01).sum())
    assert tab.run("return document.querySelector('#matrix .stage').hidden")
    texts = tab.run("return [...document.querySelectorAll('#matrix .attention-lines text')].map((t) => t.textContent)")
    assert texts[:2] == ["</script>"] * 2  # hostile tokens are text
    svg, last = (
        "#matrix .attention-lines svg",
        tab.run("return document.querySelector('#matrix .attention-lines svg').clientWidth") - 10,
    )
    tab.mouse(svg, 20, 18.5 * 20, "move")
    assert tab.run(LINES) == seen([(18, k) for k in range(19)])
    tab.mouse(svg, last, 7.5 * 20, "move")
    assert tab.run(LINES) == seen([(q, 7) for q in range(7, 24)])
    tab.mouse(svg, 20, 20.5 * 20, "move", "press", "release")
    numbers = tab.numbers()
    assert (numbers["query"], "picture=lines" in numbers["hash"]) == (20, True)
    tab.run("[...document.querySelectorAll('#matrix + .saves button')].find((b) => b.textContent === 'SVG').click()")
    tab.wait()
    saved = ElementTree.fromstring(tab.numbers()["lastSaved"]["content"])
    assert len([e for e in saved.iter() if "data-pair" in e.attrib]) == len(tab.run(LINES))
    assert tab.errors() == 0
    assert tab.console() == []
    long = made(n_layers=1, n_heads=2, n_steps=4, half=33, hostile=False)
    tab.open(f"{written(long)}#view=attention&picture=lines&query=40")
    assert tab.run("return document.querySelectorAll('#matrix .attention-lines .faint line').length") == 0
    assert {q for q, _, _ in tab.run(LINES)} == {40}
    assert "picture" not in tab.go(picture="matrix")["hash"]
    assert not tab.run("return document.querySelector('#matrix .stage').hidden")


def test_a_head_may_be_several_things(tab: Tab, address: str) -> None:
    """Its card names them, the strongest first; marks at the map's edge have the colours of the legend."""
    facts = """return [...document.querySelectorAll('#side-facts > div')]
        .map((fact) => [...fact.children].map((part) => part.textContent))"""
    tab.open(f"{address}#head=2.3")
    (first, what), (second, since), *_ = tab.run(facts)
    assert first.startswith("induction head <img")
    assert what.startswith("formed at step 448 (95 %:")
    assert what.endswith("0.90 at the end")
    assert (second, since) == ("attention sink", "from the start; 0.40 at the end, 0.50 at its best")
    tab.go(head="0.1")
    kinds = [name for name, words in tab.run(facts) if "at the end" in words]
    assert kinds == ["previous-token head", "attention sink"]
    assert "fell back at step" in tab.run(facts)[1][1]
    tab.go(head="1.1")
    assert "none of the kinds" in tab.run(facts)[0][1]
    legend = tab.text("#role-words")
    for words in ("previous-token head (1)", "attention sink (2)"):  # one of three sinks fell back
        assert words in legend
    colors = tab.run(
        """const [rows, { frame, top, height, base }] = [arguments[0], copyscope.maps().one];
        const ratio = base.width / frame.width;
        const at = (row, i) => [(frame.width - 4 * i - 2.5) * ratio, (top + (row + 0.5) * height) * ratio, 1, 1];
        const color = (row, i) => [...base.getContext('2d').getImageData(...at(row, i)).data].slice(0, 3);
        const swatch = [...document.querySelectorAll('#role-words .swatch')]
            .map((s) => getComputedStyle(s).backgroundColor.match(/\\d+/g).map(Number));
        return [rows.map((row) => [0, 1].map((i) => color(row, i))), swatch]""",
        [11, 1, 0],
    )
    (of_last, of_previous, of_first), (previous, induction, sink) = colors
    assert of_last == [induction, sink]
    assert of_previous[0] == previous
    assert of_previous[1] not in (induction, sink)
    assert of_first[0] == sink


def test_tasks_are_curves_beside_copying(tab: Tab, address: str) -> None:
    tab.open(address)
    shown = "return Copyscope.curvesShown().panels[1]"
    tab.go(curve="tasks")
    panel = tab.run(shown)
    assert [line["name"] for line in panel["lines"]] == ["copying", "recall pairs=8"]
    tab.go(curve="task:recall")
    panel = tab.run(shown)
    assert [line["name"] for line in panel["lines"]] == ["pairs=4 (chance 0.25)", "pairs=8 (chance 0.13)"]
    assert panel["lines"][0]["values"][-1] == pytest.approx(0.95, abs=0.01)


def test_a_heads_card_has_a_line_a_measure(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#head=0.1&step=448")
    tab.run("document.getElementById('side-more').open = true")
    tab.wait()
    lines = tab.run(
        """const part = (line, selector) => line.querySelector(selector);
        return [...document.querySelectorAll('.spark')].map((line) =>
        [line.dataset.measure, part(line, '.value').textContent, part(line, 'path').getAttribute('d')])"""
    )
    assert {name for name, _, _ in lines} == {"prefix_matching_sum", "previous_token", "induction_score"}
    for name, value, path in lines:
        assert float(value.replace("−", "-")) == pytest.approx(score(small, name, 1, 448), abs=0.006)
        assert path.count("L") == len(STEPS) - 1
    tab.run("document.querySelector('.spark[data-measure=induction_score]').click()")
    assert tab.numbers()["measure"] == "induction_score"


def test_what_is_written_on_a_colour_stands_out_from_it(tab: Tab, address: str) -> None:
    """In both themes, on every shade of every scale; and no attention is dark in the dark."""
    for dark in (False, True):
        tab.size(1280, dark=dark)
        tab.open(f"{address}#view=attention")
        scales = tab.run(
            """const { attentionScale, scaleOf } = Copyscope;
            return [attentionScale(), scaleOf({ signed: true }), scaleOf({ signed: false })]
            .map((scale) => scale.rgb.map((rgb) => [rgb, Copyscope.inkOnRgb(rgb)]))"""
        )
        for scale in scales:
            for rgb, ink in scale:
                ground, letters = luminance(rgb), 1.0 if ink == "#fff" else 0.0
                high, low = max(ground, letters), min(ground, letters)
                assert (high + 0.05) / (low + 0.05) >= 4.5
        none, middle = luminance(scales[0][0][0]), luminance(scales[1][127][0])
        assert (none < 0.05, middle < 0.05) == (dark, dark)


def luminance(rgb: list[int]) -> float:
    """Of WCAG 2, in [0, 1]."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
