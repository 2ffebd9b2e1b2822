"""A model's tokenizer, in any form that transformers reads. No code from the folder is run."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from copyscope.training.checkpoints.tokenizer_files import has_tokenizer, missing_tokenizer_file
from copyscope.training.errors import InputError, first_line


def read_tokenizer(folder: Path, gguf_file: str | None = None) -> Any | None:
    """transformers' tokenizer; None if the folder (or the GGUF file in it) holds none.

    A tokenizer class that only code in the folder defines is read from tokenizer.json instead.

    Raises:
        InputError: files that cannot be read, or half a tokenizer. Prompts leave out special tokens, and would not be
            the same without.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if gguf_file is not None:
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, gguf_file=gguf_file)
        except Exception:  # a GGUF file may hold no tokenizer, or one of a kind that transformers does not know
            return None
    if not has_tokenizer(folder):
        missing = missing_tokenizer_file(folder)
        if missing is not None:
            raise InputError(
                f"{folder / missing}: missing, so the tokenizer beside it is of no use; fetch it, or remove the "
                "tokenizer's other files to go without text and special tokens"
            )
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged JSON and unknown kinds come as different types
        reason = first_line(error)
    if (folder / "tokenizer.json").is_file():
        try:
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # as above
            reason = first_line(error)
    path = folder / "tokenizer.json" if (folder / "tokenizer.json").is_file() else folder
    raise InputError(
        f"{path}: no tokenizer that transformers reads ({reason}); fetch it again, or remove it to go without text "
        "and special tokens"
    )


def single_tokens(encode: Callable[[str], list[int]], words: Iterable[str]) -> dict[str, int]:
    """The token of each word that is one, with the space before it where that is part of the token. What several words
    share is an unknown token, and left out. `encode`: without special tokens."""
    found = {}
    for word in dict.fromkeys(words):
        spellings = [encode(text) for text in (f" {word}", word)]
        single = next((ids[0] for ids in spellings if len(ids) == 1), None)
        if single is not None:
            found[word] = single
    often = Counter(found.values())
    return {word: token for word, token in found.items() if often[token] == 1}
