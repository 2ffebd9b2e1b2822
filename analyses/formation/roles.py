"""What kinds of head each head became, and when: a head can be several things."""

import polars as pl

from copyscope.analyses.formation.heads import FORMATION_SCHEMA, formation_steps
from copyscope.analyses.formation.nulls import LEVEL
from copyscope.analyses.words.glossary import describe
from copyscope.training.errors import InputError

ROLES = {
    "previous_token": "previous-token head",
    "duplicate_token": "duplicate-token head",
    "prefix_matching_sum": "induction head",
    "anti_induction": "anti-induction head",
    "ngram_induction": "n-gram induction head",
    "retrieval_score": "retrieval head",
    "copy_suppression": "copy-suppression head",
    "function_vector": "function-vector head",
    "token_copying": "token-copying head",
    "concept_copying": "concept-copying head",
    "bos_sink": "attention sink",
}
"""Measures of heads that make a kind, and what such a head is called."""
START = "from the start"


def role_steps(heads: pl.DataFrame, measure: str) -> pl.DataFrame:
    """`formation_steps` of the heads that are of the kind `measure` speaks of, those that were from the start included.

    A measure without an upper limit (in nats or logits) has no top to take a share of: its highest value stands for
    it, and only heads above the null at the last step count (corrected p at most 0.05). Raises InputError as
    `formation_steps` does.
    """
    if describe(measure).high is None:
        heads = _as_shares(heads, measure)
        if heads.is_empty():
            return pl.DataFrame(schema=FORMATION_SCHEMA)
    steps = formation_steps(heads, measure)
    return steps.filter(pl.col("formed") | (pl.col("status") == START))


def head_roles(heads: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """`role_steps` by measure, in the order of `ROLES`, of those that a table of heads has; empty with too few
    checkpoints."""
    known, out = set(heads["measure"].unique()), {}
    for measure in ROLES:
        if measure in known:
            try:
                out[measure] = role_steps(heads, measure)
            except InputError:
                continue
    return out


def _as_shares(heads: pl.DataFrame, measure: str) -> pl.DataFrame:
    """The rows of a measure and its calibrations over its highest value, of heads above the null; empty without any."""
    of_head = ["layer", "head"]
    last = heads.filter((pl.col("measure") == f"{measure}_p") & (pl.col("step") == pl.col("step").max()))
    above = last.filter(pl.col("value") <= LEVEL).select(of_head)
    rows = heads.filter(pl.col("measure").is_in([measure, f"{measure}_null", f"{measure}_se"]))
    top = rows.filter(pl.col("measure") == measure)["value"].max()
    if above.is_empty() or not isinstance(top, float) or top <= 0:
        return heads.clear()
    return rows.join(above, on=of_head, how="semi").with_columns(pl.col("value") / top)
