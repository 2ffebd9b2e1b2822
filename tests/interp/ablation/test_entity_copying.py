"""Token- and concept-copying scores: heads built to do the one or the other, packed and through hooks; the prompts."""

from collections.abc import Callable

import pytest
import torch
from handmade import ahead_model, induction_model, llama, saved

from copyscope.interp.ablation.entity_copying import (
    HALF,
    REPEATED,
    EntityPrompts,
    causal_copying,
    concept_copying_prompts,
    token_copying_prompts,
)
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.tasks.questions import Source
from copyscope.training.errors import InputError


def encode(text: str) -> list[int]:
    """A token for every two letters."""
    return [1 + hash_of(text[i : i + 2]) for i in range(0, len(text), 2)]


def hash_of(letters: str) -> int:
    return sum(ord(letter) * 7**i for i, letter in enumerate(letters)) % 580


def source(n_prompts: int = 24, n_ctx: int = 64, vocab: range = range(1, 600), bos_id: int | None = 0) -> Source:
    return Source(vocab=torch.tensor(vocab), n_ctx=n_ctx, bos_id=bos_id, n_prompts=n_prompts, encode=encode)


def test_the_head_that_copies_tokens_and_the_one_that_tells_of_the_next_but_one() -> None:
    token, concept = token_copying_prompts(source()), concept_copying_prompts(source())
    inducts, ahead = induction_model(n_ctx=64), ahead_model()
    for model, prompts in ((inducts, token), (ahead, concept)):
        score = causal_copying(model, prompts)
        # From up to e^20 on wrong tokens against about 1 on the right one, to e^20 on the right one.
        assert 14 < score.value[1, 0] < 21
        assert score.null[1, 0] < 1
        assert score.p[1, 0] < 1e-6
        rest = torch.ones_like(score.value, dtype=torch.bool)
        rest[1, 0] = False
        assert score.value[rest].abs().max() < 0.5
        assert score.p[rest].min() > 0.05
    assert causal_copying(inducts, concept).value.abs().max() < 0.5
    assert causal_copying(ahead, token).value[:2].abs().max() < 0.5  # they name a token one position late
    negative = causal_copying(induction_model(n_ctx=64, copies=-1), token)
    assert negative.value[1, 0] < -10
    assert negative.p[1, 0] == 1


@pytest.mark.parametrize("draw", [token_copying_prompts, concept_copying_prompts])
def test_packed_rows_equal_hooked_passes(draw: Callable[[Source], EntityPrompts], tmp_path) -> None:
    model = load_hooked(saved(llama(num_key_value_heads=2, vocab_size=600, num_hidden_layers=3), tmp_path))
    prompts = draw(source(6, 128))
    packed = causal_copying(model, prompts)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        hooked = causal_copying(model, prompts)
    for one, other in zip(packed, hooked, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert packed.value[0].abs().min() > 1e-7
    assert bool((packed.value[-1] == 0).all()) == bool(prompts.ahead)  # no later layer fetches what the last one wrote


@pytest.mark.parametrize("bos_id", [0, None])
@pytest.mark.parametrize("draw", [token_copying_prompts, concept_copying_prompts])
def test_the_prompts_differ_in_their_first_part_alone(
    draw: Callable[[Source], EntityPrompts], bos_id: int | None
) -> None:
    prompts = draw(source(40, bos_id=bos_id))
    bos, ahead = int(bos_id is not None), prompts.ahead
    first = slice(bos, bos + HALF)
    assert prompts.clean.shape[1] == bos + HALF + 1 + REPEATED + ahead
    assert torch.equal(prompts.clean[:, bos + HALF :], prompts.corrupted[:, bos + HALF :])
    places = set()
    for clean, corrupted, (right, other) in zip(prompts.clean, prompts.corrupted, prompts.targets, strict=True):
        end = clean[bos + HALF + 1 :]
        [place] = [i for i in range(bos, bos + HALF) if torch.equal(clean[i : i + len(end)], end)]
        assert clean[place + len(end)] == right
        assert (clean[first] == other).sum() == 1
        assert other not in corrupted
        if not ahead:
            assert right not in corrupted
        assert not torch.isin(clean[first][torch.arange(HALF) != place], corrupted[first]).any()
        places.add(place)
    assert len(places) > 10  # a head that looks a fixed distance back finds few of them
    again = draw(source(40, bos_id=bos_id))
    assert torch.equal(again.clean, prompts.clean)
    assert torch.equal(again.targets, prompts.targets)


def test_what_a_series_has_nothing_for() -> None:
    for draw in (token_copying_prompts, concept_copying_prompts):
        with pytest.raises(InputError, match="n_ctx"):
            draw(source(n_ctx=40))
        with pytest.raises(InputError, match="different tokens"):
            draw(source(vocab=range(1, 60)))
    with pytest.raises(InputError, match="tokenizer"):
        concept_copying_prompts(Source(vocab=torch.arange(1, 600), n_ctx=64, bos_id=0))
    with pytest.raises(InputError, match="names"):
        concept_copying_prompts(Source(vocab=torch.arange(1, 600), n_ctx=64, bos_id=0, encode=lambda text: [7]))
