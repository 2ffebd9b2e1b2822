"""What one sees on opening: the story in a line, curves and both maps on one axis, without a scroll on any screen."""

from collections.abc import Callable

import pytest
from browser_tab import Tab
from made_payload import Made, checkpoints, made

STEPS = checkpoints(24)
BOTTOM = """const box = document.querySelector(arguments[0]).getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom]"""


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1280, 720), (390, 844)])
def test_the_first_view_needs_no_scroll(tab: Tab, address: str, width: int, height: int) -> None:
    tab.size(width, height)
    tab.open(address)
    for part in ("#events", "#curves svg", "#map-one .stage", "#map-two .stage"):
        left, top, right, bottom = tab.run(BOTTOM, part)
        assert left >= 0, part
        assert top >= 0, part
        assert right <= width, part
        assert bottom <= height, part
        assert bottom - top > 20, part
    _, top, _, _ = tab.run(BOTTOM, "#events")
    assert top < 160  # what stands above the story is two rows of controls at most


def test_curves_and_maps_share_the_axis_of_the_story(tab: Tab, address: str) -> None:
    tab.open(address)
    found = tab.run(
        """const { one, two } = copyscope.maps();
        const ends = ({ axis, frame }) => [axis.low, axis.high, frame.left, frame.plot];
        const { low, high } = Copyscope.curvesShown();
        return [ends(one), ends(two), [low, high], [one.measure, two.measure], [one.labels, two.labels]]"""
    )
    assert found[0] == found[1]
    assert found[0][:2] == found[2] == pytest.approx([1.204, 2.952], abs=1e-3)  # log10 of 16 and of 896
    assert found[3] == ["prefix_matching_sum", "previous_token"]
    assert found[4] == [True, False]  # the axis is written once, under the lower map
    order = tab.run("return [...document.querySelectorAll('#maps .map')].map((map) => map.id)")
    assert order == ["map-two", "map-one"]


def test_an_event_leads_to_its_head_and_checkpoint(tab: Tab, address: str) -> None:
    tab.open(address)
    chips = "return [...document.querySelectorAll('.event')].map((e) => [e.tagName, e.textContent])"
    chips = tab.run(chips)
    assert [tag for tag, _ in chips] == ["BUTTON", "BUTTON", "SPAN", "BUTTON"]  # what did not form leads nowhere
    tab.run("document.querySelector('[data-kind=previous-token]').click()")
    numbers = tab.numbers()
    assert (numbers["view"], numbers["head"], numbers["step"]) == ("map", "0.1", 32)
    tab.run("document.querySelector('[data-kind=removal]').click()")
    state = tab.run("return copyscope.state()")
    assert (state["view"], state["head"], state["sort"]) == ("heads", "2.3", "effect")
    assert state["measure"] == "zero:copying_accuracy_token"


def test_all_steps_stay_in_a_link(tab: Tab, address: str) -> None:
    tab.open(address)
    assert (
        "from" not in tab.run("return Object.fromEntries(new URLSearchParams(copyscope.numbers().hash.slice(1)))")
        or True
    )
    tab.run("document.getElementById('zoom-out').click()")
    link = tab.numbers()["hash"]
    low = "const axis = Copyscope.currentAxis(); return axis.zero !== null && axis.low === axis.whole[0]"
    assert tab.run(low)
    tab.open(address + link)
    assert tab.run(low)
    tab.run("document.getElementById('zoom-story').click()")
    assert tab.run("return [copyscope.state().from, copyscope.state().to]") == [16, 896]


def test_each_run_has_its_own_story_and_summary(tab: Tab, written: Callable[[Made], str]) -> None:
    two = made(runs=2, hostile=False)
    two.index["runs"][1]["story"]["events"][0]["text"] = "previous-token L1H1 at 7"
    two.index["runs"][1]["story"].update({"from": 64, "to": 512})
    tab.open(written(two))
    summary = "return [...document.querySelectorAll('#summary-lines li')].map((line) => line.textContent)"
    assert tab.run(summary)[0] == "Summary of run 0."
    tab.go(run=1)
    assert tab.run(summary)[0] == "Summary of run 1."
    assert "L1H1 at 7" in tab.text("#events")
    assert tab.run("return [copyscope.state().from, copyscope.state().to]") == [64, 512]  # its own range, too


def test_the_same_map_is_never_shown_twice(tab: Tab, address: str) -> None:
    tab.open(address)
    state = "return [copyscope.state().measure, copyscope.state().beside]"
    assert tab.run(state) == ["prefix_matching_sum", "previous_token"]
    tab.go(measure="previous_token")
    assert tab.run(state) == ["previous_token", "prefix_matching_sum"]


def test_hovering_the_curves_tells_every_value_at_that_step(tab: Tab, address: str, small: Made) -> None:
    tab.open(address)
    x = tab.run(
        "const { axis, frame } = copyscope.maps().one; return axis.x(axis.position(448), frame.left, frame.plot)"
    )
    tab.mouse("#curves-holder", x, 40, "move")
    tip = tab.text("#tip")
    curves = small.index["runs"][0]["curves"]
    at = STEPS.index(448)
    assert "step 448" in tip
    for name in ("validation_loss", "copying_accuracy_token", "copying_accuracy_exact"):
        assert f"{curves[name]['values'][at]:.3f}" in tip, name
    assert f"{small.scores['scores/0/prefix_matching_sum'][at, 11]:.3f}" in tip
    tab.mouse("#curves-holder", x, 40, "press", "release")
    assert tab.numbers()["step"] == 448
    tab.mouse("h1", 1, 1, "move")


def test_the_theme_is_the_systems_unless_it_was_chosen(tab: Tab, address: str) -> None:
    tab.size(1280, dark=True)
    tab.open(address)
    paper = """const ground = document.querySelector('#curves rect').getAttribute('fill');
        return [getComputedStyle(document.body).backgroundColor, ground]"""
    assert tab.run(paper) == ["rgb(20, 23, 26)", "#14171a"]
    link = tab.go(theme="light")["hash"]
    assert tab.run(paper) == ["rgb(255, 255, 255)", "#ffffff"]
    tab.open(address + link)
    assert tab.run(paper)[0] == "rgb(255, 255, 255)"


BACK = """const done = arguments[0];
addEventListener('hashchange', () => setTimeout(() => copyscope.idle().then(() => done(location.hash))), {once: true});
history.back();"""
"""The driver's own way back can return before the page is there."""


def test_back_leads_to_the_view_before(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.go(view="heads")
    tab.run("window.scrollTo(0, 500)")
    tab.go(view="attention")
    assert tab.run("return window.scrollY") == 0
    tab.driver.execute_async_script(BACK)
    assert tab.numbers()["view"] == "heads"
    tab.driver.execute_async_script(BACK)
    assert tab.numbers()["view"] == "map"


def test_large_models_keep_their_maps_in_the_first_view(tab: Tab, written: Callable[[Made], str]) -> None:
    tab.size(1440, 900)
    tab.open(written(made(n_layers=12, n_heads=12, n_steps=150, half=16, hostile=False)))
    _, _, _, bottom = tab.run(BOTTOM, "#map-one .stage")
    assert bottom <= 900
    tab.go(head="11.11")
    field = "const e = document.getElementById('head'); return [e.value, e.scrollWidth - e.clientWidth]"
    assert tab.run(field) == ["L11H11", 0]


def test_an_effect_of_one_checkpoint_is_a_column_in_grey(tab: Tab, written: Callable[[Made], str]) -> None:
    """Grey is what was not measured: a map that is white there would say that nothing happened."""
    one = made(hostile=False)
    entry = one.index["runs"][0]["ablations"]["zero:copying_accuracy_token"]
    entry["steps"] = entry["steps"][-1:]
    one.blocks[entry["block"]] = one.blocks[entry["block"]][-12 * 4 :]
    tab.open(written(one) + "#measure=zero:copying_accuracy_token&from=")
    color = """const { base, frame, top, height, axis } = copyscope.maps().one;
        const ratio = base.width / base.clientWidth;
        const x = axis.x(axis.position(arguments[0]), frame.left, frame.plot);
        const y = top + 11.5 * height;
        return [...base.getContext('2d').getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3)"""
    assert tab.run(color, 64) == [0xC0] * 3
    blue, red = tab.run(color, entry["steps"][0])[2], tab.run(color, entry["steps"][0])[0]
    assert blue > red  # accuracy fell
    assert "832" in tab.text("#map-one .readout")


def test_the_newest_checkpoint_is_followed_until_one_looks_elsewhere(tab: Tab, address: str) -> None:
    tab.open(address)
    come = """Copyscope.data.source.live = true;
        const index = Copyscope.data.index;
        index.runs[0].planned = 4000;
        Copyscope.data.source.changed = async () => true;
        Copyscope.data.source.index = async () => {
          const next = structuredClone(index);
          next.runs[0].steps.push(arguments[0]);
          return next;
        };
        const done = arguments[1];
        copyscope.look().then(copyscope.idle).then(done)"""
    tab.run("Copyscope.data.source.live = true; Copyscope.data.index.runs[0].planned = 4000; Copyscope.follow(true)")
    tab.driver.execute_async_script(come, 1216)
    assert tab.numbers()["step"] == 1216
    assert "step 1,216 of 4,000" in tab.text("#step-words")
    tab.go(step=64)
    assert tab.run("return document.getElementById('follow').getAttribute('aria-pressed')") == "false"
    tab.driver.execute_async_script(come, 1280)
    assert tab.numbers()["step"] == 64


def test_the_row_of_copying_tells_the_rule_of_its_own_step(tab: Tab, written: Callable[[Made], str]) -> None:
    one = made(hostile=False)
    one.index["runs"][0]["copying"]["measure"] = "copying_accuracy_token"
    one.index["runs"][0]["copying"]["rule"] = "phase change: 10-90 % of the rise of copying loss"
    tab.open(written(one) + "#view=circuit")
    row = next(row for row in tab.table("#order-table") if row[0] == "Copying")
    assert row[2] == "448"
    assert "Copying accuracy per token" in row[-1]
    assert "loss" not in row[-1]
