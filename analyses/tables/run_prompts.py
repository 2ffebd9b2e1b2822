"""The prompts that measure a run: the same for every checkpoint, drawn from seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.analyses.tables.run import Run
from copyscope.interp.models.vocabulary import Vocabulary
from copyscope.interp.prompts.generate import (
    CopyingTest,
    copying_test,
    drawable,
    fitting_length,
    repeated_random_tokens,
)
from copyscope.training.data.batches import windows
from copyscope.training.data.store import open_store
from copyscope.training.errors import InputError

COPYING_SAMPLES = 500
LOSS_PROMPTS = 32
NATURAL_WINDOWS = 64


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The same for every checkpoint of a series, drawn from `seeds`."""

    seeds: tuple[int, ...]
    vocab: Int[Tensor, " vocab"]
    """Token ids that random prompts draw from."""
    bos_id: int | None
    n_ctx: int
    """The longest prompt that every checkpoint takes."""
    test: CopyingTest
    repeated: Int[Tensor, "prompt pos"]
    """Repeated random tokens, for the copying loss."""
    natural: Int[Tensor, "window window_pos"] | None
    """Held-out text, where the run has it."""
    vocabulary: dict[str, Any]
    """What opens the prompts and how many ids they draw from, for the metadata of results."""
    counts: Int[Tensor, " d_vocab"] | None = None
    """Of each token in the training text, where the run has it."""
    tokenizer: Any | None = None
    """That of the series, for tasks with words."""

    @property
    def seed(self) -> int:
        """The first seed."""
        return self.seeds[0]


def run_prompts(
    run: Run,
    n_ctx: int,
    vocabulary: Vocabulary,
    seeds: Sequence[int] | None = None,
    samples: int = COPYING_SAMPLES,
    loss_prompts: int = LOSS_PROMPTS,
) -> Prompts:
    """The prompts that measure this run; random tokens are ranked by the training text's counts where known.

    `vocabulary`: the model's (`interp.models.model_vocabulary`). `seeds` of random tokens (None: `seeds.eval` of the
    run); the prompts of several are put together. `samples` of the copying test and `loss_prompts` of the copying loss
    for each. Held-out windows are those of `seeds.eval`.
    """
    seeds = (run.eval_seed,) if seeds is None else tuple(seeds)
    counts, natural, bos_id = None, None, vocabulary.bos_id
    if run.data:
        store = open_store(run.store)
        if store.index["fingerprint"] != run.data["fingerprint"]:
            raise InputError(
                f"{store.folder}: is not the text this run was trained on; put that folder back, or train again"
            )
        counts = torch.from_numpy(store.counts)
        natural = windows(store.validation, n_ctx - 1, NATURAL_WINDOWS, run.eval_seed)
    vocab = drawable(vocabulary, counts)
    tests = [copying_test(vocab, n_ctx, samples, seed, bos_id) for seed in seeds]
    test = CopyingTest(*(torch.cat(column) for column in zip(*tests, strict=True)))
    length = fitting_length(n_ctx, 100, 2, bos_id)
    repeated = torch.cat([repeated_random_tokens(vocab, length, loss_prompts, seed, bos_id, 2) for seed in seeds])
    return Prompts(
        seeds=seeds,
        vocab=vocab,
        bos_id=bos_id,
        n_ctx=n_ctx,
        test=test,
        repeated=repeated,
        natural=natural,
        vocabulary=vocabulary.facts,
        counts=counts,
    )


def check_context(n_ctx: int, vocab_size: int) -> None:
    """InputError for a model whose context is too short for the copying test, which would show at its first score."""
    try:
        copying_test(range(1, vocab_size), n_ctx, n_samples=1, bos_id=0)
    except InputError as error:
        raise InputError(f"model.n_ctx: {error}") from None
