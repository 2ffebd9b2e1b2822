"""Asks a model: how likely it finds the right answers, question by question, and what that makes of a task."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layout, can_run, run_layers, slices
from copyscope.interp.forward.memory import logit_elements, within_memory
from copyscope.interp.forward.residual import batches, final_residual, logits_of, ranks_of
from copyscope.interp.measures.behavior import check_tokens, standard_error
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.tasks.questions import Questions, TaskPrompts


class Answers(NamedTuple):
    """What the model makes of the questions of one `Questions`; on the CPU."""

    rank: Float[Tensor, "prompt question"]
    """Of the right token among all, from 1; the middle of those that are equally likely."""
    logprob: Float[Tensor, "prompt question"]
    """Of the right token, in nats."""
    choices: Float[Tensor, "prompt question choice"]
    """Log-probabilities of the tokens that chance picks from, in nats."""
    chosen: Int[Tensor, "prompt question"]
    """The likeliest of those."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How well a model does one variant of a task. `_se` are standard errors over contexts, which are independent."""

    task: str
    variant: str
    accuracy: float
    """Share of questions whose answer is the likeliest token, in [0, 1]."""
    accuracy_se: float
    choice_accuracy: float
    """Share of questions whose answer is the likeliest of the tokens that chance picks from, in [0, 1]. At `chance`
    also for a model that prefers other tokens to all of them, whose accuracy is 0."""
    choice_accuracy_se: float
    hits3: float
    """Share of questions whose answer is among the three likeliest, in [0, 1]."""
    hits3_se: float
    mean_rank: float
    """Of the answer among all tokens, from 1."""
    mean_rank_se: float
    gain: float
    """Log-probability of the answer, in nats, minus the same after the query alone, without the context."""
    gain_se: float
    control: float
    """Accuracy on the control, where nothing in the context tells the answer."""
    control_se: float
    control_choice: float
    """Choice accuracy on the control."""
    control_choice_se: float
    chance: float
    """Accuracy of a guess by the rule that the task names. A model's accuracy can be below: it may guess among all
    tokens."""
    chance_uniform: float
    """Accuracy of an even guess among the choices: `chance`, unless the task names a better rule of chance."""
    control_chance: float
    ceiling: float | None
    """Accuracy of the rule that solves the task; None where no rule does."""
    prompts: int
    kl_bigram: float | None = None
    """Of the model's next token from the in-context bigram rule, in nats (markov only)."""
    kl_bigram_se: float | None = None
    kl_unigram: float | None = None
    kl_unigram_se: float | None = None


@within_memory
@torch.no_grad()
def ask(model: HookedModel, group: TaskPrompts) -> list[Answers]:
    """The model's answers to each `Questions` of the group. A context runs once for all of its questions, unless hooks
    are on the model. Raises InputError if it is longer than n_ctx or has ids outside the vocabulary."""
    query = torch.cat([questions.query for questions in group.questions], dim=1)
    answer = torch.cat([questions.answer for questions in group.questions], dim=1)
    check_tokens(model, torch.cat([group.context, query[:, 0]], dim=1))
    n, many, block = query.shape
    n_choices = group.choices.shape[1]
    device = device_of(model)
    found = torch.zeros(n, many, 2 + n_choices, device=device)  # rank, log-probability, those of the choices
    for rows in _rows(model, group.context.shape[1], block, many, n):
        residual = _last_residuals(model, group.context[rows], query[rows])
        wanted = answer[rows].flatten().to(device)
        offered = group.choices[rows].repeat_interleave(many, dim=0).to(device)
        for part, logits in _logits(model, residual.flatten(0, 1)):
            right = logits.gather(1, wanted[part, None])
            total = logits.logsumexp(dim=1, keepdim=True)
            rank = ranks_of(logits, wanted[part])
            scores = torch.cat([right, logits.gather(1, offered[part])], dim=1)
            found[rows].flatten(0, 1)[part] = torch.cat([rank[:, None], scores - total], dim=1)
    counts = [questions.query.shape[1] for questions in group.questions]
    found = found.cpu()
    choices = found[..., 2:]
    chosen = group.choices.gather(1, choices.argmax(dim=2))
    columns = (tensor.split(counts, dim=1) for tensor in (found[..., 0], found[..., 1], choices, chosen))
    return [Answers(*parts) for parts in zip(*columns, strict=True)]


@within_memory
@torch.no_grad()
def without_context(model: HookedModel, questions: Questions, bos: Tensor | None) -> Float[Tensor, "prompt question"]:
    """Log-probability of the answers after the query alone, in nats; `bos` (prompt, 1) opens it."""
    n, many = questions.answer.shape
    query = questions.query.flatten(0, 1)
    prompts = query if bos is None else torch.cat([bos.repeat_interleave(many, dim=0), query], dim=1)
    wanted = questions.answer.flatten().to(device_of(model))
    logprob = torch.zeros(len(prompts), device=wanted.device)
    chunks = slices(model, *prompts.shape) if can_run(model) else batches(model, *prompts.shape)
    for rows in chunks:
        residual = final_residual(model, prompts[rows])[:, -1]
        for part, logits in _logits(model, residual):
            right = logits.gather(1, wanted[rows][part, None])
            logprob[rows][part] = (right - logits.logsumexp(dim=1, keepdim=True))[:, 0]
    return logprob.cpu().view(n, many)


def results(model: HookedModel, groups: Sequence[TaskPrompts], ceiling: float | None = 1.0) -> list[TaskResult]:
    """The result of each variant that the groups of a task have, in their order."""
    asked: dict[str, tuple[Questions, Answers, Tensor]] = {}
    controls: dict[str, tuple[Questions, Answers]] = {}
    for group in groups:
        for questions, answers in zip(group.questions, ask(model, group), strict=True):
            if questions.control:
                controls[questions.variant] = questions, answers
            else:
                alone = without_context(model, questions, group.context[:, :1] if group.bos else None)
                asked[questions.variant] = questions, answers, alone
    done = []
    for variant, (questions, answers, alone) in asked.items():
        control, at_control = controls[variant if variant in controls else ""]
        done.append(_result(questions, answers, alone, control, at_control, ceiling))
    return done


def _result(
    questions: Questions,
    answers: Answers,
    alone: Tensor,
    control: Questions,
    at_control: Answers,
    ceiling: float | None,
) -> TaskResult:
    accuracy, accuracy_se = _mean((answers.rank == 1).double())
    choice, choice_se = _mean((answers.chosen == questions.answer).double())
    hits3, hits3_se = _mean((answers.rank <= 3).double())
    mean_rank, mean_rank_se = _mean(answers.rank)
    gain, gain_se = _mean(answers.logprob - alone)
    on_control, on_control_se = _mean((at_control.rank == 1).double())
    control_choice, control_choice_se = _mean((at_control.chosen == control.answer).double())
    kl: dict[str, float] = {}
    for name, rule in questions.rules.items():
        kl[name], kl[f"{name}_se"] = _mean((rule * (rule.log() - answers.choices)).sum(dim=2))
    return TaskResult(
        task=questions.task,
        variant=questions.variant,
        accuracy=accuracy,
        accuracy_se=accuracy_se,
        choice_accuracy=choice,
        choice_accuracy_se=choice_se,
        hits3=hits3,
        hits3_se=hits3_se,
        mean_rank=mean_rank,
        mean_rank_se=mean_rank_se,
        gain=gain,
        gain_se=gain_se,
        control=on_control,
        control_se=on_control_se,
        control_choice=control_choice,
        control_choice_se=control_choice_se,
        chance=questions.chance,
        chance_uniform=min(questions.chance, 1 / answers.choices.shape[2]),
        control_chance=control.chance,
        ceiling=ceiling,
        prompts=len(answers.rank),
        **kl,
    )


def _mean(values: Float[Tensor, "prompt question"]) -> tuple[float, float]:
    """Mean and its standard error: questions about one context are not independent."""
    of_prompt = values.double().mean(dim=1)
    return of_prompt.mean().item(), standard_error(of_prompt)


def _rows(model: HookedModel, context: int, block: int, many: int, n: int) -> Iterator[slice]:
    if can_run(model):
        return slices(model, n, context + many * block)
    return batches(model, n, math.ceil((context + block) * math.sqrt(many)))  # patterns of `many` prompts a row


def _last_residuals(
    model: HookedModel, context: Int[Tensor, "row pos"], query: Int[Tensor, "row question block"]
) -> Float[Tensor, "row question d_model"]:
    """The residual stream at the last token of each query."""
    many, block = query.shape[1:]
    if not can_run(model):
        whole = torch.cat([context.repeat_interleave(many, dim=0), query.flatten(0, 1)], dim=1)
        return final_residual(model, whole)[:, -1].unflatten(0, (-1, many))
    length = context.shape[1]
    tokens = torch.cat([context, query.flatten(1)], dim=1)
    layout = Layout.of(model, length, block, tokens.shape[1])
    read = length + block * torch.arange(1, many + 1, device=layout.device) - 1
    return run_layers(model, tokens, layout, read)


def _logits(
    model: HookedModel, residual: Float[Tensor, "row d_model"]
) -> Iterator[tuple[slice, Float[Tensor, "row d_vocab"]]]:
    size = max(1, logit_elements(model) // model.cfg.d_vocab)
    for start in range(0, len(residual), size):
        part = slice(start, min(start + size, len(residual)))
        yield part, logits_of(model, residual[part]).float()
