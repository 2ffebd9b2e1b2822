"""Smallest sets: exact on circuits whose parts are known, minimal, and better than random ones."""

import math
from typing import Any

import pytest
import torch
from handmade import hooked, induction_model, llama, needs_hooked, saved

from copyscope.interp.ablation.hooked_rerun import HookedRuns
from copyscope.interp.ablation.parts import all_heads, check_parts
from copyscope.interp.ablation.questions import copying_question, default_repeated, loss_question
from copyscope.interp.ablation.rerun import Rerun
from copyscope.interp.ablation.smallest_sets import sets_table, smallest_set
from copyscope.interp.measures.behavior import copying_accuracy, copying_test
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.errors import InputError

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


def wide():
    """Four heads a layer, of which the last ones are the circuit; the others write noise."""
    small = induction_model(64)
    config = type(small.cfg).from_dict(small.cfg.to_dict() | {"n_heads": 4})
    model = hooked(config)
    generator = torch.Generator().manual_seed(1)
    theirs = dict(small.named_parameters())
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("W_Q", "W_K", "W_V", "W_O"):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
            parameter[3] = theirs[name][0]
        elif parameter.shape == theirs[name].shape:
            parameter.copy_(theirs[name])
    return model


def plain_greedy(model, test, search, method):
    """One head at a time, every candidate on the whole test: no packing, no shared runs, no screening."""
    units = list(all_heads(model))
    runs = HookedRuns(model, copying_question(model, test), method, 0)

    def values(sets):
        found = runs.answers([check_parts(model, parts) for parts in sets]).ablated[..., 1]
        return ((found * runs.question.weight).sum(dim=1) / runs.question.weight.sum()).tolist()

    clean, out = copying_accuracy(model, test).token, []
    while True:
        rest = [u for u in units if u not in out]
        found = dict(zip(values([[*out, u] for u in rest]), rest, strict=False))
        chosen = (max if search == "keep" else min)(found)
        if search == "keep" and chosen < 0.9 * clean:
            return rest
        out.append(found[chosen])
        if search == "remove" and chosen < 0.1 * clean:
            return sorted(out)


@pytest.mark.parametrize(("search", "method"), [("keep", "zero"), ("keep", "mean"), ("remove", "resample")])
def test_a_search_that_screens_finds_what_plain_greedy_search_finds(search, method):
    model = wide()
    test = copying_test(range(1, 600), 64, n_samples=12, seed=0, bos_id=0)
    seen: list[tuple[int, int]] = []
    found = smallest_set(
        model,
        test,
        search,
        method=method,
        screened=3,
        n_control=1,
        progress=lambda what, done, total, note="": seen.append((done, total)),
    )
    assert found.parts == plain_greedy(model, test, search, method)
    assert seen == sorted(seen)
    assert seen[-1] == (8, 8)


@needs_hooked
@pytest.mark.parametrize("method", ["zero", "mean", "mean_over_positions"])
def test_a_shared_base_changes_nothing(method, tmp_path):
    model: Any = load_hooked(saved(llama(num_hidden_layers=3), tmp_path), prove=False)
    test = copying_test(range(2, 90), 128, n_samples=9, seed=2, bos_id=1)
    base = check_parts(model, [(0, 1), (1, "mlp"), (2, 2), (1, 3)])
    sets = [check_parts(model, parts) for parts in ([(0, 0)], [(1, 2)], [(2, 1), (1, 1)], [(2, "mlp")])]
    repeated = default_repeated(model, test)
    for question in (copying_question(model, test), loss_question(model, "copying_loss", repeated, 40)):
        runs = Rerun(model, question, method, 0, 2**24)
        shared = runs.answers(sets, base=base)
        whole = runs.answers([base, *(parts.union(base) for parts in sets)]).ablated
        assert torch.allclose(shared.clean, whole[0], atol=1e-5)
        assert torch.allclose(shared.ablated, whole[1:], atol=1e-5)


def test_a_model_that_cannot_copy_is_refused(tmp_path):
    torch.manual_seed(0)
    model: Any = load_hooked(saved(llama(), tmp_path), prove=False)
    with pytest.raises(InputError, match="take a later step"):
        smallest_set(model, copying_test(range(2, 90), 128, n_samples=6))
    with pytest.raises(InputError, match="did you mean 'keep'"):
        smallest_set(model, TEST, "kep")
