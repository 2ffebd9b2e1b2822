"""By which files a folder holds a tokenizer, in every form that transformers reads."""

from pathlib import Path

_WHOLE = (
    *({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"tokenizer.model"}, {"spiece.model"}),
    *({"sentencepiece.bpe.model"}, {"tokenizer.model.v3"}, {"tekken.json"}, {"tiktoken.model"}, {"tokenizer.tiktoken"}),
)
"""Sets of files of which each makes a tokenizer; transformers reads no vocab.json without its merges.txt."""
TOKENIZER_FILES = tuple(
    sorted(set().union(*_WHOLE, {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}))
)
"""All files that a tokenizer may be read from."""


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a whole tokenizer: what transformers reads without fetching anything."""
    names = _files_in(folder)
    return any(files <= names for files in _WHOLE)


def missing_tokenizer_file(folder: Path) -> str | None:
    """The file without which another one in this folder is of no use (vocab.json without merges.txt), such as after a
    broken download; None where a whole tokenizer or nothing of one is there."""
    names = _files_in(folder)
    if any(files <= names for files in _WHOLE):
        return None
    return next((min(files - names) for files in _WHOLE if files & names), None)


def _files_in(folder: Path) -> set[str]:
    try:
        return {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    except OSError:
        return set()
