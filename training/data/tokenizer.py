"""Text to token ids: a byte-level BPE trained on the corpus itself."""

from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BOS = "<|endoftext|>"
"""The one special token: stands before every document, and first in every test prompt."""
TOKENIZER_MEGABYTES = 20
"""Text that the tokenizer is trained on, at most; more changes few merges of a small vocabulary."""
_CHARS_AT_ONCE = 2_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
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
        for text in texts:
            yield text
            budget -= len(text)
            if budget <= 0:
                return

    tokenizer.train_from_iterator(sample(), trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Each text as [n] uint16 ids, opened by BOS. The library shares the texts of a batch between cores."""
    bos = tokenizer.token_to_id(BOS)
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array([bos, *encoding.ids], dtype=np.uint16)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        # A document that spells out the special token must not be able to forge it.
        batch.append(text.replace(BOS, "<|endoftext |>"))
        size += len(text)
        if size >= _CHARS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
