"""Held-out text stays out; encoding loses nothing; stores are checked."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import DataConfig
from training.corpora import Document, read_corpus
from training.errors import InputError
from training.tokens import (
    BOS,
    bigram_surprisal,
    is_held_out,
    open_store,
    token_store,
    train_tokenizer,
)

TOKENIZER = train_tokenizer([Document("the cat sat on the mat, the cat sat " * 30, b"x" * 32)], 320)


@given(st.text())
def test_decoding_gives_the_text_back(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode().replace(BOS, "")
    assert TOKENIZER.decode(TOKENIZER.encode(clean).ids, skip_special_tokens=False) == clean


def test_bigram_surprisal_is_that_of_the_counts() -> None:
    stream = np.random.default_rng(0).integers(0, 5, 400)
    found = bigram_surprisal(stream, 5)
    assert found[0] == 0
    for i in (1, 77, 399):
        a, b = stream[i - 1], stream[i]
        pairs = list(pairwise(stream))
        share = (pairs.count((a, b)) + 0.01) / (sum(x == a for x, _ in pairs) + 0.05)
        assert found[i] == pytest.approx(-np.log(share), rel=1e-2)


@pytest.fixture
def config(tmp_path) -> DataConfig:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"document {number} says {number * 7919} {BOS} and ends. " * 12)
    return DataConfig(corpus=str(folder), vocab_size=300, validation_share=0.3)


def test_documents_are_for_training_or_for_validation_and_bos_cannot_be_forged(config, tmp_path) -> None:
    store = token_store(config, tmp_path / "tokens")
    documents = read_corpus(config.corpus, 100.0)
    held = sum(is_held_out(document, 0.3) for document in documents)
    assert 0 < held < 60
    assert (int((store.validation == 0).sum()), int((store.train == 0).sum())) == (held, 60 - held)
    assert store.counts.sum() == len(store.train)
    assert store.counts.tolist() == np.bincount(store.train, minlength=300).tolist()


def test_a_store_is_made_once_and_anew_when_the_text_changes(config, tmp_path) -> None:
    first = token_store(config, tmp_path / "tokens")
    said: list[str] = []
    assert token_store(config, tmp_path / "tokens", said.append).folder == first.folder
    assert not said
    (tmp_path / "text" / "new.txt").write_text("a new document with new words in it " * 20)
    assert token_store(config, tmp_path / "tokens").index["fingerprint"] != first.index["fingerprint"]


def test_a_damaged_store_is_named(config, tmp_path) -> None:
    store = token_store(config, tmp_path / "tokens")
    data = (store.folder / "train.bin").read_bytes()
    (store.folder / "train.bin").write_bytes(data[:-4])
    with pytest.raises(InputError, match=r"train\.bin.*delete the folder"):
        open_store(store.folder)
    (store.folder / "train.bin").write_bytes(data)
    store.tokenizer_path.write_text(store.tokenizer_path.read_text() + " ")
    with pytest.raises(InputError, match="not the tokenizer"):
        open_store(store.folder)
