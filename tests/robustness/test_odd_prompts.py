"""Five hundred odd prompts: a line that names what is wrong, or an answer within its range."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from transformer_lens import HookedTransformer, HookedTransformerConfig

from copyscope.interp.measures.behavior import (
    CopyingLoss,
    ICLScore,
    copying_accuracy,
    copying_loss,
    icl_score,
    natural_losses,
)
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.prompts.generate import CopyingTest, copying_test, random_token_vocab, repeated_random_tokens
from copyscope.training.errors import InputError

D_VOCAB, N_CTX = 60, 80
NUMBERS = [-(2**63), -1, 0, 1, 2, 3, 7, 24, 25, 59, 60, 61, 79, 80, 81, 1000, 2**31]
VOCABS: list[list[int]] = [
    [],
    [0],
    [5, 5, 5, 5],
    [-1, 3, 4, 5],
    [3, 59, 60],
    list(range(60)),
    list(range(1, 40)),
    [2**40, 1, 2, 3],
]


@pytest.fixture(scope="module")
def model() -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=N_CTX, d_head=4, n_heads=2, d_vocab=D_VOCAB, act_fn="gelu", seed=0, d_mlp=16
    )
    return HookedTransformer(config).eval().requires_grad_(False)


def either(draw: random.Random, sensible: Any, odd: list[Any], often: float = 0.3) -> Any:
    return draw.choice(odd) if draw.random() < often else sensible


def small(draw: random.Random, sensible: int) -> int:
    """A count that may be odd but not so large that a sound answer would take long."""
    return either(draw, sensible, [n for n in NUMBERS if n <= 1000])


def tokens_of(draw: random.Random, twice: bool) -> torch.Tensor:
    """Prompts of odd shapes and ids."""
    rows, length = either(draw, 2, [0, 1, 3]), either(draw, 40, [0, 1, 2, 3, 5, 79, 80, 81, 300])
    kind = draw.choice([torch.int64, torch.int32])
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    tokens = torch.randint(0, D_VOCAB, (rows, length), generator=generator, dtype=kind)
    if twice:
        tokens[:, length - length // 2 :] = tokens[:, length % 2 : length % 2 + length // 2]
    if draw.random() < 0.2 and tokens.numel():
        tokens[draw.randrange(rows), draw.randrange(length)] = draw.choice([-1, D_VOCAB, 2**31 - 1])
    return tokens


def ask(draw: random.Random, model: HookedTransformer) -> tuple[str, Callable[[], Any], Callable[[Any], bool]]:
    """A question, how to ask it, and whether an answer is possible."""
    vocab, bos = either(draw, list(range(1, 59)), VOCABS), draw.choice([None, None, 0, 0, -1, 60])
    kind = draw.choice(["vocab", "repeated", "test", "loss", "natural", "icl", "accuracy", "heads"])
    if kind == "vocab":
        size, drop = small(draw, 60), either(draw, 0.05, [-0.1, 0.0, 0.49, 0.5, 2.0, float("nan")])
        counts = draw.choice([None, torch.zeros(60, dtype=torch.int64), torch.arange(60), torch.arange(7)])
        special = either(draw, [0], VOCABS)
        return (
            kind,
            lambda: random_token_vocab(counts, size, special, drop),
            lambda ids: min(ids) >= 0 and max(ids) < size and not {*ids.tolist()} & {*special},
        )
    if kind == "repeated":
        length, count, repeats = small(draw, 20), either(draw, 3, [-1, 0, 1]), either(draw, 2, [-1, 0, 1, 4])
        shape = (count, (bos is not None) + length * repeats)
        return (
            kind,
            lambda: repeated_random_tokens(vocab, length, count, draw.choice(NUMBERS), bos, repeats),
            lambda tokens: tokens.shape == shape and {*tokens.unique().tolist()} <= {*vocab, bos},
        )
    if kind in ("test", "accuracy"):
        n_ctx, samples, seed = small(draw, 80), either(draw, 5, [-1, 0, 1]), draw.choice(NUMBERS)

        def make() -> CopyingTest:
            return copying_test(vocab, n_ctx, samples, seed, bos)

        if kind == "test":
            return kind, make, lambda test: len(test.index) == samples and test.tokens.shape[1] < n_ctx
        return kind, lambda: copying_accuracy(model, make()), lambda found: 0 <= found.exact <= found.token <= 1
    if kind in ("loss", "natural", "icl"):
        tokens = tokens_of(draw, kind == "loss")
        function: Any = {"loss": copying_loss, "natural": natural_losses, "icl": icl_score}[kind]
        return f"{kind} {tuple(tokens.shape)}", lambda: function(model, tokens), sound_losses
    count, layers = either(draw, 2, [-1, 0, 1, 3]), either(draw, None, [[], [0], [1, 1], [-1], [2]])
    seed = either(draw, 0, [[0, 1], [], -1])
    return (
        kind,
        lambda: score_heads(
            model,
            ["previous_token", "induction_attention"],
            seed,
            vocab=vocab,
            bos_id=bos,
            n_prompts=count,
            layers=layers,
        ),
        lambda table: table["value"].is_between(0, 1).all(),
    )


def sound_losses(found: Any) -> bool:
    if isinstance(found, CopyingLoss):
        found = torch.tensor([found.first_half, found.second_half])
    elif isinstance(found, ICLScore):
        found = torch.tensor([found.score, found.early_loss, found.late_loss])
    values = torch.as_tensor(found)
    return bool(torch.isfinite(values).all()) and values.numel() > 0


def test_odd_prompts(model: HookedTransformer) -> None:
    seen: Counter[str] = Counter()
    for number in range(500):
        what, question, possible = ask(random.Random(number), model)
        try:
            answer = question()
        except InputError as error:
            seen["refused"] += 1
            single(f"{number} {what}", str(error))
            continue
        assert possible(answer), (number, what, answer)
        seen["answered"] += 1
    assert min(seen["refused"], seen["answered"]) > 100, seen


def single(what: str, message: str) -> None:
    assert len(message) > 15, (what, message)
    assert "\n" not in message, (what, message)


@examples(60)
@given(text=st.text(max_size=40), d_vocab=st.integers(30, 400), drop=st.floats(0, 0.4))
def test_a_vocabulary_holds_no_special_token(text: str, d_vocab: int, drop: float) -> None:
    special = sorted({ord(character) % d_vocab for character in text})
    try:
        vocab = random_token_vocab(None, d_vocab, special, drop).tolist()
    except InputError:
        assert (d_vocab - len(special)) * (1 - 2 * drop) < 27  # too few are left
        return
    assert not set(vocab) & set(special)
    assert vocab == sorted(set(vocab))
