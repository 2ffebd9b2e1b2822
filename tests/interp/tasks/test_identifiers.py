"""Names of several tokens: what a tokenizer makes of them, the rule that solves them, known models."""

import re

import pytest
import torch
from handmade import induction_model

from copyscope.interp.tasks.answers import ask
from copyscope.interp.tasks.identifiers import N_NAMES, NAMES
from copyscope.interp.tasks.lookups import prefix_rule
from copyscope.interp.tasks.questions import Source, TaskPrompts
from copyscope.interp.tasks.registry import draw_tasks

PARTS = [",", "_", *sorted({part for name in NAMES for part in name.split("_")})]


def encode(text: str) -> list[int]:
    """A word, an underscore or a comma is a token each; " sort_node" is one."""
    if text == " sort_node":
        return [399]
    return [1 + PARTS.index(part) if part in PARTS else 0 for part in re.findall(r"_|,|[a-z]+|\n|;", text)]


def drawn(**changes: object) -> dict[str, list[TaskPrompts]]:
    fields = {"vocab": torch.arange(1, 400), "n_ctx": 128, "bos_id": 0, "n_prompts": 32, "encode": encode}
    groups: dict[str, list[TaskPrompts]] = {}
    for group in draw_tasks(Source(**(fields | changes)), ["identifiers"])["identifiers"]:  # type: ignore[arg-type]
        groups.setdefault(group.questions[0].variant, []).append(group)
    return groups


def test_names_are_of_the_list_and_the_longest_match_names_the_answer() -> None:
    groups = drawn()
    assert list(groups) == ["strings token", "strings whole", "names token", "names whole"]
    known = {tuple(encode(f" {name}")) for name in NAMES} - {(399,)}
    for variant, (asked, control) in groups.items():
        assert [asked.questions[0].control, control.questions[0].control] == [False, True]
        for group in (asked, control):
            (questions,) = group.questions
            names = group.context[:, 1:].unflatten(1, (N_NAMES, 4))  # three tokens and the separator
            assert len(names[..., -1].unique(dim=1).T) == 1
            if variant.startswith("names"):
                assert set(map(tuple, names[..., :3].flatten(0, 1).tolist())) <= known
                assert len(set(map(tuple, names[0, :, :3].tolist()))) == N_NAMES
            right = [
                prefix_rule(context[1:].tolist(), query.tolist()) == answer
                for context, queries, answers in zip(group.context, questions.query, questions.answer, strict=True)
                for query, answer in zip(queries, answers.tolist(), strict=True)
            ]
            share, error = sum(right) / len(right), (0.11 / len(right)) ** 0.5
            assert share < 0.125 + 4 * error if questions.control else share == 1


def test_one_token_before_tells_the_next_of_a_string_only() -> None:
    """In a name it is the underscore, between names the separator."""
    model = induction_model()
    right = {}
    for variant, (group, _) in drawn().items():
        (answers,) = ask(model, group)
        right[variant] = (answers.chosen == group.questions[0].answer).float().mean().item()
    assert right.pop("strings token") == 1
    assert max(right.values()) < 0.35


@pytest.mark.parametrize("changes", [{"encode": None}, {"encode": lambda text: [5] * len(text)}])
def test_without_names_there_are_strings(changes: dict[str, object]) -> None:
    assert list(drawn(**changes)) == ["strings token", "strings whole"]
