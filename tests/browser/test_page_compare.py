"""Two checkpoints side by side, and two runs."""

from collections.abc import Callable

import pytest
from browser_tab import Tab
from made_payload import Made, checkpoints, made

STEPS = checkpoints(24)


def score(small: Made, measure: str, head: int, step: int) -> float:
    return float(small.scores[f"scores/0/{measure}"][STEPS.index(step), head])


def test_b_minus_a(tab: Tab, address: str, small: Made) -> None:
    tab.open(f"{address}#view=compare&a=64&b=1088&head=2.3")
    a, b = (score(small, "prefix_matching_sum", 11, step) for step in (64, 1088))
    assert tab.numbers()["compare"] == pytest.approx({"a": a, "b": b, "difference": b - a}, abs=1e-6)
    assert tab.table("#compare-table")[1][0] == "L2H3"
    assert len(tab.run("return [...document.querySelectorAll('#compare-attention canvas')]")) == 3
    tab.run("document.getElementById('swap').click()")
    assert tab.numbers()["compare"]["difference"] == pytest.approx(a - b, abs=1e-6)


def test_two_runs_are_aligned(tab: Tab, written: Callable[[Made], str]) -> None:
    tab.open(written(made(runs=2)) + "#view=compare&runb=1&align=tokens")
    x = tab.run("return Copyscope.runsShown[0].x")
    assert x[:4] == pytest.approx([0, 1024, 2048, 4096], rel=1e-3)
    tab.go(align="formation")
    x = tab.run("return Copyscope.runsShown[0].x")
    assert x[STEPS.index(448)] == pytest.approx(1)
    numbers = tab.go(run=1)
    assert numbers["run"] == "</script>"


def test_b_follows_a_into_a_run_of_another_pace(tab: Tab, written: Callable[[Made], str]) -> None:
    """The second run saw twice the tokens a step and formed copying at another step."""
    two = made(runs=2, hostile=False)
    second = two.index["runs"][1]
    second["tokens"] = [2 * tokens for tokens in second["tokens"]]
    second["copying"] = {**second["copying"], "step": 896}
    tab.open(written(two) + "#view=compare&runb=1&a=448")

    def like(align: str) -> int:
        tab.go(align=align)
        tab.run("document.getElementById('b-like-a').click()")
        tab.wait()
        return tab.run("return copyscope.state().b")

    assert like("step") == 448
    assert like("tokens") == 256  # 448 × 1024 tokens: 224 steps of the second run, between 128 and 256
    assert like("formation") == 896
    tab.go(a=0)
    assert [like(align) for align in ("step", "tokens", "formation")] == [0, 0, 0]
    expected = two.scores["scores/1/prefix_matching_sum"][0, 11] - two.scores["scores/0/prefix_matching_sum"][0, 11]
    assert tab.go(head="2.3")["compare"]["difference"] == pytest.approx(float(expected), abs=1e-6)


def test_models_of_other_shapes_stand_side_by_side_each_with_a_head_of_its_own(
    tab: Tab, written: Callable[[Made], str]
) -> None:
    two, other = made(runs=2, hostile=False), made(n_layers=2, n_heads=2, hostile=False)
    two.index["runs"][1] = other.index["runs"][0] | {"name": "small"}
    for name in [name for name in two.blocks if name.split("/")[1] == "1"]:
        del two.blocks[name]
    two.blocks.update({name.replace("/0/", "/1/", 1): block for name, block in other.blocks.items()})
    tab.open(written(two) + "#view=compare&runb=1&a=1088&b=1088&head=2.3")
    a, b = (m.scores["scores/0/prefix_matching_sum"][STEPS.index(1088)] for m in (two, other))
    found = tab.numbers()["compare"]
    assert found["a"] == pytest.approx(float(a[11]), abs=1e-6)
    assert found["b"] == pytest.approx(float(b[3]), abs=1e-6)  # its highest head
    assert found["difference"] is None
    assert tab.run("return document.querySelectorAll('#compare-attention canvas').length") == 2
    assert tab.go(headb="0.1")["compare"]["b"] == pytest.approx(float(b[1]), abs=1e-6)
    assert tab.errors() == 0
