"""In-context tasks: one right answer that a rule finds, controls that nobody can answer, known models."""

from typing import Any

import pytest
import torch
from handmade import induction_model
from torch import Tensor
from untrained import untrained

from copyscope.interp.tasks.answers import Answers, TaskResult, ask, results, without_context
from copyscope.interp.tasks.questions import Questions, Source, TaskPrompts
from copyscope.interp.tasks.registry import TASKS, draw_tasks, run_tasks
from copyscope.training.errors import InputError


def source(n_prompts: int = 64, **changes: Any) -> Source:
    fields: dict[str, Any] = {"vocab": torch.arange(1, 400), "n_ctx": 256, "bos_id": 0, "n_prompts": n_prompts}
    return Source(**(fields | changes))


DRAWN = draw_tasks(source())


def by_variant(found: list[TaskResult]) -> dict[tuple[str, str], TaskResult]:
    return {(result.task, result.variant): result for result in found}


def share_right(group: TaskPrompts, questions: Questions) -> float:
    rule = TASKS[questions.task].rule
    assert rule is not None
    right = [
        rule(context[int(group.bos) :].tolist(), query.tolist()) == answer
        for context, queries, answers in zip(group.context, questions.query, questions.answer, strict=True)
        for query, answer in zip(queries, answers.tolist(), strict=True)
    ]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.rule])
def test_the_rule_solves_the_task_and_not_its_control(name: str) -> None:
    kinds = set()
    for group in DRAWN[name]:
        for questions in group.questions:
            kinds.add((questions.variant, questions.control))
            share = share_right(group, questions)
            if questions.control:
                error = (questions.chance * (1 - questions.chance) / questions.answer.numel()) ** 0.5
                assert share <= questions.chance + 4 * error
            else:
                assert share == TASKS[name].ceiling
            found = (questions.answer[..., None] == group.choices[:, None]).any(dim=2)
            assert bool(found.all()), "the answer is one of the choices"
    assert {variant for variant, control in kinds if not control} >= {v for v, control in kinds if control and v}
    assert any(control for _, control in kinds)


def test_prompts_are_the_same_whichever_tasks_are_drawn() -> None:
    again = draw_tasks(source(), ["markov", "recall"])
    for name, groups in again.items():
        for one, other in zip(groups, DRAWN[name], strict=True):
            assert torch.equal(one.context, other.context)
            assert torch.equal(one.questions[0].query, other.questions[0].query)
    assert not torch.equal(draw_tasks(source(seed=1), ["recall"])["recall"][0].context, again["recall"][0].context)


def test_without_a_bos_nothing_opens_the_prompts() -> None:
    (first, *_), (other, *_) = (draw_tasks(source(bos_id=bos), ["recall"])["recall"] for bos in (None, 0))
    assert torch.equal(first.context, other.context[:, 1:])
    assert run_tasks(untrained(0, n_layers=1, n_ctx=64), {"recall": [first]})[0].prompts == 64


def test_an_induction_head_recalls_but_does_not_match_longer_prefixes() -> None:
    drawn = draw_tasks(source(n_ctx=128), ["recall", "prefix", "backward", "labels", "identifiers"])
    found = by_variant(run_tasks(induction_model(), drawn))
    for variant in ("pairs=4", "pairs=8", "pairs=16"):
        result = found["recall", variant]
        assert result.accuracy == result.choice_accuracy == 1
        assert result.mean_rank == 1
        assert result.gain > 5
        assert result.control_choice < result.chance + 4 * max(result.control_choice_se, 0.03)
    assert found["prefix", "order=1"].accuracy == 1
    for variant in ("order=2", "order=3"):  # all of them end in the same token
        assert found["prefix", variant].choice_accuracy == 0.25
        assert found["prefix", variant].hits3 > 0.6
    assert found["backward", "tokens=32"].accuracy == 0
    assert found["labels", "shots=1"].accuracy == 1
    assert found["identifiers", "strings token"].accuracy == 1
    assert found["identifiers", "strings whole"].choice_accuracy < 0.25  # the separator stands before every string
    assert ("labels", "shots=10") not in found  # more than 128 positions


def test_an_untrained_model_is_at_chance() -> None:
    for result in run_tasks(untrained(3, n_layers=2), DRAWN):
        chance = result.chance_uniform
        assert chance == (0.125 if result.task == "markov" else result.chance)
        error = (chance * (1 - chance) / result.prompts) ** 0.5
        assert abs(result.choice_accuracy - chance) < 4.5 * error, result
        error = (result.control_chance * (1 - result.control_chance) / 16) ** 0.5
        assert abs(result.control_choice - result.control_chance) < 4 * error, result
        assert result.accuracy < 0.1


@pytest.mark.parametrize("name", ["markov", "prefix"])
def test_answers_are_those_of_plain_forward_passes(name: str) -> None:
    """Also of a model with hooks on it, whose contexts are not shared."""
    model = untrained(1, 0.1, n_layers=2)
    group = next(group for group in draw_tasks(source(8), [name])[name] if len(group.context) < 9)
    slow = [plainly(model, group, questions) for questions in group.questions]
    for fast in (ask(model, group), hooked(model, group)):
        for one, other in zip(fast, slow, strict=True):
            for a, b in zip(one, other, strict=True):
                assert torch.allclose(a.double(), b.double(), atol=1e-4)
    questions = group.questions[0]
    alone = without_context(model, questions, group.context[:, :1])
    logits = model(torch.cat([torch.zeros(1, 1, dtype=torch.long), questions.query[3, 1:2]], dim=1))[0, -1]
    assert alone[3, 1].item() == pytest.approx(logits.log_softmax(0)[questions.answer[3, 1]].item(), abs=1e-4)
    if name == "markov":
        rule, answers = questions.rules["kl_bigram"], slow[0]
        by_hand = torch.nn.functional.kl_div(answers.choices, rule, reduction="none").sum(2).mean().item()
        result = results(model, draw_tasks(source(8), [name])[name])[0]
        assert result.kl_bigram == pytest.approx(by_hand, abs=1e-4)
        assert result.kl_unigram is not None
        assert torch.allclose(rule.sum(2), torch.ones(rule.shape[:2]))


def hooked(model: Any, group: TaskPrompts) -> list[Answers]:
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        return ask(model, group)


def plainly(model: Any, group: TaskPrompts, questions: Questions) -> Answers:
    def logits(row: int, query: Tensor) -> Tensor:
        return model(torch.cat([group.context[row], query])[None])[0, -1]

    shape = questions.answer.shape
    whole = torch.stack([logits(i, q) for i, queries in enumerate(questions.query) for q in queries]).view(*shape, -1)
    right = whole.gather(2, questions.answer[..., None])
    logprobs = whole.log_softmax(-1)
    choices = logprobs.gather(2, group.choices[:, None].expand(-1, shape[1], -1))
    return Answers(
        rank=1 + (whole > right).sum(2).float(),
        logprob=logprobs.gather(2, questions.answer[..., None])[..., 0],
        choices=choices,
        chosen=group.choices.gather(1, choices.argmax(2)),
    )


def test_what_has_no_room_is_said_in_one_line(logged: list[str]) -> None:
    short = draw_tasks(source(n_ctx=20))
    assert set(short) == {"recall", "prefix", "labels"}
    assert {q.variant for group in short["recall"] for q in group.questions} == {"pairs=4", "pairs=8"}
    assert sorted(line.split()[1] for line in logged) == ["backward", "fuzzy", "identifiers", "markov", "words"]
    refused: list[tuple[list[str] | None, dict[str, Any], str]] = [
        (["markov"], {"n_ctx": 64}, "task markov: needs 98 positions, and n_ctx is 64"),
        (["backward"], {"vocab": torch.arange(30)}, "task backward: needs 33 different tokens"),
        (["recal"], {}, "did you mean 'recall'"),
        (["words"], {}, "task words: needs a tokenizer"),
        (["words"], {"encode": lambda text: [ord(c) for c in text]}, "task words: capitalise: the tokenizer has 0 of"),
        (None, {"n_ctx": 4}, "no task fits"),
    ]
    for names, changes, says in refused:
        with pytest.raises(InputError, match=says) as error:
            draw_tasks(source(**changes), names)
        assert "\n" not in str(error.value)
