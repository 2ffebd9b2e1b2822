"""The token store: a corpus as memory-mapped shards of tokens with an index, made once."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from copyscope.training.config import DataConfig
from copyscope.training.data.corpora import file_signature
from copyscope.training.data.documents import Documents, gather, key
from copyscope.training.data.shards import (
    Expected,
    Shard,
    ShardedArray,
    check,
    expected_files,
    mapped,
    shard_of_row,
    shards_of,
    tokens_file,
    write_shards,
)
from copyscope.training.data.surprisal import surprisal
from copyscope.training.data.text_files import Reading
from copyscope.training.data.tokenizer import BOS as BOS
from copyscope.training.data.tokenizer import encode, train_tokenizer
from copyscope.training.errors import InputError
from copyscope.training.files import sha256_of, write_bytes, write_json, write_text
from copyscope.training.progress import now_and_then, one_at_a_time

logger = logging.getLogger(__name__)
FORMAT = 2
COUNTS = "counts.bin"
"""How often each token occurs, int64: in the store, and in the folder of each run that reads it."""
_PARTS = ("train", "validation")


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Tokens on disk, mapped into memory.

    `train` and `validation` are [n] uint16 streams of whole documents, each opened by BOS; `counts` [d_vocab] is how
    often each token occurs in `train`; `index` is the index file's content (counts, hashes, fingerprint).
    """

    folder: Path
    train: ShardedArray
    validation: ShardedArray
    counts: Int64[np.ndarray, " d_vocab"]
    index: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @cached_property
    def surprisal(self) -> ShardedArray:
        """[n] float16, how hard each token of `train` is to tell from the one before it, in nats
        (`training.data.surprisal.bigram_surprisal`). Computed when it is first asked for, and kept in the store."""
        return surprisal(self.folder, self.train, self.index["vocab_size"])


def token_store(config: DataConfig, root: Path, tokenizer: Path | None = None) -> TokenStore:
    """The store of this data configuration under `root`, made if it is not there.

    A store is keyed by the configuration and by the corpus' files (names, sizes, times), so that changed text makes
    another store; it is frozen once made. Making it needs room for the corpus' text beside the tokens; a kill costs at
    most one shard, and the same call continues. `tokenizer`: the tokenizer.json to use; None trains one. A second
    process that needs the same store waits for the first.
    """
    # The choice of windows is made when a batch is read, so it does not make another store.
    fields = config.canonical() | {"files": file_signature(config.corpus)}
    del fields["repeat_choice"]
    if tokenizer is not None:
        fields["tokenizer"] = sha256_of(tokenizer)
    folder = root / hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    index, making = folder / "index.json", folder / "making"
    if not index.is_file() or making.is_dir():
        wait = f"another process is making the tokens in {folder}; waiting for it"
        with one_at_a_time(folder.with_suffix(".lock"), lambda: logger.info(wait)):
            if not index.is_file():
                _make(config, folder, making, tokenizer)
            shutil.rmtree(making, ignore_errors=True)
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Opens a store and checks the size and sha256 of all its files; InputError names the first that is wrong."""
    fix = f"delete the folder {folder} and run again to rebuild it"
    path = folder / "index.json"
    if not path.is_file():
        raise InputError(f"{path}: missing, so these tokens are not complete; {fix}")
    try:
        index = json.loads(path.read_text())
        if index.get("format") != FORMAT:
            raise InputError(f"{path}: written by another version of copyscope; {fix}")
        shards = {part: shards_of(index, part) for part in _PARTS}
        files = [Expected(folder / COUNTS, 8 * index["vocab_size"], index["counts_sha256"])]
        for part in _PARTS:
            files += expected_files(folder, part, shards[part])
        tokenizer_sha256, _, dtype = index["tokenizer_sha256"], index["fingerprint"], index["dtype"]
        if dtype != "uint16":
            raise ValueError(f"dtype {dtype}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); {fix}") from None
    check(files, fix)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file() or sha256_of(tokenizer) != tokenizer_sha256:
        raise InputError(f"{tokenizer}: not the tokenizer that these tokens were made with; {fix}")
    train, validation = (
        mapped([tokens_file(folder, part, number) for number in range(len(shards[part]))], dtype) for part in _PARTS
    )
    return TokenStore(folder, train, validation, np.fromfile(folder / COUNTS, np.int64), index)


def _make(config: DataConfig, folder: Path, making: Path, given: Path | None) -> None:
    """Each step leaves whole files and is not done again after a kill; the index is last."""
    logger.info(f"reading the corpus {config.corpus}")
    reading = Reading(field=config.field, encoding=config.encoding, ascii_only=config.ascii_only)
    documents = gather(config.corpus, config.max_megabytes, making / "documents", reading)
    path = folder / "tokenizer.json"
    if not path.is_file() and given is not None:
        write_bytes(path, given.read_bytes())
    elif not path.is_file():
        logger.info(f"training a tokenizer of {config.vocab_size} entries")
        write_text(path, train_tokenizer((document.text for document in documents.read()), config.vocab_size).to_str())
    tokenizer = Tokenizer.from_file(str(path))
    index: dict[str, Any] = {
        "format": FORMAT,
        "corpus": config.corpus,
        "fingerprint": documents.fingerprint,
        "documents": len(documents.places),
        "dtype": "uint16",
        "vocab_size": tokenizer.get_vocab_size(),
        "tokenizer_sha256": sha256_of(path),
    }
    logger.info(f"encoding {index['documents']:,} documents, {documents.n_bytes / 1e6:,.1f} MB")
    shards = _encode(documents, config.validation_share, tokenizer, folder, making / "shards.json")
    for part in _PARTS:
        index[part] = {
            "tokens": sum(shard.tokens for shard in shards[part]),
            "documents": sum(shard.documents for shard in shards[part]),
            "shards": [asdict(shard) for shard in shards[part]],
        }
    write_bytes(folder / COUNTS, _counts(folder, len(shards["train"]), index["vocab_size"]).tobytes())
    index["counts_sha256"] = sha256_of(folder / COUNTS)
    write_json(folder / "index.json", index)


def _encode(
    documents: Documents, share: float, tokenizer: Tokenizer, folder: Path, progress: Path
) -> dict[str, list[Shard]]:
    """The shards of both parts, after those that `progress` says are done."""
    held_out_below = documents.held_out_below(share)
    shards: dict[str, list[Shard]] = {part: [] for part in _PARTS}
    if progress.is_file():
        try:
            saved = json.loads(progress.read_text())
            shards = {part: [shard_of_row(row) for row in saved[part]] for part in _PARTS}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{progress}: damaged ({error}); delete the folder {folder} and run again") from None
    tell = now_and_then(logger)
    n_documents = n_bytes = n_tokens = 0

    def texts(part: str, skip: int) -> Iterator[str]:
        nonlocal n_bytes
        held_out = part == "validation"
        for document in documents.read(lambda digest: is_held_out(digest, held_out_below) == held_out, skip):
            n_bytes += len(document.text.encode())
            yield document.text

    def encoded(part: str, skip: int) -> Iterator[np.ndarray]:
        nonlocal n_documents, n_tokens
        for tokens in encode(tokenizer, texts(part, skip)):
            n_documents, n_tokens = n_documents + 1, n_tokens + len(tokens)
            tell(f"encoded {n_documents:,} documents, {n_bytes / 1e6:,.1f} MB, {n_tokens:,} tokens")
            yield tokens

    for part in _PARTS:

        def save(done: list[Shard], part: str = part) -> None:
            shards[part] = done
            write_json(progress, {part: [astuple(shard) for shard in shards[part]] for part in _PARTS})

        skip = sum(shard.documents for shard in shards[part])
        shards[part] = write_shards(folder, part, encoded(part, skip), shards[part], save)
    return shards


def is_held_out(digest: bytes, below: int) -> bool:
    """Whether the document of this digest is for validation, where `below` is `Documents.held_out_below`."""
    return key(digest) < below


def _counts(folder: Path, n_shards: int, vocab_size: int) -> Int64[np.ndarray, " d_vocab"]:
    counts = np.zeros(vocab_size, np.int64)
    for number in range(n_shards):
        tokens = np.memmap(tokens_file(folder, "train", number), np.uint16, "r")
        for start in range(0, len(tokens), 1 << 22):
            counts += np.bincount(tokens[start : start + (1 << 22)], minlength=vocab_size)
    return counts
