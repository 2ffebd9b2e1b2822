"""A saved page asks nobody, fails nowhere, and shows hostile text as text: from a file and in a sandboxed frame."""

from collections.abc import Callable
from html import escape
from pathlib import Path

import pytest
from browser_tab import Tab
from made_payload import HOSTILE, Made

from copyscope.analyses.page.build import page
from copyscope.analyses.words.text import visible

VIEWS = ["map", "attention", "compare", "circuit", "heads", "report"]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_opens_from_a_file_without_requests_or_errors(tab: Tab, address: str, view: str) -> None:
    tab.open(f"{address}#view={view}")
    assert tab.numbers()["view"] == view
    assert tab.errors() == 0
    assert tab.console() == []
    assert [url.split("#")[0] for url in tab.requests()] == [address]
    assert tab.text("#notices") == ""


def test_the_curves_are_drawn_from_nothing_but_the_page(tab: Tab, address: str) -> None:
    tab.open(address)
    lines = "return [...document.querySelectorAll('#curves svg svg path[fill=none]')].map((p) => p.getAttribute('d'))"
    drawn = tab.run(lines)
    assert len(drawn) == 4
    assert all(line.startswith("M") and line.count("L") > 10 for line in drawn)
    assert tab.run("return window.Plotly === undefined")


def test_the_page_works_in_a_sandboxed_frame(tab: Tab, small: Made, tmp_path: Path) -> None:
    inner = page(small.index, small.blocks)
    outer = tmp_path / "outer.html"
    frame = f'<iframe sandbox="allow-scripts" width="1200" height="800" srcdoc="{escape(inner)}"></iframe>'
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">{frame}', encoding="utf-8")
    tab.driver.get("about:blank")
    tab.logs()
    tab.driver.get(outer.as_uri())
    tab.driver.switch_to.frame(0)
    tab.wait()
    for view in VIEWS:
        assert tab.go(view=view)["view"] == view
    numbers = tab.go(view="attention", head="2.3", query=14)
    assert numbers["row"] is not None
    # A frame like this may not save files: the text is shown instead.
    tab.run("document.querySelector('#sources .saves button').click()")
    assert tab.run("return document.getElementById('text-area').value").startswith('"run","prompt"')
    tab.run("document.getElementById('text-dialog').close()")
    # Nor pictures: those are shown, to be saved by their context menu.
    tab.run("[...document.querySelectorAll('#matrix + .saves button')].at(-1).click()")
    tab.driver.execute_async_script(
        """const done = arguments[0];
        const width = () => document.querySelector('#text-picture img')?.naturalWidth;
        const look = () => (width() > 100 ? done() : setTimeout(look, 20));
        look();"""
    )
    assert tab.run("return document.getElementById('text-area').hidden")
    assert tab.errors() == 0
    tab.driver.switch_to.default_content()
    assert tab.console() == []
    assert [url for url in tab.requests() if url != outer.as_uri()] == []


def test_hostile_tokens_are_shown_as_text(tab: Tab, address: str) -> None:
    tab.open(f"{address}#view=attention&prompt=p1")
    shown = tab.run("return [...document.querySelectorAll('#tokens .token')].map((t) => t.textContent)")
    half = len(shown) // 2
    signs = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})
    assert shown[:half] == [visible(token).translate(signs) for token in HOSTILE[:half]]
    tab.run("document.getElementById('vis-head').click()")
    tab.wait()
    colors = """const canvas = document.querySelector('#vis canvas');
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return new Set(pixels).size"""
    assert tab.run(colors) > 50  # drawn, not blank
    for view in VIEWS:
        tab.go(view=view)
        assert tab.run("return document.querySelectorAll('main img, header img').length") == 0
    assert tab.run("return document.documentElement.dataset.broken || null") is None
    assert tab.errors() == 0
    assert tab.console() == []


def test_hostile_names_are_shown_as_text_in_figures_too(tab: Tab, written: Callable[[Made], str]) -> None:
    from made_payload import made

    tab.open(written(made(runs=2)) + "#view=compare&runb=1")
    words = tab.run("return [...document.querySelectorAll('#runs-plot text')].map((t) => t.textContent)")
    at = words.index("run 0")
    assert words[at : at + 2] == ["run 0", "</script>"]
    assert tab.errors() == 0
    assert tab.console() == []


def test_circuitsvis_draws_a_layer_and_says_when_a_prompt_is_too_long(tab: Tab, written: Callable[[Made], str]) -> None:
    from made_payload import made

    long = made(n_layers=1, n_heads=2, n_steps=12, half=30, hostile=False)
    tab.open(written(long) + "#view=attention")
    tab.run("document.getElementById('vis-layer').click()")
    tab.wait()
    assert "60 tokens" in tab.text("#vis-words")
    assert tab.run("return document.querySelectorAll('#vis canvas').length") == 0


def test_silence_means_something(tab: Tab, small: Made, tmp_path: Path) -> None:
    """The same page with a forbidden image in it: counted, said on the page, and written to the console."""
    text = page(small.index, small.blocks).replace(
        '<main id="main"', '<img alt="" src="https://example.invalid/a.png"><main id="main"', 1
    )
    broken = tmp_path / "broken.html"
    broken.write_text(text, encoding="utf-8")
    tab.open(broken.as_uri())
    tab.run("const i = new Image(); i.src = 'https://example.invalid/b.png'")
    tab.wait()
    assert tab.errors() >= 1
    assert "blocked img-src" in tab.text("#notices")
    assert any("Content Security Policy" in line for line in tab.console())


def test_a_damaged_block_is_a_message(tab: Tab, small: Made, tmp_path: Path) -> None:
    text = page(small.index, small.blocks)
    start = text.index('id="block-scores/0/prefix_matching_sum">') + len('id="block-scores/0/prefix_matching_sum">')
    path = tmp_path / "damaged.html"
    path.write_text(text[:start] + "!!!" + text[start + 3 :], encoding="utf-8")
    tab.open(path.as_uri())
    assert "Cannot read" in tab.text("#map-one")
    assert tab.go(measure="previous_token", head="0.1")["value"] == pytest.approx(
        float(small.scores["scores/0/previous_token"][-1, 1]), abs=1e-6
    )
