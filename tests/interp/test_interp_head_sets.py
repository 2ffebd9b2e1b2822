"""Smallest sets: exact on circuits whose parts are known, minimal, and better than random ones."""

import math

import pytest
import torch
from handmade import induction_model, llama, saved

from interp.behavior import copying_test
from interp.head_sets import sets_table, smallest_set
from interp.models import load_hooked
from training.errors import InputError

TEST = copying_test(range(1, 600), 128, n_samples=20, seed=0, bos_id=0)


def doubled():
    """Its induction head is there twice: either is enough, and both must go for copying to break."""
    circuit = induction_model()
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        weight = getattr(circuit.blocks[1].attn, name)
        weight[1] = weight[0]
    return circuit


@pytest.mark.parametrize("method", ["zero", "mean"])
def test_the_circuit_is_what_copying_needs(method):
    found = smallest_set(induction_model(), TEST, "keep", method=method)
    assert found.parts == [(0, 0), (1, 0)]
    assert found.reached
    assert found.accuracy >= found.bar == pytest.approx(0.9 * found.clean)
    assert found.control < 0.3  # three other sets with one head a layer, none of which copies
    assert found.control_sets == 3
    assert found.control_best < found.bar


def test_one_head_breaks_a_chain_and_two_a_backup():
    chain = smallest_set(induction_model(), TEST, "remove", method="zero")
    assert len(chain.parts) == 1
    assert chain.parts[0] in [(0, 0), (1, 0)]
    assert chain.accuracy < chain.bar
    backup = doubled()
    assert smallest_set(backup, TEST, "remove", method="zero").parts == [(0, 0)]
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        weight = getattr(backup.blocks[0].attn, name)
        weight[1] = weight[0]
    found = smallest_set(backup, TEST, "remove", method="zero")
    assert found.reached
    assert found.parts in ([(0, 0), (0, 1)], [(1, 0), (1, 1)])
    assert len(smallest_set(backup, TEST, "keep", method="zero").parts) == 2


def test_layers():
    found = smallest_set(induction_model(), TEST, "keep", "layers")
    assert found.parts == [(0, "attention"), (1, "attention")]
    assert math.isnan(found.control)
    removed = smallest_set(induction_model(), TEST, "remove", "layers")
    assert len(removed.parts) == 1
    table = sets_table([found, removed], "mean")
    assert table["search"].to_list() == ["keep", "keep", "remove"]
    assert table["head"].null_count() == 3


def test_a_higher_bar_keeps_the_circuit_too():
    found = smallest_set(induction_model(), TEST, "keep", method="zero", share=0.999)
    assert found.parts == [(0, 0), (1, 0)]


def test_a_model_that_cannot_copy_is_refused(tmp_path):
    torch.manual_seed(0)
    model = load_hooked(saved(llama(), tmp_path), prove=False)
    with pytest.raises(InputError, match="take a later step"):
        smallest_set(model, copying_test(range(2, 90), 128, n_samples=6))
    with pytest.raises(InputError, match="did you mean 'keep'"):
        smallest_set(model, TEST, "kep")
