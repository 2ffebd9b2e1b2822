"""Text to a run's tokens and back, and what its models take; from files, without loading a model."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from copyscope.analyses.tables.run import Run
from copyscope.analyses.words.text import visible
from copyscope.interp.models.config import context_length, read_config
from copyscope.interp.models.tokenizer import read_tokenizer
from copyscope.interp.models.vocabulary import Vocabulary, vocabulary_of
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError

MAX_TOKENS = 256
"""Longest prompt that is shown: 256 tokens of 144 heads are 4.7 MB a checkpoint."""


class Texts(NamedTuple):
    """How a run's models read text."""

    n_ctx: int
    vocabulary: Vocabulary
    tokenizer: Tokenizer | None

    @property
    def d_vocab(self) -> int:
        """How many ids the model has."""
        return self.vocabulary.d_vocab

    @property
    def opening(self) -> list[int]:
        """What stands before every prompt: BOS, where the model was trained with it."""
        return [] if self.vocabulary.bos_id is None else [self.vocabulary.bos_id]

    @property
    def room(self) -> int:
        """Tokens that a prompt may have beside the opening one."""
        return min(self.n_ctx, MAX_TOKENS) - len(self.opening)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` with the opening one.

        Raises InputError: no text, no tokenizer, more tokens than fit, or one that the model has not got.
        """
        if not text:
            raise InputError("the prompt is empty; type some text")
        if self.tokenizer is None:
            raise InputError("this series has no tokenizer, so text cannot be turned into its tokens")
        clean = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text to a tokenizer
        ids = self.tokenizer.encode(clean, add_special_tokens=False).ids
        if not ids:
            raise InputError("the prompt has no tokens; type some text")
        if len(ids) > self.room:
            raise InputError(f"the prompt has {len(ids)} tokens; {self.room} fit: shorten it")
        if max(ids) >= self.d_vocab:
            raise InputError(f"the prompt has token {max(ids)}, but the model knows {self.d_vocab}; leave it out")
        return [*self.opening, *ids]

    def words(self, ids: Sequence[int]) -> list[str]:
        """Each token as text, made visible; bytes that are no character alone as \\xNN, unknown ids as #id."""
        return [visible(self._word(i)) for i in ids]

    def _word(self, token: int) -> str:
        raw = None if self.tokenizer is None else self.tokenizer.id_to_token(token)
        if raw is None:
            return f"#{token}"
        if token in self.vocabulary.special:
            return raw
        if "ByteLevel" in str(getattr(self.tokenizer, "decoder", "")) and set(raw) <= set(_bytes_of()):
            return bytes(_bytes_of()[character] for character in raw).decode("utf-8", "backslashreplace")
        return raw.replace("\u2581", " ")


@cache
def _bytes_of() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary: themselves where they can be printed, else from
    U+0100 on, in order (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def texts_of(run: Run) -> Texts:
    """How the run's models read text, from the files of its last checkpoint.

    Raises InputError: a run that keeps no checkpoints, or files that are missing or damaged.
    """
    if not run.series.checkpoints:
        raise InputError(f"{run.folder}: keeps no checkpoints, so there is no attention to show")
    checkpoint = run.series.checkpoints[-1]
    path = Path(checkpoint.path)
    folder, gguf_file = (path.parent, path.name) if path.is_file() else (_folder(checkpoint), None)
    config = read_config(folder, gguf_file)
    tokenizer = read_tokenizer(folder, gguf_file)
    vocabulary = vocabulary_of(tokenizer, config.vocab_size, config)
    return Texts(context_length(config, folder), vocabulary, getattr(tokenizer, "_tokenizer", None))


def _folder(checkpoint: Checkpoint) -> Path:
    if checkpoint.revision is None:
        return Path(checkpoint.path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint.path, revision=checkpoint.revision, local_files_only=True))
    except Exception as error:  # the hub client has a dozen error types, and all mean that it is not here
        raise InputError(
            f"{checkpoint.path}@{checkpoint.revision}: not on this machine ({type(error).__name__}); score the series"
        ) from None
