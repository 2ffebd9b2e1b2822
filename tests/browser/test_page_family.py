"""Forks on the page: a tree whose branches open their runs, curves with one trunk, and what two runs share."""

from collections.abc import Callable

import pytest
from browser_tab import Tab
from made_payload import HOSTILE, Made, made_family


@pytest.fixture(scope="module")
def family() -> Made:
    return made_family()


def drawn(tab: Tab) -> list[tuple[str, list[float], list[float]]]:
    return [(one["name"], one["x"], one["y"]) for one in tab.run("return Copyscope.runsShown")]


def test_the_tree_opens_the_branch_and_what_formed_in_it(
    tab: Tab, written: Callable[[Made], str], family: Made
) -> None:
    tab.open(written(family))
    assert tab.numbers()["view"] == "family"  # what a page of forks opens with
    named = "return [...document.querySelectorAll('#family-figure text[role=button]')].map((e) => e.dataset.run)"
    assert tab.run(named) == ["0", "1", "4", "2", "3", "5"]  # and none for the run that is not here
    assert "gone (not on this page)" in tab.text("#family-figure")
    marks = """return [...document.querySelectorAll('#family-figure g[role=button]')]
        .map((e) => [e.dataset.run, e.dataset.step])"""
    # What formed before a fork is marked on the line that it formed on, of a parent that is not here too.
    assert tab.run(marks) == [
        *(["0", step] for step in ("32", "448")),
        *([run, "448"] for run in ("1", "2", "3")),
        *(["5", step] for step in ("32", "448")),
    ]
    found = tab.press("\n", on="#family-figure text[data-run='4']")
    assert (found["view"], found["run"]) == ("map", "fork 4")
    tab.go(view="family")
    mark = "document.querySelector(\"#family-figure g[data-run='2'][data-step]\")"
    tab.run(f"{mark}.dispatchEvent(new Event('click', {{bubbles: true}}))")
    found = tab.numbers()
    assert (found["view"], found["run"], found["step"], found["head"]) == ("map", "fork 2", 448, "2.3")
    assert tab.run("return document.documentElement.dataset.broken || ''") == ""
    assert tab.errors() == 0


def test_curves_share_the_trunk_up_to_the_fork(tab: Tab, written: Callable[[Made], str], family: Made) -> None:
    tab.open(written(family))
    steps = family.index["runs"][0]["steps"]
    lines = {name: (x, y) for name, x, y in drawn(tab)}
    assert lines["run 0"][0] == steps
    assert lines[f"run 0: lr × 2 {HOSTILE[1]}"][0] == [step for step in steps if step >= 64]
    assert lines["gone (shared steps)"][0] == [step for step in steps if step <= 448]
    names = [name for name, *_ in drawn(tab)]
    assert names.count("run 0: 2 placebo forks") == 2
    legend = tab.run("return [...document.querySelectorAll('#runs-plot text')].map((e) => e.textContent)")
    assert legend.count("run 0: 2 placebo forks") == 1
    tab.go(align="fork")
    lines = {name: (x, y) for name, x, y in drawn(tab)}
    at64 = [step - 64 for step in steps if step >= 64]
    assert lines["run 0"][0] == lines[f"run 0: lr × 2 {HOSTILE[1]}"][0] == at64
    assert lines[f"run 0: lr × 2 {HOSTILE[1]} from 512"][0] == [step - 512 for step in steps if step >= 512]
    assert all(len(y) == len(x) for x, y in lines.values())


def test_runs_that_have_no_fork_are_named_where_forks_are_aligned(tab: Tab, written: Callable[[Made], str]) -> None:
    bare = made_family()
    del bare.index["families"][1]  # now run 5 is no fork
    tab.open(written(bare) + "#view=compare&align=fork")
    assert "fork 5" in tab.text("#runs-table .note")
    assert all(name != "fork 5" for name, *_ in drawn(tab))
    tab.go(align="step")
    assert [name for name, *_ in drawn(tab)].count("fork 5") == 1


def test_compare_says_what_two_runs_share_and_aligns_them_at_the_fork(
    tab: Tab, written: Callable[[Made], str], family: Made
) -> None:
    tab.open(written(family) + "#view=compare&run=0&runb=1&a=32&b=32")

    def shared(one: int, other: int) -> int | None:
        return tab.run("return Copyscope.sharedSteps(arguments[0], arguments[1])", one, other)

    assert [shared(0, 1), shared(2, 3), shared(4, 2), shared(4, 1), shared(0, 5)] == [64, 64, 64, 512, None]
    assert "the first 64 steps" in tab.text("#compare-shared")
    together = tab.text("#compare-shared")
    tab.go(b=128)
    assert len(tab.text("#compare-shared")) < len(together)  # no longer one checkpoint
    tab.go(runb=5)
    assert tab.run("return document.getElementById('compare-shared').hidden")

    def like(run: int, runb: int, a: int) -> int:
        tab.go(run=run, runb=runb, a=a, align="fork")
        tab.run("document.getElementById('b-like-a').click()")
        tab.wait()
        return tab.run("return copyscope.state().b")

    assert like(0, 1, 256) == 256
    assert like(1, 4, 640) == 640
    assert like(2, 4, 128) == 576  # 64 updates after its fork
    assert len(tab.run("return [...document.querySelectorAll('#runs-table tbody tr')]")) == 6
    assert tab.errors() == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_tree_on_a_phone(tab: Tab, written: Callable[[Made], str], family: Made, dark: bool) -> None:
    tab.size(390, 844, dark)
    tab.open(written(family))
    assert tab.run("return document.documentElement.scrollWidth") <= 390
    # Labels stand above their lines, and end within the figure.
    out = """const box = document.querySelector('#family-figure svg').getBoundingClientRect();
        return [...document.querySelectorAll('#family-figure text')].map((e) => e.getBoundingClientRect())
          .filter((r) => r.left < box.left - 1 || r.right > box.right + 1).length"""
    assert tab.run(out) == 0


def test_a_page_without_forks_has_no_such_view(tab: Tab, address: str) -> None:
    tab.open(address + "#view=family")
    assert tab.numbers()["view"] == "map"
    assert tab.run("return document.getElementById('tab-family').hidden")
    assert tab.press("1")["view"] == "map"
