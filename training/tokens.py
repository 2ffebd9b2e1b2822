"""Text to tokens: the tokenizer and the memory-mapped token store."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.checkpoints import sha256_of, write_bytes, write_json, write_text
from training.config import DataConfig
from training.corpora import Document, file_signature, fingerprint, read_corpus
from training.errors import InputError

BOS = "<|endoftext|>"
"""The one special token: stands before every document, and first in every test prompt."""
TOKENIZER_MEGABYTES = 20
"""Text that the tokenizer is trained on, at most; more changes few merges of a small vocabulary."""
_ENCODE_AT_ONCE = 256


class TokenStore(NamedTuple):
    """Tokens on disk, mapped into memory.

    `train` and `validation` are [n] uint16 streams of whole documents, each opened by BOS; `counts` [d_vocab] is how
    often each token occurs in `train`; `surprisal` [n] float16 is how hard each training token is to tell from the one
    before it (`bigram_surprisal`); `index` is the index file's content (counts, hashes, fingerprint).
    """

    folder: Path
    train: np.ndarray
    validation: np.ndarray
    counts: np.ndarray
    surprisal: np.ndarray
    index: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"


def token_store(config: DataConfig, root: Path, say: Callable[[str], None] | None = None) -> TokenStore:
    """The store of this data configuration under `root`, made if it is not there. `say(text)` is told what is done.

    A store is keyed by the configuration and by the corpus' files (names, sizes, times), so that changed text makes
    another store; it is frozen once made.
    """
    # The choice of windows is made when a batch is read, so it does not make another store.
    fields = config.model_dump(mode="json", exclude={"repeat_choice"}) | {"files": file_signature(config.corpus)}
    key = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / key
    if not (folder / "index.json").is_file():
        say = say or (lambda text: None)
        say(f"reading the corpus {config.corpus}")
        documents = read_corpus(config.corpus, config.max_megabytes)
        folder.mkdir(parents=True, exist_ok=True)
        _make(config, documents, folder, say)
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Opens a store and checks sizes and the tokenizer's hash; InputError names what is wrong."""
    mend = f"delete the folder {folder} and run again to make it anew"
    try:
        index = json.loads((folder / "index.json").read_text())
        if sha256_of(folder / "tokenizer.json") != index["tokenizer_sha256"]:
            raise InputError(f"{folder / 'tokenizer.json'}: not the tokenizer these tokens were made with; {mend}")
        streams: list[np.ndarray] = []
        for part in ("train", "validation"):
            path, dtype = folder / f"{part}.bin", index["dtype"]
            # An empty file cannot be mapped.
            tokens = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
            if len(tokens) != index[part]["tokens"]:
                raise InputError(
                    f"{folder / part}.bin: {len(tokens)} tokens, not the {index[part]['tokens']} of its index; {mend}"
                )
            streams.append(tokens)
        counts = np.fromfile(folder / "counts.bin", dtype=np.int64)
        surprisal = np.memmap(folder / "surprisal.bin", dtype=np.float16, mode="r") if len(streams[0]) else np.zeros(0)
        if len(surprisal) != len(streams[0]):
            raise InputError(f"{folder / 'surprisal.bin'}: not one value for each training token; {mend}")
        if len(counts) != index["vocab_size"]:
            raise InputError(f"{folder / 'counts.bin'}: not one count for each token; {mend}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"token store {folder}: damaged ({error}); {mend}") from None
    return TokenStore(folder, streams[0], streams[1], counts, surprisal, index)


def _make(config: DataConfig, documents: list[Document], folder: Path, say: Callable[[str], None]) -> None:
    say(f"training a tokenizer of {config.vocab_size} entries")
    tokenizer = train_tokenizer(documents, config.vocab_size)
    write_text(folder / "tokenizer.json", tokenizer.to_str())
    held_out = {document.digest for document in documents if is_held_out(document, config.validation_share)}
    if not held_out and len(documents) > 1:  # few documents: the one that a larger share would have taken first
        held_out = {min((document.digest for document in documents), key=lambda digest: digest[-8:])}
    say(f"encoding {len(documents)} documents")
    index: dict[str, Any] = {
        "corpus": config.corpus,
        "fingerprint": fingerprint(documents),
        "documents": len(documents),
        "dtype": "uint16",
        "vocab_size": tokenizer.get_vocab_size(),
        "tokenizer_sha256": sha256_of(folder / "tokenizer.json"),
    }
    for part, wanted in (("train", False), ("validation", True)):
        texts = [document.text for document in documents if (document.digest in held_out) == wanted]
        pieces = list(_encode(tokenizer, texts))
        stream = np.concatenate(pieces) if pieces else np.zeros(0, np.uint16)
        write_bytes(folder / f"{part}.bin", stream.tobytes())
        index[part] = {"tokens": len(stream), "documents": len(texts), "sha256": sha256_of(folder / f"{part}.bin")}
        if part == "train":
            counts = np.bincount(stream, minlength=index["vocab_size"]).astype(np.int64)
            write_bytes(folder / "counts.bin", counts.tobytes())
            write_bytes(folder / "surprisal.bin", bigram_surprisal(stream, index["vocab_size"]).tobytes())
    write_json(folder / "index.json", index)  # last: a store without it was cut off, and is made again


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document is for validation: decided by its own text alone. Bytes other than those it is sorted by,
    so that the sample read and the share held out are independent."""
    return int.from_bytes(document.digest[-8:], "big") < share * 2**64


def train_tokenizer(documents: list[Document], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: every text can be encoded, and decoding gives it back exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def sample() -> Iterator[str]:
        budget = TOKENIZER_MEGABYTES * 1_000_000
        for document in documents:
            if budget <= 0:
                return
            budget -= len(document.text)
            yield document.text

    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray]:
    bos = tokenizer.token_to_id(BOS)
    for start in range(0, len(texts), _ENCODE_AT_ONCE):
        # A document that spells out the special token must not be able to forge it.
        clean = [text.replace(BOS, "<|endoftext |>") for text in texts[start : start + _ENCODE_AT_ONCE]]
        for encoding in tokenizer.encode_batch(clean, add_special_tokens=False):
            yield np.array([bos, *encoding.ids], dtype=np.uint16)


def bigram_surprisal(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """-log p(token | the token before it) in nats, [n] float16, from the stream's own pair counts (plus 0.01 each).

    Indentation and punctuation repeat in every window and are easy to foretell; names repeat and are not. This tells
    the two apart. The first token has none before it and counts 0.
    """
    if len(tokens) < 2:
        return np.zeros(len(tokens), np.float16)
    before, after = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    _, which, pair_counts = np.unique(before * vocab_size + after, return_inverse=True, return_counts=True)
    given = np.bincount(before, minlength=vocab_size) + 0.01 * vocab_size
    values = np.log(given[before]) - np.log(pair_counts[which] + 0.01)
    return np.concatenate([[0.0], values]).astype(np.float16)
