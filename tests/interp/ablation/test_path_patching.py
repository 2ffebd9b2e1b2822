"""Path patching: against TransformerLens' split inputs, and on a circuit whose one path is known."""

from typing import Any

import pytest
import torch
from handmade import induction_model, llama, needs_hooked, saved
from transformers import Gemma2Config, Gemma2ForCausalLM

from copyscope.interp.ablation.donors import donors
from copyscope.interp.ablation.path_patching import INTO, METHODS, patch_paths, paths_beside_composition
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.training.errors import InputError

PROMPTS = repeated_random_tokens(range(2, 90), 20, 5, bos_id=1)

pytestmark = needs_hooked


@pytest.fixture
def model(tmp_path):
    return load_hooked(saved(llama(num_hidden_layers=3), tmp_path), prove=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("into", INTO)
def test_equals_a_version_with_split_inputs(model, into, method):
    sources, readers = [(0, 1), (1, 2), (2, 0)], [(1, 3), (2, 1)]
    table = patch_paths(model, sources, readers, PROMPTS, into=into, method=method, seed=3, max_bytes=2**20)
    pairs = [((0, 1), (1, 3)), ((0, 1), (2, 1)), ((1, 2), (2, 1))]
    found = table.select("source_layer", "source_head", "layer", "head").unique().rows()
    assert set(found) == {(*s, *r) for s, r in pairs}
    _, cache = model.run_with_cache(PROMPTS)

    def loss():
        return model(PROMPTS, return_type="loss", loss_per_token=True)[:, -20:].double().mean().item()

    clean = loss()
    model.set_use_split_qkv_input(True)
    for source, reader in pairs:
        z = cache["z", source[0]][:, :, source[1]]
        new = {
            "zero": torch.zeros_like(z),
            "mean": z.mean(dim=0).expand_as(z),
            "mean_over_positions": z.mean(dim=(0, 1)).expand_as(z),
            "resample": z[donors(5, 3)],
        }[method]
        delta = (new - z) @ model.W_O[source]
        seen = []

        def edit(x, hook, delta=delta, reader=reader):
            x = x.clone()
            x[:, :, reader[1]] += delta
            return x

        hooks = [
            (f"blocks.{reader[0]}.hook_{into[0]}_input", edit),
            (f"blocks.{reader[0]}.attn.hook_pattern", lambda p, hook, seen=seen: seen.append(p)),
        ]
        with model.hooks(fwd_hooks=hooks):
            wanted = loss() - clean
        rows = table.filter(source_layer=source[0], source_head=source[1], layer=reader[0], head=reader[1])
        value = dict(rows.select("measure", "value").iter_rows())
        assert value["copying_loss"] == pytest.approx(wanted, abs=1e-5)
        queries = torch.arange(21, 40)  # the last query is not read
        attention = seen[0][:, reader[1], queries, queries - 19].mean().item()
        before = cache["pattern", reader[0]][:, reader[1], queries, queries - 19].mean().item()
        assert value["induction_attention"] == pytest.approx(attention - before, abs=1e-5)
        assert value["induction_attention_clean"] == pytest.approx(before, abs=1e-5)


def test_the_induction_circuit_is_one_path_into_keys():
    circuit = induction_model()
    prompts = repeated_random_tokens(range(1, 600), 40, 4, bos_id=0)
    table = patch_paths(circuit, [(0, 0), (0, 1)], [(1, 0), (1, 1)], prompts, method="zero")
    wide = paths_beside_composition(circuit, table)
    first = wide.row(0, named=True)
    assert (first["source_layer"], first["source_head"], first["layer"], first["head"]) == (0, 0, 1, 0)
    assert first["copying_loss"] > 3
    assert first["induction_attention"] < -0.8
    assert first["k_composition"] > 0
    assert wide["copying_loss"][1:].abs().max() < 1e-5  # type: ignore[operator]
    for into in ("queries", "values"):
        other = patch_paths(circuit, [(0, 0)], [(1, 0)], prompts, method="zero", into=into)
        assert other.filter(measure="copying_loss")["value"].item() == pytest.approx(0, abs=1e-4)


def test_bad_input(model):
    with pytest.raises(InputError, match="earlier layer"):
        patch_paths(model, [(2, 0)], [(1, 0)], PROMPTS)
    with pytest.raises(InputError, match="did you mean 'keys'"):
        patch_paths(model, [(0, 0)], [(1, 0)], PROMPTS, into="key")
    with (
        model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: None)]),
        pytest.raises(InputError, match="take hooks off"),
    ):
        patch_paths(model, [(0, 0)], [(1, 0)], PROMPTS)


def test_a_bridge_is_called_one(tmp_path):
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "head_dim": 8,
    }
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    bridge = load_hooked(saved(Gemma2ForCausalLM(Gemma2Config(**sizes)), tmp_path), prove=False)
    with pytest.raises(InputError, match="TransformerBridge"):
        patch_paths(bridge, [(0, 0)], [(1, 0)], repeated_random_tokens(range(3, 60), 10, 2))
