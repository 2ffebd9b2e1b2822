"""A hub on this machine: the few addresses that huggingface_hub asks for when it fetches the files of a revision."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest


class Handler(BaseHTTPRequestHandler):
    root: Path
    """<root>/<org>/<model>/<revision>/ with a model's files."""
    asked: list[str]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.asked.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and parts[4:5] == ["revision"]:
            self.describe("/".join(parts[2:4]), parts[5], body)
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["refs"]:
            self.list_revisions("/".join(parts[2:4]), body)
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["tree"]:
            self.list_files("/".join(parts[2:4]), parts[5], body)
        elif len(parts) > 4 and parts[2] == "resolve":
            self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body)
        else:
            self.refuse("EntryNotFound")

    def revision(self, repo: str, name: str) -> Path | None:
        """By name, or by the commit that stands for it."""
        folders = [folder for folder in (self.root / repo).glob("*") if name in (folder.name, commit(folder))]
        return folders[0] if folders else None

    def describe(self, repo: str, name: str, body: bool) -> None:
        folder = self.revision(repo, name)
        if folder is None:
            self.refuse("RevisionNotFound" if (self.root / repo).is_dir() else "RepoNotFound")
            return
        files = [{"rfilename": str(path.relative_to(folder))} for path in files_of(folder)]
        facts = {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": commit(folder),
            "private": False,
            "siblings": files,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        self.send(json.dumps(facts).encode(), {"Content-Type": "application/json"}, body)

    def list_revisions(self, repo: str, body: bool) -> None:
        folders = sorted(folder for folder in (self.root / repo).glob("*") if folder.is_dir())
        if not folders:
            self.refuse("RepoNotFound")
            return
        branches = [
            {"name": folder.name, "ref": f"refs/heads/{folder.name}", "targetCommit": commit(folder)}
            for folder in folders
        ]
        facts = {"branches": branches, "tags": [], "converts": []}
        self.send(json.dumps(facts).encode(), {"Content-Type": "application/json"}, body)

    def list_files(self, repo: str, name: str, body: bool) -> None:
        folder = self.revision(repo, name)
        if folder is None:
            self.refuse("RevisionNotFound")
            return
        files = [
            {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": commit(folder)}
            for path in files_of(folder)
        ]
        self.send(json.dumps(files).encode(), {"Content-Type": "application/json"}, body)

    def send_file(self, repo: str, name: str, file: str, body: bool) -> None:
        folder = self.revision(repo, name)
        if folder is None or not (folder / file).is_file():
            self.refuse("EntryNotFound")
            return
        data = (folder / file).read_bytes()
        self.send(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit(folder)}, body)

    def send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def commit(folder: Path) -> str:
    """Of the names and contents, as a real hub's: other files are another commit."""
    held = [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files_of(folder)]
    return hashlib.sha1(repr((folder.parent.name, held)).encode()).hexdigest()


@contextmanager
def stand_in_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves `root`; gives its address and the list of what it has been asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"root": root, "asked": asked}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # s until it notices its end
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_of_this_process(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lets huggingface_hub here ask a stand-in for `root`, and keep what it gets in `cache`; gives what was asked."""
    from huggingface_hub import constants

    with stand_in_hub(root) as (address, asked):
        for name, value in {"ENDPOINT": address, "HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(cache)}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield asked
