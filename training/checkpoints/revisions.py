"""Revisions of a model on the Hugging Face hub: which there are, which of them a series names."""


def select(repo: str, selector: str) -> tuple[list[str], bool]:
    """Names of the revisions that `selector` (what follows the @) stands for, and whether each was named by itself."""
    names = [name.strip() for name in selector.split(",") if name.strip()]
    return names, True
