"""The sweep over heads, layers and pairs: equal to the plain loop however it is packed, with known answers."""

import math
from typing import Any

import polars as pl
import pytest
import torch
from handmade import NO_SPECIAL, induction_model, jitter, llama, needs_hooked, saved
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from copyscope.interp.ablation.donors import donors
from copyscope.interp.ablation.effects import MATCHED, nearest
from copyscope.interp.ablation.hooked_rerun import HookedRuns
from copyscope.interp.ablation.hooks import METHODS, ablate_heads, sweep_heads, sweep_layers, sweep_pairs
from copyscope.interp.ablation.parts import check_parts
from copyscope.interp.ablation.questions import loss_question, questions
from copyscope.interp.ablation.rerun import Rerun
from copyscope.interp.forward.layers import can_run
from copyscope.interp.measures.behavior import copying_accuracy, copying_hits, copying_loss, copying_test, natural_loss
from copyscope.interp.measures.heads import attention_entropy
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import CopyingTest, repeated_random_tokens
from copyscope.training.errors import InputError

TEST = copying_test(range(2, 90), 128, n_samples=13, seed=2, bos_id=1)
PROMPTS = repeated_random_tokens(range(2, 90), 30, 5, bos_id=1)
WINDOWS = torch.randint(0, 90, (5, 30), generator=torch.Generator().manual_seed(3))
SETS = (
    [(0, 1)],
    [(1, 3)],
    [(2, 0)],
    [(0, 1), (1, 2), (2, 3), (0, 3)],
    [(1, "mlp")],
    [(2, "mlp")],
    [(0, "attention"), (2, "mlp"), (2, 1)],
)


def small(kind: str):
    torch.manual_seed(0)
    if kind == "gpt2":
        size: dict[str, Any] = {"n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=90, **size, **NO_SPECIAL)).eval()
    elif kind == "neox":
        size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
        size |= {"max_position_embeddings": 128, "use_parallel_residual": True}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=90, **size, **NO_SPECIAL)).eval()
    else:
        return llama(num_hidden_layers=3, **({"num_key_value_heads": 2} if kind == "grouped" else {}))
    jitter(model)
    return model


@pytest.fixture(params=["llama", "grouped", "gpt2", "neox"])
def any_model(tmp_path, request):
    return load_hooked(saved(small(request.param), tmp_path), prove=False)


@pytest.fixture
def model(tmp_path):
    return load_hooked(saved(small("llama"), tmp_path), prove=False)


@needs_hooked
@pytest.mark.parametrize("method", METHODS)
def test_packed_runs_equal_hooked_ones(any_model, method):
    assert can_run(any_model)
    variants = [check_parts(any_model, parts) for parts in SETS]
    for question in questions(any_model, TEST, PROMPTS, WINDOWS):
        plain = HookedRuns(any_model, question, method, seed=5).answers(variants)
        assert not torch.equal(plain.ablated, plain.clean.expand_as(plain.ablated))
        for max_bytes in (1, 2**28):
            fast = Rerun(any_model, question, method, 5, max_bytes).answers(variants)
            assert torch.allclose(fast.clean, plain.clean, atol=1e-5)
            assert torch.allclose(fast.ablated, plain.ablated, atol=1e-5)


def test_sweep_equals_ablating_and_measuring_one_by_one(model):
    table = sweep_heads(model, TEST, ("frozen_patterns", "mean", "zero"), windows=WINDOWS, repeated=PROMPTS)
    value = {(r["layer"], r["head"], r["method"], r["measure"]): r["value"] for r in table.iter_rows(named=True)}
    slow = {
        "copying_accuracy_exact": (
            lambda: copying_accuracy(model, TEST).exact,
            torch.cat([TEST.tokens, TEST.suffix[:, :-1]], dim=1),
        ),
        "copying_accuracy_token": (
            lambda: copying_accuracy(model, TEST).token,
            torch.cat([TEST.tokens, TEST.suffix[:, :-1]], dim=1),
        ),
        "copying_loss": (lambda: copying_loss(model, PROMPTS).second_half, PROMPTS),
        "natural_loss": (lambda: natural_loss(model, WINDOWS), WINDOWS),
    }
    for measure, (read, reference) in slow.items():
        clean = read()
        for method in ("zero", "mean", "frozen_patterns"):
            for layer, head in ((0, 1), (1, 3), (2, 0)):
                with ablate_heads(model, [(layer, head)], method, reference=reference):
                    wanted = read() - clean
                assert value[layer, head, method, measure] == pytest.approx(wanted, abs=1e-5)
    others = [value[1, h, "mean", "natural_loss"] for h in range(4) if h != 2]
    assert value[1, 2, "mean", "natural_loss_control"] == pytest.approx(sum(others) / 3)
    assert value[1, 2, "mean", "control_heads"] == 3
    assert len(value) == 12 * 3 * (4 * 4 + 2)
    patterns = model.run_with_cache(PROMPTS)[1]
    entropy = {
        (layer, head): float(attention_entropy(patterns["pattern", layer])[head])
        for layer in range(3)
        for head in range(4)
    }
    near = sorted(entropy, key=lambda head: abs(entropy[head] - entropy[1, 2]))[1 : MATCHED + 1]
    wanted = sum(value[*head, "zero", "copying_loss"] for head in near) / MATCHED
    assert value[1, 2, "zero", "copying_loss_matched"] == pytest.approx(wanted)
    assert value[1, 2, "zero", "matched_heads"] == MATCHED
    assert table["method"][0] == "zero"


def test_matched_heads_are_the_nearest_in_entropy_of_any_layer():
    entropy = {(0, 0): 1.0, (0, 1): 1.1, (1, 0): 3.0, (1, 1): 1.2, (2, 0): 0.9}
    assert nearest(entropy)[0, 0] == [(2, 0), (0, 1), (1, 1)]
    assert nearest(entropy, 1)[1, 0] == [(1, 1)]
    assert nearest({(0, 0): 1.0}) == {(0, 0): []}


def test_a_single_swept_head_has_no_controls(model):
    table = sweep_heads(model, TEST, ("zero",), repeated=PROMPTS, heads=[(1, 2)])
    assert not any(name.endswith(("_control", "_matched")) for name in table["measure"])
    assert table.filter(pl.col("measure").str.ends_with("_heads"))["value"].to_list() == [0, 0]


def test_resampling_takes_the_named_donor(model):
    table = sweep_heads(model, TEST, ("resample",), repeated=PROMPTS, heads=[(1, 2)], seed=7)
    donor = donors(5, 7)
    _, cache = model.run_with_cache(PROMPTS)
    before = copying_loss(model, PROMPTS).second_half

    def edit(z, hook):
        z[:, :, 2] = cache["z", 1][donor][:, :, 2]
        return z

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", edit)]):
        wanted = model(PROMPTS, return_type="loss", loss_per_token=True)[:, -30:].mean().item() - before
    assert table.filter(measure="copying_loss")["value"].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("n", [2, 3, 8, 9])
def test_every_row_has_another_as_its_donor(n):
    for seed in range(5):
        donor = donors(n, seed)
        assert sorted(donor.tolist()) == list(range(n))
        assert (donor != torch.arange(n)).all()


def test_standard_errors_are_those_of_the_difference_over_prompts(model):
    question = loss_question(model, "copying_loss", PROMPTS, 30)
    answers = HookedRuns(model, question, "zero", 0).answers([check_parts(model, [(0, 1)])])
    change = (answers.ablated[0] - answers.clean)[:, 0]
    table = sweep_heads(model, TEST, heads=[(0, 1)], repeated=PROMPTS)
    wanted = (change.var(correction=1) / 5) ** 0.5
    assert table.filter(measure="copying_loss_se")["value"].item() == pytest.approx(wanted.item(), rel=1e-4)
    one = sweep_heads(model, CopyingTest(*(t[:1] for t in TEST)), heads=[(0, 1)], repeated=PROMPTS)
    assert math.isnan(one.filter(measure="copying_accuracy_token_se")["value"].item())


def test_layers(model):
    table = sweep_layers(model, TEST, ("mean",), repeated=PROMPTS)
    assert table.height == 6 * 3 * 2
    clean = copying_loss(model, PROMPTS).second_half
    for layer, part in ((1, "attention"), (2, "mlp")):
        with ablate_heads(model, [(layer, part)], "mean", reference=PROMPTS):
            wanted = copying_loss(model, PROMPTS).second_half - clean
        got = table.filter(layer=layer, part=part, measure="copying_loss")["value"].item()
        assert got == pytest.approx(wanted, abs=1e-5)


def two_copies():
    """The induction circuit with its induction head twice over: either does without the other."""
    circuit = induction_model()
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        weight = getattr(circuit.blocks[1].attn, name)
        weight[1] = weight[0]
    return circuit


def test_pairs_show_backup_heads():
    circuit = two_copies()
    test = copying_test(range(1, 600), 128, n_samples=20, seed=0, bos_id=0)
    prompts = repeated_random_tokens(range(1, 600), 40, 6, bos_id=0)
    table = sweep_pairs(circuit, test, [(1, 1), (1, 0), (0, 0)], "zero", repeated=prompts)
    accuracy = {
        (r["layer"], r["head"], r["other_layer"], r["other_head"]): r
        for r in table.filter(measure="copying_accuracy_token").iter_rows(named=True)
    }
    backup = accuracy[1, 0, 1, 1]
    assert abs(backup["first"]) < 0.05
    assert backup["value"] < -0.8
    assert backup["synergy"] == pytest.approx(backup["value"] - backup["first"] - backup["second"])
    assert backup["synergy_se"] < 0.1
    chain = accuracy[0, 0, 1, 0]  # one path: broken once, it cannot break more
    assert abs(chain["synergy"]) < 0.05
    with pytest.raises(InputError, match="two different"):
        sweep_pairs(circuit, test, [(0, 0), (0, 0)])


def test_ablating_either_head_of_the_circuit_kills_copying():
    circuit = induction_model()
    test = copying_test(range(1, 600), 128, n_samples=20, seed=0, bos_id=0)
    clean = copying_accuracy(circuit, test).token
    assert clean > 0.85
    table = sweep_heads(circuit, test).filter(measure="copying_accuracy_token")
    effect = {(r["layer"], r["head"]): r["value"] for r in table.iter_rows(named=True)}
    assert clean + effect[0, 0] < 0.1
    assert clean + effect[1, 0] < 0.1
    assert effect[0, 1] == effect[1, 1] == 0
    # The earlier head acts through the later one's pattern alone: with patterns held, removing it does nothing.
    held = sweep_heads(circuit, test, ("frozen_patterns",), heads=[(0, 0)]).filter(measure="copying_accuracy_token")
    assert held["value"].item() == pytest.approx(0)


def test_sweep_under_hooks_takes_the_plain_way(model):
    seen: list[tuple[int, int]] = []
    quick = sweep_heads(
        model, TEST, ("zero", "resample"), heads=[(1, 1)], progress=lambda what, i, n, note="": seen.append((i, n))
    )
    assert seen[-1][0] == seen[-1][1]
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: None)]):
        assert not can_run(model)
        plain = sweep_heads(model, TEST, ("zero", "resample"), heads=[(1, 1)])
        assert copying_hits(model, TEST).forced.shape == (13, 6)
    assert quick.drop("value").equals(plain.drop("value"))
    assert torch.allclose(quick["value"].to_torch(), plain["value"].to_torch(), atol=1e-5)


def test_bad_input(model):
    with pytest.raises(InputError, match="at least one"):
        sweep_heads(model, TEST, heads=[])
    with pytest.raises(InputError, match="L3H0"):
        sweep_heads(model, TEST, heads=[(3, 0)])
    with pytest.raises(InputError, match="2 different contexts"):
        sweep_heads(model, TEST, ("resample",), heads=[(0, 0)], repeated=PROMPTS[:1])
    with pytest.raises(InputError, match="max_bytes=0"):
        sweep_heads(model, TEST, heads=[(0, 0)], max_bytes=0)
