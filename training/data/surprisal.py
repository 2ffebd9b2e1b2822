"""How hard each training token is to tell from the one before it; made when it is first asked for."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from copyscope.training.data.shards import Expected, ShardedArray, check, mapped
from copyscope.training.errors import InputError
from copyscope.training.files import sha256_of, write_bytes, write_json
from copyscope.training.progress import now_and_then, one_at_a_time

logger = logging.getLogger(__name__)
PAIRS_AT_ONCE = 1 << 25
"""Pair counts held in memory (8 bytes each). A vocabulary with more pairs takes several passes over the tokens."""
_TOKENS_AT_ONCE = 1 << 21


def surprisal(folder: Path, tokens: ShardedArray, vocab_size: int) -> ShardedArray:
    """`bigram_surprisal` of the tokens, [n] float16 on disk in shards like theirs, made in `folder` if not there."""
    index = folder / "surprisal.json"
    if not index.is_file():
        with one_at_a_time(
            folder.with_suffix(".lock"), lambda: logger.info(f"waiting for another process to make {index}")
        ):
            if not index.is_file():
                _make(folder, tokens, vocab_size)
    try:
        digests = json.loads(index.read_text())["sha256"]
        paths = [_file(folder, number) for number in range(len(tokens.shards))]
        files = [
            Expected(path, 2 * len(shard), digest)
            for path, shard, digest in zip(paths, tokens.shards, digests, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: damaged ({error}); delete it and run again to rebuild it") from None
    check(files, f"delete {index} and run again to rebuild it")
    return mapped(paths, "float16")


def _make(folder: Path, tokens: ShardedArray, vocab_size: int) -> None:
    logger.info("counting pairs of tokens, to tell how surprising each is")
    parts = folder / "making-surprisal"
    shutil.rmtree(parts, ignore_errors=True)
    values: list[np.ndarray] = []
    for number, shard in enumerate(tokens.shards):
        path = parts / f"{number}"
        write_bytes(path, bytes(2 * len(shard)))  # a full disk is an error here, and the end of the process in a map
        values.append(np.memmap(path, np.float16, "r+"))
    bigram_surprisal(tokens, vocab_size, values)
    digests = []
    for number, shard in enumerate(values):
        write_bytes(_file(folder, number), shard.tobytes())
        digests.append(sha256_of(_file(folder, number)))
    write_json(folder / "surprisal.json", {"sha256": digests})
    shutil.rmtree(parts, ignore_errors=True)


def _file(folder: Path, number: int) -> Path:
    return folder / f"train-{number:05}.surprisal.bin"


def bigram_surprisal(
    tokens: ShardedArray,
    vocab_size: int,
    into: list[np.ndarray],
) -> None:
    """-log p(token | the token before it) in nats, from the stream's own pair counts (plus 0.01 each).

    Written into arrays [n] float16, of the lengths of the shards. Indentation and punctuation repeat in every window
    and are easy to foretell; names repeat and are not. This tells the two apart. The first token has none before it
    and counts 0.
    """
    rows = min(vocab_size, max(1, PAIRS_AT_ONCE // vocab_size))
    tell = now_and_then(logger)
    for low in range(0, vocab_size, rows):  # the pairs that begin with one of the tokens low … low + rows - 1
        counts = np.zeros(rows * vocab_size, np.int64)
        for _, _, pairs, _ in _pairs(tokens, vocab_size, low, rows):
            np.add.at(counts, pairs, 1)
            tell(f"counting pairs: {low / vocab_size:.0%} of the vocabulary done")
        given = counts.reshape(rows, vocab_size).sum(1) + 0.01 * vocab_size
        for number, start, pairs, where in _pairs(tokens, vocab_size, low, rows):
            values = np.log(given[pairs // vocab_size]) - np.log(counts[pairs] + 0.01)
            into[number][start : start + len(where)][where] = values
    if len(tokens):
        into[0][0] = 0


def _pairs(
    tokens: ShardedArray, vocab_size: int, low: int, rows: int
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Shard, start in it, pairs (numbered from the first that begins with `low`) and which tokens of this piece of the
    shard end them."""
    before = 0
    for number, shard in enumerate(tokens.shards):
        for start in range(0, len(shard), _TOKENS_AT_ONCE):
            first = before + start
            end = before + min(start + _TOKENS_AT_ONCE, len(shard))
            if first == 0:
                first, start = 1, 1
            piece = tokens[first - 1 : end].astype(np.int64)
            where = (piece[:-1] >= low) & (piece[:-1] < low + rows)
            yield number, start, ((piece[:-1] - low) * vocab_size + piece[1:])[where], where
        before += len(shard)
