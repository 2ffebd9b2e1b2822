"""The notebook's widget in a browser: its JavaScript in a made notebook, with the real widget as the kernel."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser_tab import Tab
from tiny_series import tiny_series

pytest.importorskip("anywidget", reason="the widget is an extra: pip install copyscope[notebook]")

from copyscope.analyses.notebook import prompt_widget
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.opening import open_run
from copyscope.interp.models.hooked import load_hooked

# What a notebook does: the widget's model sends to the kernel, and every view hears every answer.
NOTEBOOK = """<!DOCTYPE html><title>notebook</title><link rel="icon" href="data:,">
<div id="one"></div><div id="two"></div>
<script type="module">
  import widget from "/widget.js";
  const heard = new Set();
  const model = {
    get: () => 700,
    on: (kind, action) => heard.add(action),
    off: (kind, action) => heard.delete(action),
    async send(question) {
      const answer = await fetch("/ask", { method: "POST", body: JSON.stringify(question) });
      const said = JSON.parse(answer.headers.get("said"));
      const bytes = await answer.arrayBuffer();
      for (const action of [...heard]) action(said, said.error ? [] : [new DataView(bytes)]);
    },
  };
  window.close = ["one", "two"].map((id) => widget.render({ model, el: document.getElementById(id) }))[1];
  window.heard = heard;
</script>"""


class Notebook(NamedTuple):
    address: str
    folder: Path


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    folder = tiny_series(tmp_path / "tiny", (0, 1, 8))
    widget = prompt_widget(folder, "the cat, the cat", head="L1H1", step=8)
    sent: list[tuple[Any, Any]] = []
    monkeypatch.setattr(widget.comm, "send", lambda data, buffers=None, **_: sent.append((data, buffers)))
    lock = threading.Lock()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = self.path == "/widget.js"
            self._send(widget._esm if code else NOTEBOOK, "text/javascript" if code else "text/html")

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                data = {"method": "custom", "content": question}
                widget.comm.handle_msg({"content": {"data": data}, "buffers": []})
                (answer, buffers), *_ = sent
                sent.clear()
            self._send(b"".join(buffers), "application/octet-stream", json.dumps(answer["content"]))

        def _send(self, body: str | bytes, kind: str, said: str = "") -> None:
            body = body.encode() if isinstance(body, str) else body
            self.send_response(200)
            for name, value in {"content-type": kind, "content-length": str(len(body)), "said": said}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Notebook(f"http://127.0.0.1:{server.server_port}/", folder)
    server.shutdown()
    thread.join(10)
    server.server_close()


def into_frame(tab: Tab, place: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    tab.driver.switch_to.default_content()
    WebDriverWait(tab.driver, 30).until(lambda driver: driver.find_elements("css selector", f"#{place} iframe"))
    tab.driver.switch_to.frame(tab.driver.find_element("css selector", f"#{place} iframe"))
    WebDriverWait(tab.driver, 30).until(lambda driver: driver.execute_script("return !!window.copyscope"))
    tab.wait()


def test_prompts_typed_in_a_notebook_are_computed_by_its_kernel(tab: Tab, notebook: Notebook) -> None:
    tab.logs()
    tab.driver.get(notebook.address)
    into_frame(tab, "two")
    shown = tab.numbers()
    assert (shown["view"], shown["step"], shown["head"]) == ("attention", 8, "1.1")
    assert tab.text("#prompt option:checked").endswith("the cat, the cat")
    into_frame(tab, "one")
    text = "one two </script> two <img src=x onerror=alert(1)> one two"
    tab.run("document.getElementById('prompt-text').value = arguments[0]", text)
    tab.run("document.querySelector('#prompt-form button').click()")
    tab.wait()
    numbers = tab.go(head="1.0", step=1)
    ids = texts_of(open_run(notebook.folder)).encode(text)
    import torch

    _, cache = load_hooked(notebook.folder / "step1").run_with_cache(torch.tensor([list(ids)]))
    query = numbers["query"]
    assert numbers["attentionStep"] == 1
    assert tab.run("return document.querySelectorAll('#tokens .token').length") == len(ids)
    assert np.array(numbers["row"]) == pytest.approx(cache["pattern", 1][0, 0, query, : query + 1].numpy(), abs=1 / 255)
    assert numbers["predicted"]["step"] == 1
    assert tab.run("return document.querySelectorAll('main img').length") == 0
    tab.run("document.getElementById('prompt-text').value = ''")
    tab.run("document.querySelector('#prompt-form button').click()")
    tab.wait()
    assert "empty" in tab.text("#prompt-answer")
    tab.run("document.getElementById('keys').showModal()")
    tab.run("document.querySelector('#keys .close').click()")
    assert not tab.run("return document.getElementById('keys').open")
    into_frame(tab, "two")
    assert tab.numbers()["head"] == "1.1"  # each view has its own page and answers
    tab.driver.switch_to.default_content()
    assert tab.run("window.close(); return window.heard.size") == 1
    assert tab.console() == []
    assert [url for url in tab.requests() if not url.startswith(notebook.address)] == []
