"""The successor score: a head that writes the next entry, one that writes the entry itself, and a slow version."""

from typing import Any

import pytest
import torch
from handmade import induction_model, llama, needs_hooked, saved

from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.measures.successors import successor_lists, successor_score
from copyscope.interp.models.hooked import load_hooked
from copyscope.training.errors import InputError

LETTERS = torch.arange(10, 20)
DIGITS = torch.arange(30, 36)


def test_the_head_that_writes_the_next_entry() -> None:
    model: Any = induction_model(n_ctx=64, d_vocab=60)  # codes without overlap
    code = model.embed.W_E[:, :64]
    for tokens in (LETTERS, DIGITS):
        # (0, 1) writes the code of the entry that follows; (1, 1) that of the entry itself.
        model.blocks[0].attn.W_V[1, :64] += code[tokens[:-1]].T @ code[tokens[1:]]
    model.blocks[0].attn.W_O[1, :, :64] = torch.eye(64)
    model.blocks[1].attn.W_V[1, :64] = torch.eye(64)
    model.blocks[1].attn.W_O[1, :, :64] = torch.eye(64)
    score = successor_score(model, [LETTERS, DIGITS])
    assert score.value[0, 1] == 1
    assert score.null[0, 1] == 0
    assert score.p[0, 1] < 1e-6
    assert score.value[1, 1] == score.value[0, 0] == 0


@needs_hooked  # of a bridge the first MLP is left out
def test_equals_a_loop_over_entries(tmp_path) -> None:
    model: Any = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    w, hits = head_weights(model).folded(), torch.zeros(2, 4)
    for i in range(9):
        x = model.W_E[LETTERS[i]]
        later = x + model.blocks[0].mlp(model.blocks[0].ln2(x[None, None]))[0, 0]
        for layer in range(2):
            for head in range(4):
                logits = (later if layer else x) @ w.W_V[layer, head] @ w.W_O[layer, head] @ w.W_U[:, LETTERS]
                hits[layer, head] += logits.argmax() == i + 1
    assert torch.allclose(successor_score(model, [LETTERS]).value.float(), hits / 9)


def test_lists_are_the_longest_stretches_of_single_tokens() -> None:
    letters = {letter: [i] for i, letter in enumerate("ABCDEGHIJKLM")}  # without F

    def encode(text: str) -> list[int]:
        return letters.get(text.strip(), [98, 99])

    (tokens,) = successor_lists(encode)
    assert tokens.tolist() == list(range(5, 12))
    with pytest.raises(InputError, match="single tokens"):
        successor_lists(lambda text: [1, 2])
