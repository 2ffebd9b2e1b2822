"""What opens a model's prompts, and which token ids may be drawn at random: asked of its tokenizer as it was saved.

Works on any transformers tokenizer and needs no torch. TransformerLens fills in special tokens that are not there, so
ask before it does.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """A model's token ids as prompts may use them."""

    d_vocab: int
    """Rows of the embedding, which may be padded beyond the tokenizer's last entry."""
    bos_id: int | None
    """What opens every prompt; None where the model was not trained with such a token."""
    bos_from: str
    """Where `bos_id` comes from: `bos_token` or `eos_token` of the tokenizer, `config` of the model, or `none`."""
    bos_token: str | None
    special: tuple[int, ...]
    """Special tokens, and those added to the tokenizer's vocabulary afterwards, in rising order."""
    known: Int[np.ndarray, " known"]
    """Ids that the tokenizer has, without `special`, in rising order. All ids where there is no tokenizer."""

    @property
    def facts(self) -> dict[str, Any]:
        """For the metadata of results."""
        return {
            "bos_id": self.bos_id,
            "bos_token": self.bos_token,
            "bos_from": self.bos_from,
            "special_ids": list(self.special[:64]),
            "drawable_ids": len(self.known),
            "d_vocab": self.d_vocab,
        }


def vocabulary_of(tokenizer: Any | None, d_vocab: int, config: Any | None = None) -> Vocabulary:
    """The vocabulary of a model with `d_vocab` embeddings.

    BOS is the tokenizer's `bos_token`; else the special token that the model's config calls BOS (Pythia's and OLMo's
    end of text, for two); else the `eos_token` if the tokenizer puts it first itself; else there is none. Padding and
    unknown tokens never open a prompt. Ids beyond the embedding are left out.

    Args:
        tokenizer: transformers' tokenizer as it was read from its files; None without one.
        config: transformers' config of the model; None if not known.
    """
    if tokenizer is None:
        everything = np.arange(d_vocab)
        return Vocabulary(d_vocab=d_vocab, bos_id=None, bos_from="none", bos_token=None, special=(), known=everything)
    entries = {token: int(i) for token, i in tokenizer.get_vocab().items() if i is not None}
    # Reserved and unused tokens are added ones too; all_special_ids names only those with a part to play.
    special = {*map(int, tokenizer.all_special_ids), *map(int, tokenizer.added_tokens_decoder)}
    bos_from, bos_token = "none", None
    if _entry(tokenizer.bos_token, entries) is not None:
        bos_from, bos_token = "bos_token", tokenizer.bos_token
    elif (named := _named_by_config(tokenizer, entries, special, config)) is not None:
        bos_from, bos_token = "config", named
    elif _opens_with_eos(tokenizer, entries):
        bos_from, bos_token = "eos_token", tokenizer.eos_token
    bos_id = _entry(bos_token, entries)
    if bos_id is not None and bos_id >= d_vocab:
        logger.warning(
            f"BOS {bos_token!r} has id {bos_id}, but the model has {d_vocab} embeddings; prompts have no BOS"
        )
        bos_from, bos_token, bos_id = "none", None, None
    known = np.array(sorted({i for i in entries.values() if 0 <= i < d_vocab} - special), dtype=np.int64)
    return Vocabulary(
        d_vocab=d_vocab,
        bos_id=bos_id,
        bos_from=bos_from,
        bos_token=None if bos_token is None else str(bos_token),
        special=tuple(sorted(i for i in special if 0 <= i < d_vocab)),
        known=known,
    )


def _entry(token: Any, entries: dict[str, int]) -> int | None:
    """The token's id; None where the vocabulary has no such entry (transformers would give the unknown token's)."""
    return None if token is None else entries.get(str(token))


def _named_by_config(tokenizer: Any, entries: dict[str, int], special: set[int], config: Any | None) -> str | None:
    """The special token that the model's config calls BOS."""
    wanted = getattr(config, "bos_token_id", None)
    if wanted not in special:
        return None
    token = next((token for token, i in entries.items() if i == wanted), None)
    return None if token in (tokenizer.pad_token, tokenizer.unk_token) else token


def _opens_with_eos(tokenizer: Any, entries: dict[str, int]) -> bool:
    eos = _entry(tokenizer.eos_token, entries)
    if eos is None or tokenizer.eos_token in (tokenizer.pad_token, tokenizer.unk_token):
        return False
    ids = tokenizer.encode("a")
    return len(ids) > 1 and ids[0] == eos
