"""Which measures `score` computes: unless told otherwise, and on request."""

from collections.abc import Iterable

from copyscope.interp.measures.head_score import names_of
from copyscope.interp.measures.heads import MEASURES, ON_REQUEST, check_names
from copyscope.interp.measures.retrieval import RETRIEVAL

DEFAULT_MEASURES = (*MEASURES, *RETRIEVAL)
"""Of heads, from the passes that `score` makes anyway."""
FUNCTION_VECTOR = (*names_of("function_vector"), "function_vector_estimate")
OF_MODEL = ("copied_token_layer", "natural_kl_unigram", "natural_kl_bigram")
"""Of the whole model, each with its standard error."""
SUCCESSOR = names_of("successor_score")
TOKEN_COPYING, CONCEPT_COPYING = names_of("token_copying"), names_of("concept_copying")
OF_PASSES = (*FUNCTION_VECTOR, *SUCCESSOR, *TOKEN_COPYING, *CONCEPT_COPYING)
"""Of heads, on request, each from prompts of its own that a series may have nothing for."""
ALL_MEASURES = (*DEFAULT_MEASURES, *ON_REQUEST, *OF_PASSES, *OF_MODEL)
"""Those and the ones that take passes of their own: `all`."""


def chosen_measures(names: Iterable[str] | None) -> list[str]:
    """The measures that are meant: None for the default ones, `all` for all; the default ones too where only measures
    of the model are named. Raises InputError for an unknown name."""
    names = list(DEFAULT_MEASURES if names is None else names)
    chosen = check_names(ALL_MEASURES if "all" in names else names, ALL_MEASURES, "measure")
    return chosen if {*chosen} - {*OF_MODEL} else [*DEFAULT_MEASURES, *chosen]
