"""Held-out text stays out; encoding loses nothing; stores survive kills and are checked."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupted import Killed, killed_at
from tokenizers import Tokenizer

from copyscope.training import progress
from copyscope.training.config import DataConfig
from copyscope.training.data import documents, shards
from copyscope.training.data import store as tokens
from copyscope.training.data.store import TokenStore, open_store, token_store
from copyscope.training.data.tokenizer import BOS, train_tokenizer
from copyscope.training.errors import InputError

TOKENIZER = train_tokenizer(["the cat sat on the mat, the cat sat " * 30], 320)


@given(st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode().replace(BOS, "")
    assert TOKENIZER.decode(TOKENIZER.encode(clean).ids, skip_special_tokens=False) == clean


def texts(n: int) -> list[str]:
    return [f"document {number} says {number * 7919} {BOS} and ends. " * 12 for number in range(n)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A corpus of 120 documents, small shards and small saves."""
    monkeypatch.setattr(shards, "SHARD_TOKENS", 4_000)
    monkeypatch.setattr(documents, "SAVE_BYTES", 20_000)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(120)))
    return DataConfig(corpus=str(folder), vocab_size=300, max_megabytes=1.0, validation_share=0.3)


def document_starts(store: TokenStore, part: str) -> np.ndarray:
    """Where each document starts in its part of the store, by the files beside the shards."""
    starts, before = [], 0
    for number, shard in enumerate(store.index[part]["shards"]):
        starts.append(np.fromfile(shards.starts_file(store.folder, part, number), np.int64) + before)
        before += shard["tokens"]
    return np.concatenate(starts)


def decoded(store: TokenStore, part: str) -> list[str]:
    stream = (store.train if part == "train" else store.validation)[:]
    starts = document_starts(store, part)
    assert (stream[starts] == 0).all()
    assert (stream == 0).sum() == len(starts)  # BOS cannot be forged
    tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
    return [tokenizer.decode(document[1:].tolist()) for document in np.split(stream, starts[1:])]


def content(store: TokenStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


def test_each_document_is_for_training_or_for_validation(config: DataConfig, tmp_path: Path) -> None:
    store = token_store(config, tmp_path / "tokens")
    train, validation = decoded(store, "train"), decoded(store, "validation")
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(text.replace(BOS, "<|endoftext |>") for text in texts(120))
    assert 20 < len(validation) < 55
    assert len(store.train.shards) > 3
    assert all(len(shard) <= 4_000 for shard in store.train.shards)
    assert store.counts.tolist() == np.bincount(store.train[:], minlength=300).tolist()
    assert sorted(path.name for path in store.folder.iterdir() if "-" not in path.name) == [
        "counts.bin",
        "index.json",
        "tokenizer.json",
    ]


def test_the_size_of_shards_and_the_kind_of_source_do_not_change_the_text(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = token_store(config, tmp_path / "tokens")
    surprisal = store.surprisal[:]
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1_000_000)
    streamed = config.model_copy(update={"corpus": f"hf:{config.corpus}"})
    other = token_store(streamed, tmp_path / "tokens")
    assert other.folder != store.folder
    assert len(other.train.shards) == 1
    assert other.train[:].tolist() == store.train[:].tolist()
    assert other.index["fingerprint"] == store.index["fingerprint"]
    assert document_starts(other, "train").tolist() == document_starts(store, "train").tolist()
    assert other.surprisal[:].tolist() == surprisal.tolist()


def test_a_store_is_made_once_and_anew_when_the_text_changes(
    config: DataConfig, tmp_path: Path, logged: list[str]
) -> None:
    first = token_store(config, tmp_path / "tokens")
    logged.clear()
    assert token_store(config, tmp_path / "tokens").folder == first.folder
    assert not logged
    (tmp_path / "text" / "new.txt").write_text("a new document with new words in it " * 20)
    assert token_store(config, tmp_path / "tokens").index["fingerprint"] != first.index["fingerprint"]


def test_killed_at_every_write_it_goes_on(config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = content(token_store(config, tmp_path / "undisturbed"))
    read, opened = [], documents.open_source
    monkeypatch.setattr(documents, "open_source", lambda *how: [read.append(how[1]), opened(*how)][1])
    # A shard, and a part of the documents, is three files: from the fourth attempt on each adds one at least.
    for kills, write in enumerate(chain((1, 2, 3), cycle((4, 5, 6)))):
        try:
            with killed_at(write, monkeypatch):
                store = token_store(config, tmp_path / "killed")
            break
        except Killed:
            assert kills < 100
    assert kills > 10
    assert content(store) == undisturbed
    assert read == sorted(read, key=lambda at: at or 0)  # what is saved is not read again
    assert read[-1] > 0


def test_sigkilled_at_any_moment_it_goes_on(config: DataConfig, tmp_path: Path) -> None:
    undisturbed = content(token_store(config, tmp_path / "undisturbed"))
    child = f"""
import logging, sys
from pathlib import Path
from copyscope.training.data import documents
from copyscope.training.data import shards
from copyscope.training.data import store as tokens
from copyscope.training.config import DataConfig
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
shards.SHARD_TOKENS, documents.SAVE_BYTES = {shards.SHARD_TOKENS}, {documents.SAVE_BYTES}
tokens.token_store(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
"""
    command = [sys.executable, "-c", child, config.model_dump_json(), str(tmp_path / "killed")]
    draw = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()  # it has begun
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(draw.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert content(token_store(config, tmp_path / "killed")) == undisturbed


def test_a_second_process_waits_and_finds_the_store_made(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    plain = tokens.gather
    begun, go_on = threading.Event(), threading.Event()

    def slow_gather(*arguments):
        begun.set()
        assert go_on.wait(30)
        return plain(*arguments)

    monkeypatch.setattr(tokens, "gather", slow_gather)
    waits = tokens.logger.info

    def info(text: str) -> None:
        waits(text)
        if threading.current_thread() is threading.main_thread():
            go_on.set()

    monkeypatch.setattr(tokens.logger, "info", info)

    # A lock is held by an open file, so threads stand for processes.
    first = threading.Thread(target=token_store, args=(config, tmp_path / "tokens"))
    first.start()
    assert begun.wait(30)
    store = token_store(config, tmp_path / "tokens")
    first.join()
    assert logged[0].startswith("reading the corpus")
    assert logged[1].startswith("another process is making the tokens")
    assert len(store.train) > 0


def test_progress_is_logged(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    store = token_store(config, tmp_path / "tokens")
    n_tokens = len(store.train) + len(store.validation)
    n_bytes = sum(len(text) for text in texts(120))
    assert f"read 120 documents, {n_bytes / 1e6:.1f} MB" in logged
    assert logged[-1] == f"encoded 120 documents, {n_bytes / 1e6:.1f} MB, {n_tokens:,} tokens"


def without(field: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        del index[field]
        (folder / "index.json").write_text(json.dumps(index))

    return change


def changed(field: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**index, field: value}))

    return change


def flipped(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flipped("train-00001.bin"), r"train-00001\.bin: damaged, its sha256 is not that of its index"),
        (flipped("validation-00000.bin"), r"validation-00000\.bin: damaged"),
        (flipped("train-00002.documents.bin"), r"train-00002\.documents\.bin: damaged"),
        (flipped("counts.bin"), r"counts\.bin: damaged"),
        (lambda folder: (folder / "train-00001.bin").unlink(), r"train-00001\.bin: missing"),
        (lambda folder: os.truncate(folder / "train-00001.bin", 100), r"train-00001\.bin: 100 bytes, not the \d+"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "not the tokenizer"),
        (
            lambda folder: (folder / "tokenizer.json").write_text(TOKENIZER.to_str()),
            r"tokenizer\.json: not the tokenizer that these tokens were made with",
        ),
        (lambda folder: (folder / "index.json").unlink(), r"index\.json: missing, so these tokens are not complete"),
        (lambda folder: (folder / "index.json").write_text("{"), r"index\.json: damaged"),
        (lambda folder: (folder / "index.json").write_text("[]"), r"index\.json: damaged"),
        (lambda folder: (folder / "index.json").write_bytes(b"\xff"), r"index\.json: damaged"),
        (changed("train", 3), r"index\.json: damaged"),
        (changed("train", {"tokens": 1, "documents": 1, "shards": []}), r"index\.json: damaged .* do not add up"),
        (changed("dtype", "int8"), r"index\.json: damaged .*dtype int8"),
        (changed("format", 1), r"index\.json: written by another version"),
        (without("format"), r"index\.json: written by another version"),
        *[
            (without(name), rf"index\.json: damaged \(KeyError: '{name}'\)")
            for name in ("train", "validation", "vocab_size", "tokenizer_sha256", "counts_sha256", "fingerprint")
        ],
    ],
)
def test_a_damaged_store_is_named(
    damage: Callable[[Path], None], says: str, config: DataConfig, tmp_path: Path, made: Path
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    damage(folder)
    with pytest.raises(InputError, match=f"{says}.*; delete the folder .* and run again") as caught:
        open_store(folder)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(120)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_TOKENS", 4_000)
        config = DataConfig(corpus=str(folder / "a.jsonl"), vocab_size=300, validation_share=0.3)
        return token_store(config, folder / "tokens").folder


def test_surprisal_is_made_when_asked_for_and_kept(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = open_store(Path(shutil.copytree(made, tmp_path / "a")))
    assert not (undisturbed.folder / "surprisal.json").exists()
    assert len(undisturbed.surprisal) == len(undisturbed.train)
    store = open_store(Path(shutil.copytree(made, tmp_path / "b")))
    for write in (1, 5, 9):
        with pytest.raises(Killed), killed_at(write, monkeypatch):
            _ = store.surprisal
    _ = store.surprisal
    assert content(store) == content(undisturbed)
    with killed_at(1, monkeypatch):  # nothing is written again
        assert open_store(store.folder).surprisal[5:9].tolist() == undisturbed.surprisal[5:9].tolist()


def test_damaged_surprisal_is_named(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    _ = open_store(folder).surprisal
    flipped("train-00001.surprisal.bin")(folder)
    with pytest.raises(InputError, match=r"train-00001\.surprisal\.bin: damaged.*delete .*surprisal\.json and run"):
        _ = open_store(folder).surprisal
    (folder / "surprisal.json").write_text("{}")
    with pytest.raises(InputError, match=r"surprisal\.json: damaged.*delete it and run again"):
        _ = open_store(folder).surprisal
    (folder / "surprisal.json").unlink()
    assert len(open_store(folder).surprisal) == len(open_store(folder).train)
