"""Text to a run's tokens and back, and what its models take; from files, without torch where there are files."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from copyscope.analyses.tables.run import Run
from copyscope.analyses.words.text import visible
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.errors import InputError

MOST_TOKENS = 256
"""Longest prompt that is shown: 256 tokens of 144 heads are 4.7 MB a checkpoint."""


class Texts(NamedTuple):
    """How a run's models read text."""

    n_ctx: int
    d_vocab: int
    special: tuple[int, ...]
    """Ids of special tokens, in rising order; the first opens every prompt."""
    tokenizer: Tokenizer | None

    @property
    def opening(self) -> list[int]:
        """What stands before every prompt."""
        return list(self.special[:1])

    @property
    def room(self) -> int:
        """Tokens that a prompt may have beside the opening one."""
        return min(self.n_ctx, MOST_TOKENS) - len(self.opening)

    def encode(self, text: str) -> list[int]:
        """The tokens of `text` with the opening one.

        Raises InputError: no text, no tokenizer, more tokens than fit, or one that the model has not got.
        """
        if not text:
            raise InputError("the prompt is empty; type some text")
        if self.tokenizer is None:
            raise InputError("this series has no tokenizer.json, so text cannot be turned into its tokens")
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
        if token in self.special:
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
    if Path(checkpoint.path).is_file():
        return _from_gguf(checkpoint)
    folder = _folder(checkpoint)
    facts = _config(folder / "config.json")
    tokenizer = _tokenizer(folder / "tokenizer.json")
    special = [] if tokenizer is None else [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
    n_ctx, d_vocab = _fact(facts, "max_position_embeddings", "n_positions"), _fact(facts, "vocab_size")
    if not n_ctx or not d_vocab:
        raise InputError(f"{folder / 'config.json'}: has no max_position_embeddings or vocab_size")
    return Texts(n_ctx, d_vocab, tuple(sorted(i for i in special if i < d_vocab)), tokenizer)


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


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: unreadable ({error}); fetch or save the checkpoint again") from None


def _fact(config: dict[str, Any], *names: str) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _tokenizer(path: Path) -> Tokenizer | None:
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises bare exceptions; attention can be shown without words
        return None


def _from_gguf(checkpoint: Checkpoint) -> Texts:
    from copyscope.interp.models.files import ModelFiles

    files = ModelFiles(checkpoint.path)
    tokenizer = files.tokenizer()
    special = () if tokenizer is None else tuple(sorted({int(i) for i in tokenizer.all_special_ids}))
    config = files.config
    return Texts(config.max_position_embeddings, config.vocab_size, special, getattr(tokenizer, "_tokenizer", None))
