"""Every measure gives the same values on a TransformerBridge in compatibility mode, which is what 4.x has."""

import pytest
import torch
from handmade import llama
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

from copyscope.interp.ablation.hooks import METHODS, ablate_heads, sweep_heads
from copyscope.interp.measures.behavior import copying_accuracy, copying_loss, copying_test, icl_score
from copyscope.interp.measures.circuits import composition_table, model_copying_score
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens

VOCAB = range(5, 85)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    reference = llama(num_key_value_heads=2)
    reference.save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(90)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w1", pad_token="w2").save_pretrained(
        path
    )
    bridge = TransformerBridge.boot_transformers(str(path), device="cpu")
    bridge.enable_compatibility_mode(no_processing=True)
    return load_hooked(path), bridge


def test_tokenizer_is_attached(pair):
    hooked, _ = pair
    assert hooked.tokenizer is not None
    assert hooked.to_single_token("w7") == 7


def test_scores(pair):
    hooked, bridge = (score_heads(m, vocab=VOCAB, n_prompts=3) for m in pair)
    assert hooked.drop("value").equals(bridge.drop("value"))
    assert torch.allclose(hooked["value"].to_torch(), bridge["value"].to_torch(), atol=1e-4)
    prompts = repeated_random_tokens(VOCAB, 25, 2, repeats=1)
    one, two = pair
    assert torch.allclose(model_copying_score(one, prompts), model_copying_score(two, prompts), atol=1e-4)
    compositions = [composition_table(m)["value"].to_torch() for m in pair]
    assert torch.allclose(compositions[0], compositions[1], atol=1e-4)


def test_behaviour(pair):
    hooked, bridge = pair
    test = copying_test(VOCAB, 128, n_samples=6)
    assert copying_accuracy(hooked, test).by_index.equals(copying_accuracy(bridge, test).by_index)
    prompts = repeated_random_tokens(VOCAB, 30, 2)
    assert copying_loss(hooked, prompts) == pytest.approx(copying_loss(bridge, prompts), abs=1e-4)
    ours, theirs = vars(icl_score(hooked, prompts)), vars(icl_score(bridge, prompts))
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_ablation(pair, method):
    tokens = repeated_random_tokens(VOCAB, 10, 3)
    logits, losses = [], []
    for model in pair:
        with torch.no_grad(), ablate_heads(model, [(0, 1), (1, 2)], method, reference=tokens, seed=1):
            logits.append(model(tokens))
            # A measure ends a bridge's pass after the last block, which the clean pass of frozen patterns comes before.
            losses.append(copying_loss(model, tokens).second_half)
    assert torch.allclose(*logits, atol=1e-4)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert abs(losses[1] - copying_loss(pair[1], tokens).second_half) > 1e-3


def test_sweep(pair):
    test = copying_test(VOCAB, 128, n_samples=4)
    hooked, bridge = (sweep_heads(m, test, heads=[(0, 1), (1, 3)]) for m in pair)
    assert hooked.drop("value").equals(bridge.drop("value"))
    assert torch.allclose(hooked["value"].to_torch(), bridge["value"].to_torch(), atol=1e-4)
