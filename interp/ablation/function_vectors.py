"""Which heads carry what a task is: their mean output where it is asked, put into prompts that do not tell."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.attribution import gradients_of_outputs
from copyscope.interp.ablation.put_outputs import Rows, changes, logprobs, outputs_at
from copyscope.interp.forward.layers import Layout, can_run, slices
from copyscope.interp.forward.memory import within_memory
from copyscope.interp.forward.residual import batches
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.tasks.lookups import draw_labels
from copyscope.interp.tasks.questions import Questions, Source, TaskPrompts


class FunctionVector(NamedTuple):
    """In nats; on the CPU."""

    exact: HeadScore
    """Log-probability of the right answer, patched minus not patched; the null patches in the mean output on the
    shuffled prompts themselves."""
    estimate: Float[Tensor, "layer head"]
    """The same by one backward pass: the gradient of that log-probability times the change of the head's output."""
    correlation: float
    """Pearson's, of exact and estimate over the heads; NaN where either is the same for all."""


def labels_prompts(source: Source) -> tuple[TaskPrompts, TaskPrompts]:
    """The task of labels with the most examples that fit, and the same with shuffled labels. Raises InputError where
    not even one example of each token fits."""
    clean, shuffled = draw_labels(source)[-2:]
    return clean, shuffled


@within_memory
@torch.no_grad()
def function_vector(model: HookedModel, clean: TaskPrompts, shuffled: TaskPrompts) -> FunctionVector:
    """Function-vector score of every head (Todd et al. 2024, arXiv 2310.15213, average indirect effect).

    A head's output at the last token of the query, averaged over the `clean` prompts of a task, replaces its output
    there in the `shuffled` ones, whose examples tell nothing; the score is the mean rise of the log-probability of the
    right answer, in nats, negative where it falls. The paper takes probabilities, which small models hardly move. Over
    contexts; 2 or more.

    The mean cannot hold what differs between the clean prompts: of labels drawn anew for each prompt it can say that a
    label comes, not which one. Raises InputError for prompts that do not fit the model.
    """
    for group in (clean, shuffled):
        check_tokens(model, torch.cat([group.context, group.questions[0].query[:, 0]], dim=1))
    means = torch.stack([_mean_outputs(model, group) for group in (clean, shuffled)])  # (which, layer, head, d_head)
    patched, estimate = _patched(model, shuffled, means), _estimated(model, shuffled, means[0])
    exact = HeadScore.of(*patched)
    both = torch.stack([exact.value.flatten(), estimate.flatten()])
    return FunctionVector(exact, estimate, torch.corrcoef(both)[0, 1].item())


class _Batch(NamedTuple):
    """Some contexts with all questions about them, packed as rows or, for other models, one prompt after the other."""

    contexts: slice
    rows: Rows
    answer: Int[Tensor, "context question"]


def _batches(model: HookedModel, group: TaskPrompts) -> Iterator[_Batch]:
    questions: Questions = group.questions[0]
    n, many, block = questions.query.shape
    length = group.context.shape[1]
    device = device_of(model)
    if can_run(model):
        tokens = torch.cat([group.context, questions.query.flatten(1)], dim=1)
        layout = Layout.of(model, length, block, tokens.shape[1])
        read = length + block * torch.arange(1, many + 1, device=device) - 1
        for some in slices(model, *tokens.shape):
            yield _Batch(some, Rows(tokens=tokens[some], layout=layout, read=read), questions.answer[some])
        return
    whole = _whole(group)
    read = torch.tensor([length + block - 1], device=device)
    for some in batches(model, n, length + block):
        rows = Rows(tokens=whole[some].flatten(0, 1), layout=None, read=read)
        yield _Batch(some, rows, questions.answer[some])


def _whole(group: TaskPrompts) -> Int[Tensor, "context question pos"]:
    query = group.questions[0].query
    return torch.cat([group.context[:, None].expand(-1, query.shape[1], -1), query], dim=2)


def _mean_outputs(model: HookedModel, group: TaskPrompts) -> Float[Tensor, "layer head d_head"]:
    """z where questions end, averaged over contexts and questions."""
    total, count = torch.zeros(0), 0
    for batch in _batches(model, group):
        z = outputs_at(model, batch.rows).float()
        part = z.sum(dim=(1, 2))
        total = part if not count else total + part
        count += z.shape[1] * z.shape[2]
    return total / count


def _patched(
    model: HookedModel, group: TaskPrompts, means: Float[Tensor, "which layer head d_head"]
) -> Float[Tensor, "which context layer head"]:
    """Change of the log-probability of the answers, averaged over each context's questions."""
    c = model.cfg
    effects = torch.zeros(len(means), len(group.context), c.n_layers, c.n_heads, device=means.device)
    for batch in _batches(model, group):

        def of(residual: Tensor, answer: Tensor = batch.answer) -> Float[Tensor, " context"]:
            return logprobs(model, residual.flatten(0, 1), answer.view(-1, 1)).view(answer.shape).mean(dim=1)

        effects[:, batch.contexts] = changes(model, batch.rows, means[:, :, None, None], of).movedim(-1, 1)
    return effects


def _estimated(
    model: HookedModel, group: TaskPrompts, means: Float[Tensor, "layer head d_head"]
) -> Float[Tensor, "layer head"]:
    """First-order change of the mean log-probability."""
    whole, answer = _whole(group).flatten(0, 1), group.questions[0].answer.flatten()
    total = torch.zeros(means.shape[:2], device=means.device)
    for rows in batches(model, *whole.shape):
        right = answer[rows].to(means.device)

        def loss(logits: Tensor, right: Tensor = right) -> Tensor:
            return -torch.nn.functional.cross_entropy(logits[:, 0].float(), right, reduction="sum")

        z, gradients = gradients_of_outputs(model, whole[rows], slice(-1, None), loss)
        for i, (own, gradient) in enumerate(zip(z, gradients, strict=True)):
            change = means[i] - own[:, -1].float()
            total[i] += (change * gradient[:, -1].float()).sum(dim=(0, 2))
    return (total / len(whole)).cpu().double()
