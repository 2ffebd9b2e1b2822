"""The live page with the real server and tiny real checkpoints: typed prompts, bad input, a run being written."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser_tab import Tab
from tiny_series import HEADS, LAYERS, STEPS, add_checkpoint, tiny_series, write_tables

from copyscope.analyses.explorer.serve import listen
from copyscope.analyses.explorer.state import Explored
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.opening import open_run
from copyscope.interp.models.hooked import load_hooked


class Live(NamedTuple):
    address: str
    folder: Path
    server: Any
    """uvicorn.Server"""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    folder = tiny_series(tmp_path / "tiny")
    with serving(folder) as found:
        yield found


@contextmanager
def serving(folder: Path) -> Iterator[Live]:
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed (copyscope[explore])")
    from copyscope.analyses.explorer.server import explorer_app

    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(explorer_app(Explored([folder])), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}/", folder, server)
    server.should_exit = True
    thread.join(10)
    listening.close()


def ask(tab: Tab, text: str) -> str:
    """Types a prompt and sends it; what the page answers."""
    tab.run(
        """const [text] = arguments;
        document.getElementById('prompt-answer').textContent = '';
        document.getElementById('prompt-text').value = text;
        document.querySelector('#prompt-form button').click();""",
        text,
    )
    tab.wait()
    return tab.text("#prompt-answer")


def look(tab: Tab) -> None:
    tab.driver.execute_async_script("const done = arguments[0]; copyscope.look().then(copyscope.idle).then(done)")


def test_a_typed_prompt_shows_what_the_model_itself_attends_to(tab: Tab, live: Live) -> None:
    tab.open(f"{live.address}#view=attention&step=64&head=1.0")
    text = "one two </script> two <img src=x onerror=alert(1)> one two"
    assert "tokens" in ask(tab, text)
    numbers = tab.numbers()
    run = open_run(live.folder)
    ids = texts_of(run).encode(text)
    model = load_hooked(live.folder / "step64")
    import torch

    _, cache = model.run_with_cache(torch.tensor([list(ids)]))
    query = numbers["query"]
    expected = cache["pattern", 1][0, 0, query, : query + 1].detach().numpy()
    assert numbers["attentionStep"] == 64
    assert np.array(numbers["row"]) == pytest.approx(expected, abs=1 / 255)
    assert tab.go(step=512, head="0.1")["attentionStep"] == 512
    assert tab.run("return document.querySelectorAll('#tokens .token').length") == len(ids)
    assert tab.run("return document.querySelectorAll('main img').length") == 0
    assert tab.errors() == 0
    assert tab.console() == []
    assert [url for url in tab.requests() if not url.startswith(live.address)] == []


def test_a_typed_prompt_outlives_a_reload_and_travels_in_a_link(tab: Tab, live: Live) -> None:
    tab.open(f"{live.address}#view=attention&step=64")
    text = "two & two = three? #1"
    ask(tab, text)
    chosen = tab.run("return [copyscope.state().prompt, copyscope.state().text]")
    assert chosen[1] == text
    link = tab.numbers()["hash"]
    typed = "return Copyscope.run().prompts.filter((p) => p.kind === 'typed').map((p) => [p.id, p.text])"
    with serving(live.folder) as other:  # a server that was never asked
        tab.open(other.address + link)
        assert tab.run(typed) == [chosen]
        assert tab.run("return [copyscope.state().prompt, copyscope.state().text]") == chosen
        assert tab.numbers()["row"] is not None
        assert tab.text("#notices") == ""
    tab.go(view="attention", prompt="repeated")
    assert tab.run("return copyscope.state().text") == ""


def test_a_model_that_is_still_loading_is_said(tab: Tab, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from copyscope.analyses.page.attention import Models

    may_answer = threading.Event()
    attention = Models.attention
    monkeypatch.setattr(Models, "attention", lambda *asked: may_answer.wait(30) and attention(*asked))
    tab.driver.get("about:blank")
    tab.driver.get(f"{live.address}#view=attention")
    tab.driver.execute_async_script(
        """const done = arguments[0];
        const words = () => document.querySelector('#matrix .note')?.textContent;
        const look = () => (/Loading the model/.test(words()) ? done() : setTimeout(look, 20));
        look();"""
    )
    assert tab.run("return document.querySelector('#matrix .stage').hidden")  # an empty matrix would cover the page
    may_answer.set()
    tab.wait()
    assert not tab.run("return document.querySelector('#matrix .stage').hidden")
    assert "query" in tab.text("#matrix .note")


def test_a_heads_weights_are_shown_on_demand(tab: Tab, live: Live) -> None:
    import json
    from urllib.request import urlopen

    tab.open(f"{live.address}#view=attention&step=64&head=1.0")
    assert tab.run("return document.querySelectorAll('#weights rect').length") == 0
    tab.run("document.getElementById('weights-show').click()")
    with urlopen(f"{live.address}block/matrices/0/repeated/64/L1H0") as answer:
        wanted = json.loads(answer.read())
    assert tab.numbers()["weights"] == wanted
    count = len(wanted["tokens"])
    assert tab.run("return document.querySelectorAll('#weights svg rect').length") == 2 * count * count
    assert tab.go(head="0.1")["weights"] != wanted
    assert tab.errors() == 0


def test_ctrl_enter_and_examples_ask_as_the_button_does(tab: Tab, live: Live) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    tab.open(f"{live.address}#view=attention")
    tab.run("document.getElementById('prompt-text').value = 'two two'; document.getElementById('prompt-text').focus()")
    ActionChains(tab.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    tab.wait()
    assert tab.run("return copyscope.state().text") == "two two"
    example = "const b = document.querySelectorAll('#examples button')[1]; b.click(); return b.textContent"
    wanted = tab.run(example)
    tab.wait()
    assert tab.run("return copyscope.state().text") == wanted


def test_bad_prompts_get_one_line_and_the_page_lives_on(tab: Tab, live: Live) -> None:
    tab.open(f"{live.address}#view=attention")
    assert "empty" in ask(tab, "")
    assert "fit" in ask(tab, "word " * 2000)
    assert "tokens" in ask(tab, "all is well again all is well")
    assert tab.errors() == 0


def test_new_checkpoints_appear_while_one_looks(tab: Tab, live: Live) -> None:
    tab.open(f"{live.address}#step=8&head=1.1")
    look(tab)
    time.sleep(0.02)  # so that the folder's time of change differs
    add_checkpoint(live.folder, 1024)
    write_tables(live.folder, (*STEPS, 1024))
    look(tab)
    assert tab.run("return Copyscope.run().steps") == [*STEPS, 1024]
    assert "1 new checkpoint." in tab.text("#notices")
    numbers = tab.numbers()
    assert (numbers["step"], numbers["head"]) == (8, "1.1")  # what one looked at stays
    assert tab.go(step=1024)["attentionStep"] == 1024
    assert tab.errors() == 0


def test_a_damaged_checkpoint_is_a_message_and_the_others_go_on(tab: Tab, live: Live) -> None:
    weights = live.folder / "step8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    tab.open(f"{live.address}#view=attention&step=8")
    assert "step8" in tab.text("#attention-step")
    assert tab.go(step=64)["attentionStep"] == 64
    assert tab.text("#attention-step") == ""
    assert tab.errors() == 0


def test_a_server_that_has_gone_is_said(tab: Tab, live: Live) -> None:
    tab.open(live.address)
    live.server.should_exit = True
    deadline = time.monotonic() + 10
    while "does not answer" not in tab.text("#notices") and time.monotonic() < deadline:
        look(tab)
    assert "does not answer" in tab.text("#notices")
    assert len(tab.numbers()["rows"]) == LAYERS * HEADS
