"""The notebook's widget without a notebook: messages as a kernel gets them, and what goes back."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import read
from tiny_series import HEADS, LAYERS, add_checkpoint, tiny_series, write_tables

pytest.importorskip("anywidget", reason="the widget is an extra: pip install copyscope[notebook]")

from copyscope.analyses.notebook import prompt_widget
from copyscope.analyses.page.attention import attention_bytes
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.opening import open_run
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.errors import InputError

HOSTILE = "</script> the cat, <img src=x onerror=alert(1)> the cat"


class Kernel:
    """Sends the widget what a notebook's frontend sends, and keeps what it sends back."""

    def __init__(self, widget: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget, self.sent = widget, []
        monkeypatch.setattr(widget.comm, "send", lambda data, buffers=None, **_: self.sent.append((data, buffers)))

    def ask(self, content: Any) -> tuple[dict[str, Any], bytes]:
        data = {"method": "custom", "content": content}
        self.widget.comm.handle_msg({"content": {"data": data}, "buffers": []})
        said, buffers = self.sent.pop()
        assert said["method"] == "custom"
        assert not self.sent
        return said["content"], b"".join(bytes(part) for part in buffers)

    def get(self, kind: str, value: Any = None) -> bytes:
        said, data = self.ask({"view": "v", "id": 7, "kind": kind, "value": value})
        assert said == {"view": "v", "id": 7, "error": ""}
        return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_series(tmp_path_factory.mktemp("widget") / "tiny", (0, 8))


@pytest.fixture(scope="module")
def widget(folder: Path) -> Any:
    return prompt_widget(folder, HOSTILE, head="L1H0", step=8, height=500)


@pytest.fixture
def kernel(widget: Any, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(widget, monkeypatch)


def test_a_typed_prompt_is_computed_by_the_kernel(kernel: Kernel, folder: Path) -> None:
    opened = read(kernel.get("page").decode())
    assert opened.tags[0] == ("html", {"lang": "en", "data-source": "kernel"})
    assert "index" not in opened.data
    index = json.loads(kernel.get("index"))
    assert index["start"].startswith("#view=attention&step=8&head=L1H0&prompt=typed-")
    typed = json.loads(kernel.get("prompt", {"run": 0, "text": HOSTILE}))
    ids = texts_of(open_run(folder)).encode(HOSTILE)
    assert len(typed["tokens"]) == len(ids)
    rows = kernel.get("block", f"attention/0/{typed['id']}/8")
    assert rows == attention_bytes(load_hooked(folder / "step8", prove=False), ids)
    assert len(np.frombuffer(rows, np.uint8)) == LAYERS * HEADS * len(ids) * (len(ids) + 1) // 2
    predicted = json.loads(kernel.get("block", f"predictions/0/{typed['id']}/8"))
    assert len(predicted["p"]) == len(ids) - 1
    assert len(kernel.get("library", "circuitsvis")) > 500_000
    assert kernel.get("changed") == kernel.get("changed")


@pytest.mark.parametrize(
    "question",
    [
        None,
        [],
        {"kind": "exec"},
        {"kind": ["page"], "id": 1},
        {"kind": "block", "value": "../../etc/passwd"},
        {"kind": "block", "value": "attention/0/repeated/3"},
        {"kind": "prompt", "value": {"run": "0", "text": "x"}},
        {"kind": "prompt", "value": {"run": 5, "text": "x"}},
        {"kind": "prompt", "value": {"run": 0, "text": ""}},
        {"kind": "library", "value": None},
    ],
)
def test_an_odd_message_is_answered_with_one_line(kernel: Kernel, question: Any) -> None:
    said, data = kernel.ask(question)
    assert said["error"]
    assert "\n" not in said["error"]
    assert data == b""


def test_a_new_checkpoint_changes_the_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_series(tmp_path / "tiny", (0, 8))
    kernel = Kernel(prompt_widget(folder, max_megabytes=0.0), monkeypatch)
    before = kernel.get("changed")
    add_checkpoint(folder, 64)
    write_tables(folder, (0, 8, 64))
    assert kernel.get("changed") != before
    assert json.loads(kernel.get("index"))["runs"][0]["steps"] == [0, 8, 64]


def test_without_a_kernel_the_report_stands_in(kernel: Kernel) -> None:
    data, _ = kernel.widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    frame = data["text/html"]
    assert 'sandbox="allow-scripts"' in frame
    index = json.loads(read(html.unescape(frame.split('"')[1])).data["index"])
    prompts = index["runs"][0]["prompts"]
    assert [p["text"] for p in prompts if p["kind"] == "typed"] == [HOSTILE]
    assert all(p["steps"] for p in prompts)
    state = kernel.widget.get_state()
    assert state["height"] == 500
    assert sum(len(str(value)) for value in state.values()) < 10_000  # pages are sent when asked for, and not saved


def test_bad_input_is_named(folder: Path) -> None:
    wrong: list[dict[str, Any]] = [{"text": "x " * 500}, {"head": "L1"}, {"head": "best"}, {"step": 5}]
    for arguments in wrong:
        with pytest.raises(InputError):
            prompt_widget(folder, **arguments)
