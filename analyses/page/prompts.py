"""Prompts that the page shows unless others are typed, with where a perfect induction head would look. No torch."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from copyscope.analyses.page.texts import Texts
from copyscope.analyses.tables.run import COMMON_SHARE, Run, token_counts
from copyscope.training.data.repeats import repeat_value
from copyscope.training.data.shards import mapped, tokens_file
from copyscope.training.errors import InputError

REPEATED = 15
"""Random tokens that are shown twice."""
NATURAL = 40
"""Tokens of the natural prompt."""
SEARCHED = 200_000
"""Held-out tokens that the natural prompt is looked for in."""
SENTENCE = "The small grey cat looked at the small grey mouse, and the small grey mouse looked at the small grey cat."


class Shown(NamedTuple):
    """One prompt of one run."""

    id: str
    title: str
    kind: str
    """`repeated`, `natural` or `typed`."""
    ids: tuple[int, ...]
    text: str = ""
    """As it was typed."""

    def entry(self, texts: Texts, steps: Sequence[int]) -> dict[str, Any]:
        """The prompt in the index; `steps`: those whose attention there is."""
        return {
            "id": self.id,
            "title": self.title,
            "kind": self.kind,
            "tokens": texts.words(self.ids),
            "targets": induction_targets(self.ids),
            "steps": list(steps),
            "text": self.text,
            "predictions": True,
        }


def induction_targets(ids: Sequence[int]) -> list[list[int]]:
    """For each query: the keys right after earlier copies of its token, before the query itself."""
    return [[j + 1 for j in range(i - 1) if ids[j] == ids[i]] for i in range(len(ids))]


def default_prompts(run: Run, texts: Texts) -> list[Shown]:
    """Tokens without meaning twice over, and text: held-out text of the run, or an English sentence.

    For looking at, not for measuring: the tokens are chosen by hash from those that random prompts draw from, and the
    text for the most repeats that an induction head could use. A run that was copied without its tokens gets the
    sentence. Raises InputError if the run's tokens are damaged.
    """
    out = []
    length = min(REPEATED, texts.room // 2)
    if length >= 2:
        half = _scattered(texts, _drawable(run, texts), length)
        title = f"{length} random tokens, twice"
        out.append(Shown("repeated", title, "repeated", (*texts.opening, *half, *half)))
    window = _held_out(run, min(NATURAL, texts.room))
    if window:
        out.append(Shown("natural", "held-out text with repeats", "natural", (*texts.opening, *window)))
    elif texts.tokenizer is not None and not (run.data and run.store.is_dir()):
        with contextlib.suppress(InputError):  # too long for this model's context
            out.append(Shown("sentence", "a sentence with repeats", "natural", tuple(texts.encode(SENTENCE))))
    return out


def typed_prompt(texts: Texts, text: str) -> Shown:
    """A typed prompt; the same text gets the same id. Raises InputError as `Texts.encode`."""
    ids = texts.encode(text)
    name = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:10]
    title = text if len(text) <= 60 else text[:59] + "…"
    return Shown(f"typed-{name}", title, "typed", tuple(ids), text)


def _drawable(run: Run, texts: Texts) -> list[int]:
    """Token ids without special, most and least common ones, as `interp.prompts.random_token_vocab` has them."""
    counts = token_counts(run)
    ids = texts.vocabulary.known
    if counts is not None and len(counts) == texts.d_vocab:
        ids = ids[counts[ids] > 0]
        ids = ids[np.argsort(-counts[ids], kind="stable")]
    cut = round(COMMON_SHARE * len(ids))
    return sorted(ids[cut : len(ids) - cut].tolist())


def _scattered(texts: Texts, ids: Sequence[int], count: int) -> list[int]:
    """Some of `ids` in an order that means nothing; bytes that are no character alone only where there is no more."""
    rank = {
        i: (r"\x" in word, hashlib.sha256(f"copyscope {i}".encode()).digest())
        for i, word in zip(ids, texts.words(ids), strict=True)
    }
    return sorted(ids, key=lambda i: rank[i])[:count]


def _held_out(run: Run, length: int) -> list[int]:
    """The stretch of held-out text with the most tokens that induction predicts, half of its tokens different."""
    folder = run.store
    if not run.data or length < 8 or not folder.is_dir():
        return []
    path = tokens_file(folder, "validation", 0)
    try:
        dtype = json.loads((folder / "index.json").read_text("utf-8"))["dtype"]
        tokens = np.asarray(mapped([path], dtype)[:SEARCHED]).astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: unreadable ({error}); train the run again to rebuild its tokens") from None
    if len(tokens) < length:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length)[::8]
    windows = windows[(windows != 0).all(axis=1)]  # within one document
    if not len(windows):
        return []
    return windows[int(predictable_by_induction(windows).argmax())].tolist()


def predictable_by_induction(windows: Int[np.ndarray, "window pos"]) -> Int[np.ndarray, " window"]:
    """How many tokens of each window end a pair of adjacent tokens that stood earlier in it; 0 for windows in which
    fewer than half of the tokens differ, such as rows of dashes."""
    ordered = np.sort(windows, axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    return np.where(2 * distinct >= windows.shape[1], repeat_value(windows).astype(np.int64), 0)
