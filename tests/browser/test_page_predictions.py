"""What the model predicts, token by token and checkpoint by checkpoint; loss by position in the context."""

import json

import pytest
from browser_tab import Tab
from made_payload import Made, checkpoints

STEPS = checkpoints(24)


def predicted(small: Made, step: int) -> dict[str, list[float]]:
    return json.loads(small.blocks[f"predictions/0/p0/{step}"])


def test_the_right_tokens_probability_is_the_models(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&query=14&from=")
    wanted = predicted(small, 1088)
    found = tab.numbers()["predicted"]
    assert found == {"step": 1088, "p": wanted["p"][14], "top": wanted["top"][14]}
    rows = tab.table("#predicted-table")
    assert rows[1][0] == "␣w3"
    assert rows[1][2] == "the right one"
    assert rows[2][0] == "␣other"
    layers = tab.table("#predicted-layers")
    assert [row[0] for row in layers[1:]] == ["embedding", "after layer 0", "after layer 1"]
    assert float(layers[1][3]) == pytest.approx(wanted["p"][14] / 2, abs=1e-3)
    assert f"{wanted['p'][14]:.3f}" in tab.text("#predicted-words")
    # It was not yet so early in training.
    assert tab.go(step=2)["predicted"]["p"] == predicted(small, 2)["p"][14] < 0.01
    assert tab.go(query=23)["predicted"]["p"] is None
    assert "the prompt ends" in tab.text("#predicted-words")


def test_its_rise_over_training_is_a_curve(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&query=14&from=")
    line = tab.run(
        "return document.querySelector('#predicted-steps svg svg path[fill=none]').getAttribute('d').split('L').length"
    )
    assert line == len(small.index["runs"][0]["prompts"][0]["steps"])
    assert tab.run("return document.getElementById('predicted-all').hidden")  # all is here


def test_tokens_are_shaded_by_the_probability_they_had(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=attention&step=1088&query=14")
    shades = tab.run(
        """return [...document.querySelectorAll('#predicted-tokens .token')]
        .map((t) => (t.style.background ? Number(t.style.background.match(/\\d+/)[0]) : null))"""
    )
    assert shades[0] is None  # nothing stands before it
    p = predicted(small, 1088)["p"]
    assert shades[14] < 60 < 240 < shades[5]  # likely is dark, unlikely nearly white
    assert p[13] > 0.85 > 0.02 > p[4]
    tab.mouse("#predicted-tokens .token:nth-child(20)", 4, 4, "move")
    assert tab.numbers()["query"] == 18  # the token before it predicts it
    tab.mouse("h1", 1, 1, "move")


def test_loss_by_position_is_drawn_when_it_is_opened(tab: Tab, address: str) -> None:
    tab.open(f"{address}#from=")
    assert tab.run("return document.querySelectorAll('#positions-figure rect').length") == 0
    tab.run("document.getElementById('positions-part').open = true")
    tab.wait()
    cells = tab.run(
        "return [...document.querySelectorAll('#positions-figure rect title')].map((title) => title.textContent)"
    )
    assert len(cells) == 3 * len(STEPS)
    assert "position 4–8, step 0: 6.00 nats" in cells
    assert tab.errors() == 0
