"""Each checkpoint becomes a revision of its own, once, and only of a series that is sound."""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]
from small_run import small_config, train_small, write_corpus

from copyscope.training.checkpoints.hub import push
from copyscope.training.errors import InputError


class FakeHub:
    """Keeps repositories as {revision: {file: bytes}}. Fails before its n-th upload, if asked to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.uploads: list[str] = []
        self.fails_at = fails_at

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok or repo_id not in self.repos
        self.private.setdefault(repo_id, private)
        self.repos.setdefault(repo_id, {"main": {".gitattributes": b"*.safetensors filter=lfs"}})

    def list_repo_refs(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(branches=[SimpleNamespace(name=name) for name in self.repos[repo_id]])

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        assert exist_ok or branch not in self.repos[repo_id]
        self.repos[repo_id].setdefault(branch, dict(self.repos[repo_id]["main"]))

    def list_repo_tree(self, repo_id: str, *, revision: str, recursive: bool) -> list[SimpleNamespace]:
        assert recursive
        entries = []
        for name, data in self.repos[repo_id][revision].items():
            large = SimpleNamespace(sha256=hashlib.sha256(data).hexdigest()) if name.endswith(".safetensors") else None
            small = hashlib.sha1(b"blob " + str(len(data)).encode() + b"\0" + data).hexdigest()
            entries.append(SimpleNamespace(path=name, lfs=large, blob_id="pointer" if large else small))
        return entries

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        revision: str,
        commit_message: str,
        allow_patterns: list[str],
        delete_patterns: str,
    ) -> None:
        if len(self.uploads) == self.fails_at:
            raise HTTPError("connection reset\nby peer")
        assert delete_patterns == "*"
        assert commit_message.startswith("step ")
        files = {name: (folder_path / name).read_bytes() for name in allow_patterns}
        kept = {".gitattributes": self.repos[repo_id][revision][".gitattributes"]}
        self.repos[repo_id][revision] = files | kept
        self.uploads.append(revision)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    return train_small(root / "run", small_config(write_corpus(root / "c.jsonl"), {"train.steps": 4}))


REVISIONS = ["step0", "step1", "step2", "step4"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_whole(hub: FakeHub, run: Path) -> None:
    held = hub.repos["lab/run"]
    assert held.keys() == {*REVISIONS, "main"}
    for revision, files in held.items():
        step = 4 if revision == "main" else int(revision.removeprefix("step"))
        expected = contents(run / "checkpoints" / f"step{step:08d}")
        assert {name: data for name, data in files.items() if name != ".gitattributes"} == expected


@pytest.mark.parametrize("private", [True, False])
def test_each_checkpoint_is_a_revision_and_the_last_is_main(run: Path, private: bool, logged: list[str]) -> None:
    hub = FakeHub()
    result = push(run, "lab/run", private, hub)
    assert result.uploaded == hub.uploads == [*REVISIONS, "main"]
    assert hub.private == {"lab/run": private}
    assert_whole(hub, run)
    assert logged[-1] == "main: uploaded (5 of 5)"
    again = push(run, "lab/run", private, hub)
    assert (again.uploaded, again.skipped) == ([], [*REVISIONS, "main"])


@pytest.mark.parametrize("fails_at", range(5))
def test_an_upload_cut_off_goes_on(run: Path, fails_at: int) -> None:
    hub = FakeHub(fails_at)
    with pytest.raises(InputError, match=r"^lab/run: no connection to the hub \(connection reset\); the same command"):
        push(run, "lab/run", api=hub)
    hub.fails_at = None
    push(run, "lab/run", api=hub)
    assert hub.uploads == [*REVISIONS, "main"]
    assert_whole(hub, run)


def damage(held: dict[str, bytes], how: str) -> None:
    if how == "less":
        del held["config.json"]
    elif how == "more":
        held["pytorch_model.bin"] = b"x"
    else:
        held[how] = held[how][:-1] + bytes([held[how][-1] ^ 1])


@pytest.mark.parametrize("how", ["config.json", "model.safetensors", "MANIFEST.json", "less", "more"])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_revision_that_differs_is_replaced(run: Path, tmp_path: Path, how: str, manifest: bool) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    if not manifest:
        for path in run.glob("checkpoints/*/MANIFEST.json"):
            path.unlink()
        how = "config.json" if how == "MANIFEST.json" else how
    hub = FakeHub()
    push(run, "lab/run", api=hub)
    hub.uploads.clear()
    damage(hub.repos["lab/run"]["step2"], how)
    result = push(run, "lab/run", api=hub)
    assert hub.uploads == result.uploaded == ["step2"]
    assert_whole(hub, run)


def test_an_unsound_series_is_refused(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    (run / "checkpoints" / "step00000002" / "tokenizer.json").unlink()
    (run / "checkpoints" / "step00000004" / "foreign.txt").write_text("x")
    hub = FakeHub()
    with pytest.raises(InputError, match=r"^not uploaded, since .*tokenizer.json: missing.*and 1 more") as caught:
        push(run, "lab/run", api=hub)
    assert len(str(caught.value).splitlines()) == 1
    assert hub.repos == {}


def test_bad_names_and_places_are_refused(run: Path) -> None:
    for repo in ("run", "a/b/c", "lab/", "/run", "lab/my run", "../run"):
        with pytest.raises(InputError, match="give ORG/NAME"):
            push(run, repo, api=FakeHub())
    with pytest.raises(InputError, match="on a hub already"):
        push("org/model@step1,step2", "lab/run", api=FakeHub())


class RefusingHub(FakeHub):
    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    def create_repo(self, *arguments: Any, **options: Any) -> None:
        response: Any = SimpleNamespace(status_code=self.status, headers={}, request=None)
        raise HfHubHTTPError("refused\nfor long reasons", response=response)


@pytest.mark.parametrize(("status", "says"), [(401, "hf auth login"), (403, "hf auth login"), (500, "same command")])
def test_a_refusal_is_one_line(run: Path, status: int, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        push(run, "lab/run", api=RefusingHub(status))
    assert len(str(caught.value).splitlines()) == 1


def test_the_real_library_without_network_and_without_a_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^lab/run: the hub may not be reached, since HF_HUB_OFFLINE is set"):
        push(run, "lab/run", api=HfApi(token="none"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="no token for the hub: run `hf auth login`"):
        push(run, "lab/run")
