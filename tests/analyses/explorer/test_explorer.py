"""The explorer's server: the tables as they are, attention of the real models, and every mishap a line of JSON."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_series import HEADS, LAYERS, N_CTX, add_checkpoint, tiny_series, write_tables

pytest.importorskip("starlette", reason="the explorer is an extra: pip install copyscope[explore]")
from starlette.testclient import TestClient

from copyscope.analyses.explorer import state
from copyscope.analyses.explorer.serve import PORT, _usual, explore, listen
from copyscope.analyses.explorer.server import explorer_app
from copyscope.analyses.explorer.state import Explored
from copyscope.analyses.page.attention import attention_bytes
from copyscope.analyses.page.payload import payload
from copyscope.analyses.tables.opening import open_run
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_series(tmp_path / "tiny", (0, 1, 8, 64))


def client_of(*folders: Path) -> TestClient:
    return TestClient(explorer_app(Explored(folders)), base_url="http://127.0.0.1", raise_server_exceptions=False)


def refused(response: Any, status: int, words: str) -> None:
    assert response.status_code == status
    assert words in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_the_page_the_index_and_the_blocks(folder: Path) -> None:
    client = client_of(folder)
    home = client.get("/")
    assert "<title>copyscope: tiny</title>" in home.text
    assert "connect-src 'self'" in home.headers["content-security-policy"]
    index = client.get("/index.json").json()
    assert index["live"] is True
    run = index["runs"][0]
    assert run["steps"] == [0, 1, 8, 64] == run["prompts"][0]["steps"]
    found = payload([open_run(folder)], live=True)
    for measure in run["measures"]:
        assert client.get(f"/block/scores/0/{measure}").content == found.blocks[f"scores/0/{measure}"]
    assert len(client.get("/lib/circuitsvis.js").content) > 500_000


def test_attention_is_the_models_own_also_of_typed_prompts(folder: Path) -> None:
    client = client_of(folder)
    text = "</script> \u202e the cat, the \ud800cat"
    typed = client.post("/prompt", content=_json(0, text), headers={"content-type": "application/json"}).json()
    assert typed["steps"] == [0, 1, 8, 64]
    length = len(typed["tokens"])
    block = client.get(f"/block/attention/0/{typed['id']}/8").content
    assert len(block) == LAYERS * HEADS * length * (length + 1) // 2
    rows = np.frombuffer(block, np.uint8).reshape(LAYERS * HEADS, -1)
    assert (rows[:, 0] == 255).all()  # the first token sees itself alone
    index = client.get("/index.json").json()
    shown = next(p for p in index["runs"][0]["prompts"] if p["id"] == "repeated")
    explored = Explored([folder])
    wanted = attention_bytes(load_hooked(folder / "step8", prove=False), _ids(explored, "repeated"))
    assert client.get("/block/attention/0/repeated/8").content == wanted
    assert len(shown["targets"]) == len(shown["tokens"])
    predicted = client.get("/block/predictions/0/repeated/8").json()
    assert len(predicted["p"]) == len(shown["tokens"]) - 1
    assert client.get("/block/predictions/0/repeated/8/L0H1").json()["p"] != predicted["p"]


def test_the_last_model_is_loaded_before_it_is_asked_for(folder: Path) -> None:
    explored = Explored([folder])
    explored.warm_up()
    assert list(explored._models[0]._loaded) == [64]
    for file in (folder / "step64").iterdir():
        file.unlink()
    Explored([folder]).warm_up()  # whoever asks for it is told


def _json(run: int, text: str) -> bytes:
    import json

    return json.dumps({"run": run, "text": text}).encode()


def _ids(explored: Explored, name: str) -> tuple[int, ...]:
    explored.index()
    return explored._prompts[0][name].ids


def test_every_mishap_is_a_line_and_the_server_lives_on(folder: Path) -> None:
    client = client_of(folder)
    head = {"content-type": "application/json"}
    refused(client.post("/prompt", content=_json(0, ""), headers=head), 400, "empty")
    refused(client.post("/prompt", content=_json(0, "x y " * 70), headers=head), 400, f"{N_CTX - 1} fit")
    refused(client.post("/prompt", content=_json(7, "a"), headers=head), 400, "there are runs 0 to 0")
    for body in (b"", b"[]", b'{"run": "0", "text": "a"}', b'{"run": true, "text": "a"}', b"[" * 60_000, b"\xff"):
        refused(client.post("/prompt", content=body, headers=head), 400, "a prompt is")
    refused(client.post("/prompt", content=b"x" * 70_000, headers=head), 413, "too long")
    refused(client.post("/prompt", content=_json(0, "a")), 415, "application/json")
    refused(client.get("/block/attention/0/repeated/5"), 400, "no checkpoint at step 5; the nearest is 8")
    refused(client.get("/block/attention/0/unknown/8"), 400, "not known")
    refused(client.get("/block/attention/3/repeated/8"), 400, "there are runs")
    refused(client.get("/block/attention/0/x"), 400, "RUN/PROMPT/STEP")
    refused(client.get("/block/predictions/0/x"), 400, "RUN/PROMPT/STEP")
    refused(client.get("/block/matrices/0/repeated/8"), 400, "RUN/PROMPT/STEP/L3H1")
    refused(client.get("/block/matrices/0/repeated/8/L9H0"), 400, "L0H0 to L1H1")
    refused(client.get("/block/matrices/0/repeated/8/L1"), 400, "name one head")
    refused(client.get("/block/predictions/0/unknown/8"), 400, "not known")
    refused(client.get("/block/predictions/0/repeated/8/nobody"), 400, "not a head")
    refused(client.get("/block/scores/0/nothing"), 400, "no such block")
    refused(client.get("/block/../../etc/passwd"), 404, "Not Found")
    refused(client.get("/lib/other.js"), 400, "no JavaScript library")
    refused(client.get("/elsewhere"), 404, "Not Found")
    refused(client.post("/index.json"), 405, "Not Allowed")
    assert client.get("/index.json").status_code == 200


def test_a_damaged_checkpoint_is_named_and_harms_no_other(folder: Path) -> None:
    (folder / "step8" / "model.safetensors").write_bytes(b"\0" * 200)
    client = client_of(folder)
    assert client.get("/block/attention/0/repeated/1").status_code == 200
    refused(client.get("/block/attention/0/repeated/8"), 400, "step8")
    assert client.get("/block/attention/0/repeated/64").status_code == 200


def test_new_checkpoints_are_seen_and_replaced_ones_are_read_again(folder: Path) -> None:
    client = client_of(folder)
    before = client.get("/changed").json()
    first = client.get("/block/attention/0/repeated/8").content
    client.get("/index.json")
    assert client.get("/changed").json() == before
    add_checkpoint(folder, 512)
    write_tables(folder, (0, 1, 8, 64, 512))
    assert client.get("/changed").json() != before
    run = client.get("/index.json").json()["runs"][0]
    assert run["steps"][-1] == 512 == run["prompts"][0]["steps"][-1]
    assert client.get("/block/attention/0/repeated/512").status_code == 200
    assert client.get("/block/attention/0/repeated/8").content == first
    (folder / "step8").rename(folder / "old")
    (folder / "step1").rename(folder / "step8")
    (folder / "old").rename(folder / "step1")
    client.get("/index.json")
    assert client.get("/block/attention/0/repeated/1").content == first
    assert client.get("/block/attention/0/repeated/8").content != first


def test_a_damaged_table_is_a_line_and_mended_it_is_read(folder: Path) -> None:
    client = client_of(folder)
    path = next((folder / "results" / "heads").iterdir())
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(b"PAR1")
    refused(client.get("/index.json"), 400, "damaged")
    path.unlink()
    path.write_bytes(whole)
    assert client.get("/index.json").status_code == 200


def test_other_sites_get_nothing(folder: Path) -> None:
    client = client_of(folder)
    assert client.get("/index.json", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/index.json", headers={"host": "localhost:8000"}).status_code == 200
    answer = client.get("/index.json", headers={"origin": "http://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)
    preflight = client.options(
        "/prompt", headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
    )
    assert preflight.status_code == 405
    for name in ("x-content-type-options", "cross-origin-resource-policy"):
        assert name in answer.headers
        assert name in client.get("/nowhere").headers


def test_attention_that_was_not_looked_at_for_long_is_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explored = Explored([folder])
    explored.index()
    size = len(explored.block("attention/0/repeated/0"))
    monkeypatch.setattr(state, "PATTERN_BYTES", 2 * size)
    for step in (1, 8, 0):
        explored.block(f"attention/0/repeated/{step}")
    assert [key[2] for key in explored._patterns] == [8, 0]
    monkeypatch.setattr(state, "MAX_TYPED", 2)
    first, *_ = [explored.prompt(0, text)["id"] for text in ("a", "b", "c")]
    with pytest.raises(InputError, match="type it again"):
        explored.block(f"attention/0/{first}/0")


def test_what_cannot_be_explored_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run given"):
        explore([])
    with pytest.raises(InputError, match="no such folder"):
        explore([tmp_path / "nowhere"])
    for host in ("0.0.0.0", "example.org", "::1"):
        with pytest.raises(InputError, match="this machine only"):
            listen(host, 0)
    with listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="--port"):
        listen("127.0.0.1", taken.getsockname()[1])
    for path in (folder / "results" / "heads").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="copyscope score"):
        explore([folder])


def test_the_usual_port_is_the_same_every_day_and_another_where_it_is_taken() -> None:
    with _usual("127.0.0.1") as first, _usual("127.0.0.1") as second:
        ports = [one.getsockname()[1] for one in (first, second)]
    assert ports[0] != ports[1]
    assert ports[1] != PORT  # at the latest the second found it taken


def test_the_command_serves_until_it_is_interrupted_and_starts_without_torch(folder: Path) -> None:
    program = (
        "import sys, threading; from copyscope.analyses.cli import main\n"
        "import copyscope.analyses.explorer.serve as serve\n"
        "def told(explored): print('torch' in sys.modules, 'scipy' in sys.modules, flush=True)\n"
        "serve._read_ahead = told\n"
        f"sys.argv = ['copyscope', 'explore', {str(folder)!r}, '--no-browser']\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stderr.readline())
        assert address
        assert process.stdout.readline() == "False False\n"
        with urllib.request.urlopen(address[0], timeout=60) as answer:
            assert b"copyscope: tiny" in answer.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.communicate()
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(address[0].rpartition(":")[2].rstrip("/"))))
