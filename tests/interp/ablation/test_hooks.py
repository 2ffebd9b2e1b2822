"""Interventions: what each method does, against versions written out by hand, and that nothing is left behind."""

import pytest
import torch
from handmade import llama, needs_hooked, saved
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from copyscope.interp.ablation.hooks import METHODS, ablate_heads
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.errors import InputError

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


def test_mean_over_positions(model):
    _, cache = model.run_with_cache(OTHERS)
    wanted = replaced(model, 1, 2, cache["z", 1][:, :, 2].mean(dim=(0, 1)))
    with ablate_heads(model, [(1, 2)], "mean_over_positions", reference=OTHERS):
        assert torch.allclose(model(TOKENS), wanted, atol=1e-5)
    _, cache = model.run_with_cache(TOKENS[:1])
    wanted = replaced(model, 1, 2, cache["z", 1][:, :, 2].mean(dim=(0, 1)))[:1]
    with ablate_heads(model, [(1, 2)], "mean_over_positions"):
        assert torch.allclose(model(TOKENS[:1]), wanted, atol=1e-5)


def test_whole_layers(model):
    with ablate_heads(model, [(1, "attention")]):
        got = model(TOKENS)
    with ablate_heads(model, [(1, h) for h in (3, 0, 1, 2)]):
        assert torch.equal(model(TOKENS), got)
    _, cache = model.run_with_cache(OTHERS)
    values = {"zero": 0.0, "mean": cache["mlp_out", 1][:, :20].mean(dim=0)}
    for method, value in values.items():

        def edit(x, hook, value=value):
            return torch.zeros_like(x) + value

        wanted = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_mlp_out", edit)])
        with ablate_heads(model, [(1, "mlp")], method, reference=OTHERS):
            assert torch.allclose(model(TOKENS), wanted, atol=1e-5)


def test_resample_never_takes_the_input_itself(model):
    _, cache = model.run_with_cache(TOKENS)
    options = [replaced(model, 1, 2, cache["z", 1][r, :, 2]) for r in range(4)]
    for seed in range(8):
        with ablate_heads(model, [(1, 2)], "resample", reference=TOKENS, seed=seed):
            got = model(TOKENS)
        for i, row in enumerate(got):
            assert [r for r, o in enumerate(options) if torch.allclose(row, o[i], atol=1e-5)] not in ([], [i])
    with (
        pytest.raises(InputError, match="at least 2 different prompts"),
        ablate_heads(model, [(1, 2)], "resample", reference=TOKENS[:1]),
    ):
        model(TOKENS)


@needs_hooked
@pytest.mark.parametrize("method", ["mean", "resample"])
def test_a_cache_goes_on_at_its_position(model, method):
    """Token by token with a key-value cache gives what one pass over the whole prompt gives."""
    with ablate_heads(model, [(0, 2), (1, 1), (1, "mlp")], method, reference=OTHERS, seed=3):
        whole = model(TOKENS)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, len(TOKENS))
    parts = []
    with ablate_heads(model, [(0, 2), (1, 1), (1, "mlp")], method, reference=OTHERS, seed=3):
        for piece in TOKENS.split([9, 1, 10], dim=1):
            parts.append(model(piece, past_kv_cache=cache, attention_mask=torch.ones_like(piece)))
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)


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
    count = lambda: {name: len(point.fwd_hooks) for name, point in model.hook_dict.items() if point.fwd_hooks}  # noqa: E731
    before = count()

    def fail():
        with ablate_heads(model, [(0, 0)], method, reference=TOKENS):
            assert not torch.allclose(model(TOKENS), clean)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert count() == before
    assert before["hook_embed"] == 1
    assert not model._forward_pre_hooks
    assert model.context_level == 0
    assert torch.equal(model(TOKENS), clean)


BAD_HEADS = [
    ([(0, 0), (3, 0)], "zero", "L3H0"),
    ([(0, -1)], "zero", "L0H-1"),
    ([], "zero", "at least one"),
    ([(0, 0)], "zer", "did you mean 'zero'"),
    ([(0, "mpl")], "zero", r"\(0, 'mpl'\) does not exist"),
    ([(3, "mlp")], "zero", r"layers 0 to 2"),
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
