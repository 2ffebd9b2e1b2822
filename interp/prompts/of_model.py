"""Prompts for a model as loaded: from its own vocabulary, opened by its BOS, as long as its context allows."""

from jaxtyping import Int
from torch import Tensor

from copyscope.interp.models.hooked import HookedModel, model_vocabulary
from copyscope.interp.prompts.generate import CopyingTest, drawable
from copyscope.interp.prompts.generate import copying_test as draw_copying_test


def bos_id(model: HookedModel) -> int | None:
    """The token that opens the model's prompts (`interp.models.vocabulary`); None where it was trained without."""
    return model_vocabulary(model).bos_id


def copying_test(
    model: HookedModel,
    n_samples: int = 500,
    seed: int = 0,
    *,
    counts: Int[Tensor, " d_vocab"] | None = None,
) -> CopyingTest:
    """The copying test for this model (definition 9): random tokens of its vocabulary, its BOS, what fits n_ctx.

    `counts`: how often each token occurs in the training text, where that is known (`copyscope score` knows it for
    runs of its own); it ranks the tokens by frequency. Without it their ids stand in for the rank. Errors as in
    `interp.prompts.generate.copying_test`, which takes the vocabulary itself.
    """
    vocab = drawable(model_vocabulary(model), counts)
    return draw_copying_test(vocab, model.cfg.n_ctx, n_samples, seed, bos_id(model))
