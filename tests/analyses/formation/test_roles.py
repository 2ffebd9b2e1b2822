"""What kinds of head a head is: planted curves of several measures, limited and not."""

import numpy as np
import polars as pl
from synthetic_run import checkpoint_steps, rise, series_table

from copyscope.analyses.formation.roles import ROLES, head_roles

STEPS = checkpoint_steps(24)
AT = np.array(STEPS, dtype=float)
NAMES = [(layer, head) for layer in range(3) for head in range(3)]


def curves(measure: str, size: float, **planted: np.ndarray) -> pl.DataFrame:
    rng = np.random.default_rng(len(measure))
    return series_table(
        {
            (layer, head): planted.get(f"L{layer}H{head}", 0 * AT) + 0.01 * size * rng.normal(size=len(AT))
            for layer, head in NAMES
        },
        STEPS,
        measure,
    )


def test_a_head_is_of_every_kind_that_it_became_or_was() -> None:
    up = rise(AT, 600, 0.1)
    vector = {"L2H0": 0.1 * up, "L1H1": 0.09 * up}
    p = {(layer, head): 0 * AT + (0.001 if (layer, head) == (2, 0) else 0.5) for layer, head in NAMES}
    heads = pl.concat(
        [
            curves("previous_token", 1, L0H1=0.9 * up),
            curves("prefix_matching_sum", 1, L2H0=0.8 * up, L2H1=0.7 * up * (AT < 2000)),
            curves("bos_sink", 1, L2H0=0.6 + 0 * AT, L1H2=0.6 * up),
            curves("function_vector", 0.1, **vector),
            series_table(dict.fromkeys(NAMES, 0 * AT), STEPS, "function_vector_null"),
            series_table(p, STEPS, "function_vector_p"),
        ]
    )
    found = head_roles(heads)
    assert list(found) == ["previous_token", "prefix_matching_sum", "function_vector", "bos_sink"]
    assert set(found) <= set(ROLES)
    kinds = {measure: set(table.select("layer", "head", "status").rows()) for measure, table in found.items()}
    assert kinds["previous_token"] == {(0, 1, "formed")}
    assert kinds["prefix_matching_sum"] == {(2, 0, "formed"), (2, 1, "formed, fell back")}
    assert kinds["bos_sink"] == {(2, 0, "from the start"), (1, 2, "formed")}
    assert kinds["function_vector"] == {(2, 0, "formed")}  # the other is as high, and not above its null
    assert head_roles(heads.filter(pl.col("step") < 2)) == {}
