"""Token batches: which ids random prompts draw from, repeated random tokens, the copying test, natural-text windows.

The only module that draws random tokens. Everything is drawn on the CPU from a seed of its own, so the same seed
gives the same prompts on every machine and for every checkpoint of a series.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.models.vocabulary import Vocabulary
from copyscope.training.errors import InputError

PREFIX, SUFFIX = 12, 6
SUBSEQUENCE = PREFIX + SUFFIX
N_SUBSEQUENCES = 50
INDEX_STEP = 5
MIN_VOCAB = 25
"""The shortest useful vocabulary: the prefix-matching prompt has 25 distinct tokens."""


def random_token_vocab(
    counts: Int[Tensor, " d_vocab"] | None,
    d_vocab: int,
    special_ids: Sequence[int] = (),
    drop: float = 0.05,
    known: Sequence[int] | Int[np.ndarray, " known"] | None = None,
) -> Int[Tensor, " vocab"]:
    """The token ids that random prompts draw from, in rising order.

    Only ids of `known` (None: all), which is what the tokenizer has: the rows that pad an embedding were never trained.
    Special tokens are left out, and so are the share `drop` of most common tokens and the same share of least common
    ones (Olsson et al. 2022, head activation evaluators): common tokens carry habits of their own, and rare ones
    were hardly trained. With the training text's `counts`, tokens are ranked by count and those that never occur are
    left out too. Without counts the id stands in for the rank, since a byte-level BPE numbers its merges from common
    to rare; the single bytes at the start of such a vocabulary are not in that order, so counts are better where
    they are known.

    Raises:
        InputError: fewer than 25 ids remain, or `counts` does not have one entry an id.
    """
    if not 0 <= drop < 0.5:
        raise InputError(f"drop={drop}: the share of tokens to leave out at each end must be in [0, 0.5)")
    if not 0 < d_vocab < 2**31:
        raise InputError(f"d_vocab={d_vocab}: not the size of a vocabulary")
    if counts is not None and counts.shape[0] != d_vocab:
        raise InputError(f"counts has {counts.shape[0]} entries, but the vocabulary has {d_vocab} tokens")
    keep = torch.full((d_vocab,), known is None)
    if known is not None:
        keep[torch.as_tensor(known, dtype=torch.long)] = True
    keep[[i for i in special_ids if 0 <= i < d_vocab]] = False
    if counts is not None:
        keep &= counts.cpu() > 0
    ids = keep.nonzero().flatten()
    if counts is not None:
        ids = ids[counts.cpu()[ids].argsort(descending=True, stable=True)]
    cut = round(drop * len(ids))
    ids = ids[cut : len(ids) - cut]
    if len(ids) < MIN_VOCAB:
        raise InputError(
            f"only {len(ids)} of {d_vocab} tokens are left to draw random prompts from, and {MIN_VOCAB} are needed; "
            "give the counts of a longer text or a smaller drop"
        )
    return ids.sort().values


def drawable(vocabulary: Vocabulary, counts: Int[Tensor, " d_vocab"] | None = None) -> Int[Tensor, " vocab"]:
    """`random_token_vocab` of a model's own vocabulary: ids that its tokenizer has, without special ones."""
    return random_token_vocab(counts, vocabulary.d_vocab, vocabulary.special, known=vocabulary.known)


def repeated_random_tokens(
    vocab: Int[Tensor, " vocab"] | Sequence[int],
    length: int,
    n_prompts: int,
    seed: int = 0,
    bos_id: int | None = None,
    repeats: int = 2,
) -> Int[Tensor, "prompt pos"]:
    """Random tokens, repeated: `[B]` (if `bos_id` is given) and then `repeats` times the same `length` tokens.

    Definition 1 (length 100, repeats 2), the prompts of prefix matching (25 and 4; Olsson et al. 2022) and, with
    repeats=1, those of the copying score. The tokens of a prompt are distinct as long as `vocab` has `length` ids:
    only then does every token have exactly one earlier copy a repeat, so that there is one right place to look. From a
    smaller vocabulary they are drawn with replacement.
    """
    ids = _as_ids(vocab)
    if length < 1 or n_prompts < 1 or repeats < 1:
        raise InputError(f"length={length}, n_prompts={n_prompts}, repeats={repeats}: each must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    if len(ids) >= length:
        picks = torch.rand(n_prompts, len(ids), generator=generator).topk(length, dim=1).indices
    else:
        picks = torch.randint(0, len(ids), (n_prompts, length), generator=generator)
    return _with_bos(ids[picks].repeat(1, repeats), bos_id)


def fitting_length(n_ctx: int, wanted: int, repeats: int, bos_id: int | None) -> int:
    """How many of `wanted` distinct tokens fit, `repeats` times over, into n_ctx positions beside a BOS.

    Raises:
        InputError: fewer than 2 fit.
    """
    bos = bos_id is not None
    length = min(wanted, (n_ctx - bos) // repeats)
    if length < 2:
        raise InputError(f"n_ctx={n_ctx} is too short for {repeats} repeats; at least {2 * repeats + bos} are needed")
    return length


class CopyingTest(NamedTuple):
    """The random-token copying test of 2409.09281 (definition 9).

    Samples that share a context stand next to each other: every context is asked for subsequence 0, 5, 10, … in
    turn, so samples of one context are not independent; take standard errors over contexts (`context`).
    """

    tokens: Int[Tensor, "sample pos"]
    """[B], the context's subsequences, and the 12-token prefix of one of them."""
    suffix: Int[Tensor, "sample 6"]
    """The 6 tokens that follow that prefix in the context."""
    index: Int[Tensor, " sample"]
    """Which subsequence is asked for; 0 is the furthest back."""

    @property
    def n_subsequences(self) -> int:
        """How many subsequences a context has: 50, or as many as n_ctx leaves room for."""
        return (self.tokens.shape[1] - PREFIX) // SUBSEQUENCE

    @property
    def has_bos(self) -> bool:
        """Whether a BOS comes first."""
        return (self.tokens.shape[1] - PREFIX) % SUBSEQUENCE == 1

    @property
    def context(self) -> Int[Tensor, " sample"]:
        """Number of the context that each sample asks about, from 0."""
        return torch.unique_consecutive(self.tokens[:, :-PREFIX], dim=0, return_inverse=True)[1]


def copying_test(
    vocab: Int[Tensor, " vocab"] | Sequence[int],
    n_ctx: int,
    n_samples: int = 500,
    seed: int = 0,
    bos_id: int | None = None,
) -> CopyingTest:
    """Draws the copying test: contexts of 50 random subsequences of 18 tokens, then the prefix of one of them.

    Each subsequence is a 12-token prefix and a 6-token suffix; in its context every prefix occurs only once among
    all runs of 12 tokens, and every suffix only once among all runs of 6, so there is one right answer. For n_ctx <
    919 as many subsequences as fit beside the appended 18 tokens and the BOS (`CopyingTest.n_subsequences`).
    Accuracy with fewer subsequences is not comparable with accuracy at 50: there are fewer places to confuse.

    Raises:
        InputError: n_ctx has no room for two subsequences, or `vocab` is too small for unique prefixes and suffixes.
    """
    ids = _as_ids(vocab)
    bos = bos_id is not None
    n_subsequences = min(N_SUBSEQUENCES, (n_ctx - bos - SUBSEQUENCE) // SUBSEQUENCE)
    if n_subsequences < 2:
        needed = 3 * SUBSEQUENCE + bos
        raise InputError(f"n_ctx={n_ctx} is too short for the copying test, which needs at least {needed} positions")
    if n_samples < 1:
        raise InputError(f"n_samples={n_samples}: at least 1 is needed")
    asked = torch.arange(0, n_subsequences, INDEX_STEP)
    n_contexts = -(-n_samples // len(asked))
    contexts = _unique_contexts(ids, n_contexts, n_subsequences, torch.Generator().manual_seed(seed))
    pieces = contexts.view(n_contexts, n_subsequences, SUBSEQUENCE)[:, asked].flatten(0, 1)[:n_samples]
    context = _with_bos(contexts, bos_id).repeat_interleave(len(asked), dim=0)[:n_samples]
    return CopyingTest(
        tokens=torch.cat([context, pieces[:, :PREFIX]], dim=1),
        suffix=pieces[:, PREFIX:].contiguous(),
        index=asked.repeat(n_contexts)[:n_samples],
    )


def natural_windows(windows: Int[Tensor, "window pos"], d_vocab: int, n_ctx: int) -> Int[Tensor, "window pos"]:
    """Checks windows of natural text against a model's limits and returns them as int64.

    Raises:
        InputError: no window, windows under 4 tokens or longer than n_ctx, or ids outside the vocabulary.
    """
    count, length = windows.shape
    if count == 0:
        raise InputError("natural-text windows: there is none; the held-out text is shorter than one window")
    if not 4 <= length <= n_ctx:
        raise InputError(f"natural-text windows of {length} tokens: 4 to n_ctx={n_ctx} are allowed")
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= d_vocab:
        raise InputError(f"natural-text windows hold token id {low if low < 0 else high}, outside 0 to {d_vocab - 1}")
    return windows.long()


def _as_ids(vocab: Tensor | Sequence[int]) -> Tensor:
    ids = torch.as_tensor(vocab, dtype=torch.long).cpu().unique()
    if len(ids) < 2:
        raise InputError(f"vocab: {len(ids)} distinct token ids to draw from; at least 2 are needed")
    return ids


def _with_bos(tokens: Tensor, bos_id: int | None) -> Tensor:
    if bos_id is None:
        return tokens
    return torch.cat([torch.full((tokens.shape[0], 1), bos_id, dtype=tokens.dtype), tokens], dim=1)


def _unique_contexts(ids: Tensor, n_contexts: int, n_subsequences: int, generator: torch.Generator) -> Tensor:
    """Rejection sampling: contexts are drawn until enough have unique prefixes and suffixes."""
    kept: list[Tensor] = []
    missing = n_contexts
    for _ in range(20):
        picks = torch.randint(0, len(ids), (missing, n_subsequences * SUBSEQUENCE), generator=generator)
        good = picks[_has_unique_parts(picks, n_subsequences)]
        kept.append(good)
        missing -= len(good)
        if not missing:
            return ids[torch.cat(kept)]
    raise InputError(
        f"vocab: {len(ids)} token ids are too few for {n_subsequences} subsequences with unique 12-token prefixes and "
        "6-token suffixes; give more ids"
    )


def _has_unique_parts(contexts: Tensor, n_subsequences: int) -> Tensor:
    """Which contexts have every prefix once among their 12-grams and every suffix once among their 6-grams."""
    n = contexts.shape[0]
    starts = torch.arange(n_subsequences) * SUBSEQUENCE
    sixes = contexts.unfold(1, SUFFIX, 1)  # (context, start, 6)
    name = torch.unique(sixes.reshape(-1, SUFFIX), dim=0, return_inverse=True)[1].view(n, -1)  # (context, start)
    # A run of 12 is two runs of 6, so naming the runs of 6 by integers makes the comparison exact and cheap.
    twelves = name[:, :-SUFFIX] * (int(name.max()) + 1) + name[:, SUFFIX:]
    prefixes, suffixes = twelves[:, starts], name[:, starts + PREFIX]
    once = _occurrences(twelves, prefixes) == 1
    once &= _occurrences(name, suffixes) == 1
    return once.all(dim=1)


def _occurrences(rows: Tensor, wanted: Tensor) -> Tensor:
    """How often each value of `wanted` (row, n) occurs in the same row of `rows` (row, m)."""
    ordered = rows.sort(dim=1).values.contiguous()
    wanted = wanted.contiguous()
    return torch.searchsorted(ordered, wanted, right=True) - torch.searchsorted(ordered, wanted)
