"""Few-shot tasks with words, by a tokenizer that has them all."""

import torch
from untrained import untrained

from copyscope.interp.tasks.questions import Source
from copyscope.interp.tasks.registry import draw_tasks, encoder, run_tasks
from copyscope.interp.tasks.words import N_ITEMS, PAIRS, PICKS

WORDS = sorted({word for pairs in PAIRS.values() for pair in pairs for word in pair})
IDS = {"\n": 1, "->": 2} | {word: 3 + i for i, word in enumerate(WORDS)}
NAMES = {i: word for word, i in IDS.items()}
UNKNOWN = ("Paris", "Tokyo")


def encode(text: str) -> list[int]:
    """Two capitals are not in the vocabulary."""
    return [399 if text.strip() in UNKNOWN else IDS[text.strip() or "\n"]]


SOURCE = Source(vocab=torch.arange(1, 400), n_ctx=128, bos_id=0, n_prompts=64, encode=encode)
GROUPS = draw_tasks(SOURCE, ["words"])["words"]


def solved(variant: str, query: list[int]) -> int:
    words = [NAMES[i] for i in query[:-1]]  # the arrow is last
    return IDS[words[0] if variant == "first" else words[-1] if variant == "last" else dict(PAIRS[variant])[words[0]]]


def test_every_variant_is_asked_with_examples_and_without_a_tell_in_its_control() -> None:
    asked = {(q.variant, q.control) for group in GROUPS for q in group.questions}
    assert asked == {(name, control) for name in (*PAIRS, *PICKS) for control in (False, True)}
    for group in GROUPS:
        (questions,) = group.questions
        items = N_ITEMS if questions.variant in PICKS else 1
        lines = group.context[:, 1:].unflatten(1, (-1, items + 3))  # words, arrow, answer, end of line
        told = [solved(questions.variant, line[:-2].tolist()) == line[-2] for lines_ in lines for line in lines_]
        right = [
            solved(questions.variant, query.tolist()) == answer
            for queries, answers in zip(questions.query, questions.answer, strict=True)
            for query, answer in zip(queries, answers.tolist(), strict=True)
        ]
        if questions.control:
            assert sum(told) / len(told) < (0.5 if items > 1 else 0.01)
            assert sum(right) / len(right) < questions.chance + 4 * (questions.chance / len(right)) ** 0.5
        else:
            assert all(told)
            assert all(right)
            shown = set(map(tuple, lines[0, :, :items].tolist()))
            assert not shown & set(map(tuple, questions.query[0, :, :items].tolist()))


def test_words_that_share_a_token_are_left_out() -> None:
    choices = next(g.choices for g in GROUPS if g.questions[0].variant == "capital")
    assert choices.shape[1] == len(PAIRS["capital"]) - len(UNKNOWN)
    assert 399 not in choices


def test_an_untrained_model_is_at_chance_and_there_is_no_ceiling() -> None:
    for result in run_tasks(untrained(1, n_layers=1, n_ctx=128), {"words": GROUPS}):
        error = (result.chance * (1 - result.chance) / result.prompts) ** 0.5
        assert abs(result.choice_accuracy - result.chance) < 5 * error
        assert result.ceiling is None


def test_a_tokenizer_of_transformers() -> None:
    class Tokenizer:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return encode(text)

    found = encoder(Tokenizer())
    assert found is not None
    assert found(" hot") == [IDS["hot"]]
    assert encoder(None) is None
