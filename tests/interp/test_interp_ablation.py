"""Ablation: what each method does, that nothing is left behind, and that the sweep equals the plain loop."""

import pytest
import torch
from handmade import induction_model, llama, saved

from interp.ablation import METHODS, ablate_heads, resample_shift, sweep_heads
from interp.behavior import copying_accuracy, copying_hits, copying_loss, copying_test, natural_loss
from interp.models import load_hooked
from interp.prompts import repeated_random_tokens
from training.checkpoints import InputError

TOKENS = torch.randint(0, 90, (4, 20), generator=torch.Generator().manual_seed(0))
OTHERS = torch.randint(0, 90, (3, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[{}, {"num_key_value_heads": 2}], ids=["heads", "grouped"])
def model(tmp_path, request):
    return load_hooked(saved(llama(num_hidden_layers=3, **request.param), tmp_path))


def replaced(model, layer, head, value, extra=()):
    def edit(z, hook):
        z[:, :, head] = value
        return z

    return model.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", edit), *extra])


def test_zero_equals_zeroed_output_weights(model):
    with ablate_heads(model, [(1, 2), (1, 0), (2, 3)]):
        got = model(TOKENS)
    weights = model.W_O.clone()
    for layer, head in ((1, 2), (1, 0), (2, 3)):
        model.blocks[layer].attn.W_O[head] = 0
    assert torch.allclose(got, model(TOKENS), atol=1e-6)
    assert not torch.allclose(weights, model.W_O)


def test_mean_over_a_reference_and_over_the_batch(model):
    _, cache = model.run_with_cache(OTHERS)
    wanted = replaced(model, 1, 2, cache["z", 1][:, :20, 2].mean(dim=0))
    with ablate_heads(model, [(1, 2)], "mean", reference=OTHERS):
        assert torch.allclose(model(TOKENS), wanted, atol=1e-5)
    _, cache = model.run_with_cache(TOKENS)
    wanted = replaced(model, 1, 2, cache["z", 1][:, :, 2].mean(dim=0))
    with ablate_heads(model, [(1, 2)], "mean"):
        assert torch.allclose(model(TOKENS), wanted, atol=1e-5)


def test_resample_takes_whole_prompts(model):
    _, cache = model.run_with_cache(OTHERS)
    options = [replaced(model, 1, 2, cache["z", 1][r, :20, 2]) for r in range(3)]
    with ablate_heads(model, [(1, 2)], "resample", reference=OTHERS, seed=5):
        got = model(TOKENS)
    assert all(any(torch.allclose(row, o[i], atol=1e-5) for o in options) for i, row in enumerate(got))
    _, cache = model.run_with_cache(TOKENS)
    options = [replaced(model, 1, 2, cache["z", 1][r, :, 2]) for r in range(4)]
    with ablate_heads(model, [(1, 2)], "resample", seed=5):
        got = model(TOKENS)
    for i, row in enumerate(got):
        match = [r for r, o in enumerate(options) if torch.allclose(row, o[i], atol=1e-5)]
        assert match
        assert i not in match
    with ablate_heads(model, [(1, 2)], "resample", seed=5):
        assert torch.equal(model(TOKENS), got)


def test_frozen_patterns(model):
    _, cache = model.run_with_cache(TOKENS)
    hold = [(f"blocks.{i}.attn.hook_pattern", lambda p, hook, i=i: cache["pattern", i]) for i in range(3)]
    wanted = replaced(model, 0, 1, 0.0, hold)
    with ablate_heads(model, [(0, 1)], "frozen_patterns"):
        assert torch.allclose(model(TOKENS), wanted, atol=1e-5)
        assert torch.allclose(model(TOKENS[:2]), wanted[:2], atol=1e-5)
    assert not torch.allclose(wanted, replaced(model, 0, 1, 0.0), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(model, method):
    clean = model(TOKENS)
    own = lambda x, hook: None  # noqa: E731
    model.add_hook("hook_embed", own)

    def fail():
        with ablate_heads(model, [(0, 0)], method, reference=TOKENS):
            assert not torch.allclose(model(TOKENS), clean)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    counts = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items() if point.fwd_hooks}
    assert counts == {"hook_embed": 1}
    assert not model._forward_pre_hooks
    assert model.context_level == 0
    assert torch.equal(model(TOKENS), clean)


BAD_HEADS = [
    ([(0, 0), (3, 0)], "zero", r"head \(3, 0\) does not exist: the model has 3 layers × 4 heads"),
    ([(0, -1)], "zero", r"head \(0, -1\) does not exist"),
    ([], "zero", "at least one"),
    ([(0, 0)], "zer", "did you mean 'zero'"),
]


@pytest.mark.parametrize(("heads", "method", "message"), BAD_HEADS)
def test_bad_heads_and_methods(model, heads, method, message):
    with pytest.raises(InputError, match=message), ablate_heads(model, heads, method):
        pass


def test_bad_prompts(model):
    for method in ("mean", "resample"):
        with pytest.raises(InputError, match="single prompt"), ablate_heads(model, [(0, 0)], method):
            model(TOKENS[:1])
    with pytest.raises(InputError, match="20 positions"), ablate_heads(model, [(0, 0)], "mean", reference=TOKENS):
        model(OTHERS)


def test_sweep_equals_the_plain_loop(model, monkeypatch):
    monkeypatch.setattr("interp.runs.PATTERN_ELEMENTS", 200_000)
    test = copying_test(range(2, 90), 128, n_samples=14, seed=2, bos_id=1)
    windows = torch.randint(0, 90, (5, 30), generator=torch.Generator().manual_seed(3))
    prompts = repeated_random_tokens(range(2, 90), 30, 6, bos_id=1)
    methods = ("zero", "mean", "frozen_patterns")
    seen = []
    table = sweep_heads(
        model,
        test,
        methods,
        windows=windows,
        repeated=prompts,
        n_reference=4,
        progress=lambda i, n: seen.append((i, n)),
    )
    value = {(r["layer"], r["head"], r["method"], r["measure"]): r["value"] for r in table.iter_rows(named=True)}
    assert seen[-1][0] == seen[-1][1] == len(seen)
    contexts = torch.cat([test.tokens, test.suffix[:, :-1]], dim=1)[::2]

    slow = {
        "copying_accuracy_exact": (lambda: copying_accuracy(model, test).exact, contexts),
        "copying_accuracy_token": (lambda: copying_accuracy(model, test).token, contexts),
        "copying_loss": (lambda: copying_loss(model, prompts).second_half, prompts),
        "natural_loss": (lambda: natural_loss(model, windows), windows),
    }
    for measure, (read, reference) in slow.items():
        clean = read()
        for method in methods:
            for layer, head in ((0, 1), (1, 3), (2, 0)):
                with ablate_heads(model, [(layer, head)], method, reference=reference[:4]):
                    wanted = read() - clean
                assert value[layer, head, method, measure] == pytest.approx(wanted, abs=1e-5)
    others = [value[1, h, "mean", "natural_loss"] for h in range(4) if h != 2]
    assert value[1, 2, "mean", "natural_loss_control"] == pytest.approx(sum(others) / 3)
    assert value[1, 2, "mean", "control_heads"] == 3
    assert len(value) == 12 * 3 * (4 + 4 + 1)


def test_sweep_resamples_from_other_contexts(model):
    test = copying_test(range(2, 90), 128, n_samples=8, seed=2)
    prompts = repeated_random_tokens(range(2, 90), 30, 5)
    table = sweep_heads(model, test, ("resample",), repeated=prompts, heads=[(1, 2)], n_reference=3, seed=7)
    shift = resample_shift(3, 7)
    assert shift in (1, 2)
    donors = [(i + shift) % 3 for i in range(5)]
    assert all(donor != i for i, donor in enumerate(donors))
    _, cache = model.run_with_cache(prompts)
    before = copying_loss(model, prompts).second_half

    def edit(z, hook):
        z[:, :, 2] = cache["z", 1][donors][:, :, 2]
        return z

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", edit)]):
        wanted = model(prompts, return_type="loss", loss_per_token=True)[:, -30:].mean().item() - before
    assert table.filter(measure="copying_loss")["value"].item() == pytest.approx(wanted, abs=1e-5)


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
    test = copying_test(range(2, 90), 128, n_samples=4, seed=2)
    quick = sweep_heads(model, test, ("zero", "mean"), heads=[(1, 1)])
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: None)]):
        plain = sweep_heads(model, test, ("zero", "mean"), heads=[(1, 1)])
        assert copying_hits(model, test).shape == (4, 6)
    assert quick.drop("value").equals(plain.drop("value"))
    assert torch.allclose(quick["value"].to_torch(), plain["value"].to_torch(), atol=1e-5)
