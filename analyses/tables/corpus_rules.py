"""How far a run's model is from predicting by the counts of its own training text."""

import numpy as np

from copyscope.analyses.tables.run import Run
from copyscope.analyses.tables.run_prompts import Prompts
from copyscope.interp.measures.behavior import standard_error
from copyscope.interp.measures.text_rules import PairCounts, pair_counts, rule_divergences, unigram_shares
from copyscope.interp.models.lens import HookedModel
from copyscope.training.data.store import open_store
from copyscope.training.errors import InputError

WINDOWS = 16
"""Windows of held-out text that distributions are compared on."""
MAX_TOKENS = 20_000_000
"""Tokens of the training text, from its start, whose pairs are counted."""
_PIECE = 1 << 21


class CorpusRules:
    """Counts of a run's training text, made once for all its checkpoints."""

    def __init__(self) -> None:
        self._pairs: PairCounts | None = None

    def divergences(self, run: Run, model: HookedModel, prompts: Prompts) -> dict[str, float]:
        """Measures of the model: KL divergence from the unigram and bigram rules, in nats, with standard errors over
        windows. Raises InputError for a series whose text is not known."""
        if prompts.natural is None or prompts.counts is None:
            raise InputError("needs the run's training text, which is not known of this series")
        windows = prompts.natural[:WINDOWS].long()
        if self._pairs is None:
            train = open_store(run.store).train
            end = min(len(train), MAX_TOKENS)
            pieces = [np.asarray(train[start : start + _PIECE]) for start in range(0, end, _PIECE)]
            self._pairs = pair_counts(pieces, windows[:, :-1].unique().numpy(), len(prompts.counts))
        found = rule_divergences(model, windows, unigram_shares(prompts.counts), self._pairs)
        values: dict[str, float] = {}
        for name, divergence in found._asdict().items():
            values |= {
                f"natural_kl_{name}": divergence.mean().item(),
                f"natural_kl_{name}_se": standard_error(divergence),
            }
        return values
