"""The address holds what is looked at: a link brings the view back, and a wrong link says what was put right."""

import random

import pytest
from browser_tab import Tab
from made_payload import checkpoints

STEPS = checkpoints(24)


def some_state(seed: int) -> dict[str, object]:
    """A state drawn at random from what the small made page has."""
    pick = random.Random(seed)
    heads = [f"{layer}.{head}" for layer in range(3) for head in range(4)]
    low = pick.choice([None, 8, 64])
    return {
        "step": pick.choice(STEPS),
        "head": pick.choice(heads),
        "a": pick.choice(STEPS),
        "b": pick.choice(STEPS),
        "measure": pick.choice(["prefix_matching_sum", "previous_token", "zero:copying_accuracy_token"]),
        "prompt": pick.choice(["p0", "p1"]),
        "axis": pick.choice(["log", "linear", "tokens"]),
        "view": pick.choice(["map", "attention", "compare", "circuit", "heads", "report"]),
        "pins": ",".join(pick.sample(heads, pick.randrange(3))),
        "query": pick.randrange(24),
        "sort": pick.choice(["layer", "now", "final", "formation", "effect"]),
        "filter": pick.choice(["all", "formed"]),
        "rows": pick.choice(["heads", "layers"]),
        "beside": pick.choice(["none", "previous_token"]),
        "curve": pick.choice(["copying", "copying_loss", "heads"]),
        "flip": pick.choice(["", "1"]),
        "from": low,
        "to": pick.choice([None, 512]),
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_link_brings_the_view_back(tab: Tab, address: str, seed: int) -> None:
    wanted = some_state(seed)
    tab.open(address)
    link = tab.go(**wanted)["hash"]
    before = tab.run("return copyscope.state()")
    tab.open(address + link)
    after = tab.run("return copyscope.state()")
    assert after == before
    assert {key: after[key] for key in wanted} == wanted
    assert tab.errors() == 0


def test_the_address_follows_the_view(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.go(step=64, head="1.2")
    tab.driver.execute_async_script("setTimeout(arguments[0], 250)")
    assert "step=64" in tab.driver.current_url
    assert "head=1.2" in tab.driver.current_url
    tab.run("location.hash = '#step=8&head=0.3'")
    tab.wait()
    numbers = tab.numbers()
    assert (numbers["step"], numbers["head"]) == (8, "0.3")


def test_a_head_may_be_written_as_people_write_it(tab: Tab, address: str) -> None:
    tab.open(f"{address}#head=L0H3&pins=L1H2,1.2,l2h0")
    state = tab.run("return copyscope.state()")
    assert (state["head"], state["pins"]) == ("0.3", "1.2,2.0")
    assert tab.text("#notices") == ""


@pytest.mark.parametrize(
    ("link", "named", "shown"),
    [
        ("step=450", "450", ("step", 448)),
        ("head=9.9", "9.9", ("head", "2.3")),
        ("head=<img src=x>", "<img src=x>", ("head", "2.3")),
        ("measure=nothing", "measure 'nothing'", ("measure", "prefix_matching_sum")),
        ("prompt=gone", "'gone'", ("prompt", "p0")),
        ("query=99", "99", ("query", 23)),
        ("run=7", "'7'", ("run", 0)),
        ("view=constructor", "'constructor'", ("view", "map")),
        ("step=abc", "abc", ("step", 1152)),
        ("axis=%F0%9F", "log", ("axis", "log")),
    ],
)
def test_a_wrong_link_is_corrected_and_the_wrong_value_named(
    tab: Tab, address: str, link: str, named: str, shown: tuple[str, object]
) -> None:
    tab.open(f"{address}#{link}")
    assert named in tab.text("#notices")
    field, value = shown
    assert tab.run("return copyscope.state()")[field] == value
    assert tab.errors() == 0
    assert tab.run("return document.querySelectorAll('#notices img').length") == 0


def test_zoom_beyond_the_run_shows_the_run(tab: Tab, address: str) -> None:
    tab.open(f"{address}#from=5000&to=9000")
    assert tab.errors() == 0
    low, high = tab.run("const a = Copyscope.currentAxis(); return [a.low, a.high]")
    assert low < high
    tab.open(f"{address}#from=512&to=64")
    assert tab.run("return copyscope.state().from") is None


@pytest.mark.parametrize("axis", ["log", "linear", "tokens"])
def test_positions_go_there_and_back(tab: Tab, address: str, axis: str) -> None:
    """The axis inverts itself, keeps the order of steps, and its cells cover every checkpoint."""
    tab.open(f"{address}#axis={axis}")
    found = tab.run(
        """const axis = Copyscope.currentAxis();
        const steps = Copyscope.run().steps;
        return [steps.map(axis.position), steps.map((s) => axis.step(axis.position(s))), axis.cells(steps)]"""
    )
    positions, back, cells = found
    assert positions == sorted(positions)
    assert len(set(positions)) == len(STEPS)
    assert back == pytest.approx(STEPS, abs=0.01)
    assert [cell[2] for cell in cells] == list(range(len(STEPS)))
    for (left, right, _), at in zip(cells, positions, strict=True):
        assert left < at < right
