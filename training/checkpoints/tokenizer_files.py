"""By which files a folder holds a tokenizer, in every form that transformers reads."""

from pathlib import Path

_WHOLE = (
    *({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"tokenizer.model"}, {"spiece.model"}),
    *({"sentencepiece.bpe.model"}, {"tokenizer.model.v3"}, {"tekken.json"}, {"tiktoken.model"}, {"tokenizer.tiktoken"}),
)
"""Sets of files of which each makes a tokenizer."""
TOKENIZER_FILES = tuple(
    sorted(set().union(*_WHOLE, {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}))
)
"""All files that a tokenizer may be read from."""


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer."""
    try:
        names = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    except OSError:
        return False
    return any(files <= names for files in _WHOLE)
