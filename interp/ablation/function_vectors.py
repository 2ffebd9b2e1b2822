"""Which heads carry what a task is: their mean output where it is asked, put into prompts that do not tell."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.attribution import gradients_of_outputs
from copyscope.interp.forward.layers import Layer, Layout, can_run, embed, slices
from copyscope.interp.forward.memory import ablation_bytes, logit_elements, within_memory
from copyscope.interp.forward.residual import Hook, batches, final_residual, logits_of
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer
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


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Some contexts with all questions about them, packed as rows or, for other models, one prompt after the other."""

    rows: slice
    tokens: Int[Tensor, "row pos"]
    answer: Int[Tensor, "context question"]
    layout: Layout | None
    """None where each question is a row of its own."""
    read: Int[Tensor, " read"]
    """Where each row's queries end."""


def _batches(model: HookedModel, group: TaskPrompts) -> Iterator[_Batch]:
    questions: Questions = group.questions[0]
    n, many, block = questions.query.shape
    length = group.context.shape[1]
    device = device_of(model)
    if can_run(model):
        tokens = torch.cat([group.context, questions.query.flatten(1)], dim=1)
        layout = Layout.of(model, length, block, tokens.shape[1])
        read = length + block * torch.arange(1, many + 1, device=device) - 1
        for rows in slices(model, *tokens.shape):
            yield _Batch(rows=rows, tokens=tokens[rows], answer=questions.answer[rows], layout=layout, read=read)
        return
    whole = _whole(group)
    for rows in batches(model, n, length + block):
        prompts = whole[rows].flatten(0, 1)
        read = torch.tensor([prompts.shape[1] - 1], device=device)
        yield _Batch(rows=rows, tokens=prompts, answer=questions.answer[rows], layout=None, read=read)


def _whole(group: TaskPrompts) -> Int[Tensor, "context question pos"]:
    query = group.questions[0].query
    return torch.cat([group.context[:, None].expand(-1, query.shape[1], -1), query], dim=2)


def _mean_outputs(model: HookedModel, group: TaskPrompts) -> Float[Tensor, "layer head d_head"]:
    """z where questions end, averaged over contexts and questions."""
    total, count = torch.zeros(0), 0
    for batch in _batches(model, group):
        zs = torch.stack(_outputs(model, batch)).float()  # (layer, row, read, head, d_head)
        part = zs.sum(dim=(1, 2))
        total = part if not count else total + part
        count += zs.shape[1] * zs.shape[2]
    return total / count


def _outputs(model: HookedModel, batch: _Batch) -> list[Float[Tensor, "row read head d_head"]]:
    if batch.layout is not None and can_run(model):
        return [at.z for at in _clean_run(model, batch, batch.layout)[0]]
    kept: list[Tensor] = []
    hooks: list[Hook] = [
        (f"blocks.{i}.attn.hook_z", lambda z, hook: kept.append(z[:, batch.read].clone()))
        for i in range(model.cfg.n_layers)
    ]
    final_residual(model, batch.tokens, hooks)
    return kept


class _At(NamedTuple):
    """What a clean run leaves of a layer."""

    k: Float[Tensor, "row head pos d_head"]
    v: Float[Tensor, "row head pos d_head"]
    resid_pre: Float[Tensor, "row read d_model"]
    z: Float[Tensor, "row read head d_head"]


def _clean_run(model: HookedTransformer, batch: _Batch, layout: Layout) -> tuple[list[_At], Tensor]:
    """Each layer, and the final residual stream where questions end."""
    left, x = [], embed(model, batch.tokens, layout)
    for i in range(model.cfg.n_layers):
        layer = Layer(model, i, layout)
        normed = layer.normed(x)
        k, v = layer.keys(normed), layer.values(normed)
        z = layer.attend(layer.queries(normed, None), k, v).transpose(1, 2)
        left.append(_At(k, v, x[:, batch.read], z[:, batch.read]))
        x = layer.resid_post(x, z)
    return left, x[:, batch.read]


def _patched(
    model: HookedModel, group: TaskPrompts, means: Float[Tensor, "which layer head d_head"]
) -> Float[Tensor, "which context layer head"]:
    """Change of the log-probability of the answers, averaged over each context's questions."""
    c = model.cfg
    changes = torch.zeros(len(means), len(group.context), c.n_layers, c.n_heads, device=means.device)
    for batch in _batches(model, group):
        run = (
            partial(_patched_packed, model, batch)
            if batch.layout is not None
            else partial(_patched_whole, model, batch)
        )
        changes[:, batch.rows] = run(means)
    return changes


def _patched_packed(model: HookedModel, batch: _Batch, means: Tensor) -> Tensor:
    assert batch.layout is not None
    assert isinstance(model, HookedTransformer)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    left, final = _clean_run(model, batch, batch.layout)
    clean = _logprob(model, final, batch.answer)
    n, n_pos = batch.tokens.shape
    # Keys and values of every layer above are held for each row of each variant.
    size = max(1, ablation_bytes(model) // (16 * n * n_pos * n_heads * model.cfg.d_head))
    variants = [(which, head) for which in range(len(means)) for head in range(n_heads)]
    changes = clean.new_zeros(len(means), n, n_layers, n_heads)
    layers = [Layer(model, i, batch.layout) for i in range(n_layers)]
    for i, at in enumerate(left):
        for start in range(0, len(variants), size):
            some = variants[start : start + size]
            z = at.z.repeat(len(some), 1, 1, 1).unflatten(0, (len(some), n))
            for number, (which, head) in enumerate(some):
                z[number, :, :, head] = means[which, i, head].to(z)
            x = layers[i].resid_post(at.resid_pre.repeat(len(some), 1, 1), z.flatten(0, 1))
            for layer, above in zip(layers[i + 1 :], left[i + 1 :], strict=True):
                normed = layer.normed(x)
                k, v = (held.repeat(len(some), 1, 1, 1) for held in (above.k, above.v))
                k[:, :, batch.read], v[:, :, batch.read] = layer.keys(normed, batch.read), layer.values(normed)
                out = layer.attend(layer.queries(normed, batch.read), k, v, batch.read)
                x = layer.resid_post(x, out.transpose(1, 2))
            logprob = _logprob(model, x, batch.answer.repeat(len(some), 1)).unflatten(0, (len(some), n))
            for number, (which, head) in enumerate(some):
                changes[which, :, i, head] = logprob[number] - clean
    return changes


def _patched_whole(model: HookedModel, batch: _Batch, means: Tensor) -> Tensor:
    """The same for any model: a hooked pass a head."""
    many = batch.answer.shape[1]

    def answer(hooks: Sequence[Hook]) -> Tensor:
        final = final_residual(model, batch.tokens, hooks)[:, batch.read]
        return _logprob(model, final.view(-1, many, final.shape[-1]), batch.answer)

    def patch(z: Tensor, hook: Any, head: int, mean: Tensor) -> Tensor:
        z = z.clone()
        z[:, -1, head] = mean.to(z)
        return z

    clean = answer([])
    changes = clean.new_zeros(len(means), len(clean), *means.shape[1:3])
    for which, layer, head in torch.cartesian_prod(*map(torch.arange, changes.shape[:1] + changes.shape[2:])).tolist():
        hook = partial(patch, head=head, mean=means[which, layer, head])
        changes[which, :, layer, head] = answer([(f"blocks.{layer}.attn.hook_z", hook)]) - clean
    return changes


def _logprob(
    model: HookedModel, residual: Float[Tensor, "row question d_model"], answer: Int[Tensor, "row question"]
) -> Float[Tensor, " row"]:
    """Mean log-probability of the answers to each row's questions."""
    rows, wanted = residual.flatten(0, 1), answer.flatten().to(residual.device)
    size = max(1, logit_elements(model) // model.cfg.d_vocab)
    parts = [
        -torch.nn.functional.cross_entropy(logits_of(model, some), right, reduction="none")
        for some, right in zip(rows.split(size), wanted.split(size), strict=True)
    ]
    return torch.cat(parts).view(answer.shape).mean(dim=1)


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
