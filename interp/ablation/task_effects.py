"""Which heads an in-context task needs: its accuracy without a set of heads, and sets to compare that one with."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from copyscope.interp.ablation.effects import runs_of
from copyscope.interp.ablation.parts import Head, check_parts
from copyscope.interp.ablation.questions import Question
from copyscope.interp.forward.memory import logit_elements, wide, within_memory
from copyscope.interp.forward.residual import logits_of
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.tasks.questions import TaskPrompts
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

RANDOM_SETS = 8
LAYER_SETS = 4


@dataclass(frozen=True, kw_only=True)
class Without:
    """Choice accuracy on one variant of a task, context by context, in [0, 1]; on the CPU."""

    task: str
    variant: str
    chance: float
    clean: Float[Tensor, " prompt"]
    ablated: Float[Tensor, "set prompt"]


def task_question(model: HookedModel, group: TaskPrompts) -> Question:
    """Choice accuracy on each variant of the group, without its controls, in a form that ablations take."""
    asked = [questions for questions in group.questions if not questions.control]
    query = torch.cat([questions.query for questions in asked], dim=1)
    check_tokens(model, torch.cat([group.context, query[:, 0]], dim=1))
    device, length, (n, many, block) = device_of(model), group.context.shape[1], query.shape
    answer = torch.cat([questions.answer for questions in asked], dim=1).to(device)
    choices, counts = group.choices.to(device), [questions.query.shape[1] for questions in asked]

    def score(residual: Tensor, rows: Tensor) -> Tensor:
        rows = rows.to(device)
        offered = choices[rows].repeat_interleave(many, dim=0)
        flat, hits = residual.flatten(0, 1), torch.zeros(len(offered), dtype=wide(device), device=device)
        size = max(1, logit_elements(model) // model.cfg.d_vocab)
        for start in range(0, len(flat), size):
            part = slice(start, start + size)
            chosen = logits_of(model, flat[part]).gather(1, offered[part]).argmax(dim=1, keepdim=True)
            hits[part] = (offered[part].gather(1, chosen)[:, 0] == answer[rows].flatten()[part]).to(hits)
        variants = hits.view(-1, many).split(counts, dim=1)
        return torch.stack([variant.mean(dim=1) for variant in variants], dim=1)

    return Question(
        measures=tuple(questions.variant for questions in asked),
        tokens=torch.cat([group.context, query.flatten(1)], dim=1),
        context=length,
        block=block,
        read=length + block * torch.arange(1, many + 1) - 1,
        score=score,
        samples=torch.ones(n, many),
    )


@within_memory
def without_heads(
    model: HookedModel,
    groups: Sequence[TaskPrompts],
    sets: Sequence[Sequence[Head]],
    method: str = "mean",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Without]:
    """Choice accuracy on each variant, as the model is and without each of the sets of heads.

    `method` as in `ablate_heads`; `mean` is over the contexts of a variant, position by position, so that what all of
    them share (which token comes where, not which token it is) stays. Raises InputError for heads that are not there.
    """
    variants, found = [check_parts(model, heads) for heads in sets], []
    wanted = [group for group in groups if not all(questions.control for questions in group.questions)]
    for done, group in enumerate(wanted):
        answers = runs_of(model, task_question(model, group), method, seed).answers(variants)
        asked = [questions for questions in group.questions if not questions.control]
        for i, questions in enumerate(asked):
            clean, ablated = answers.clean[:, i], answers.ablated[:, :, i]
            found.append(
                Without(
                    task=questions.task,
                    variant=questions.variant,
                    chance=questions.chance,
                    clean=clean,
                    ablated=ablated,
                )
            )
        if progress:
            progress("removing heads", done + 1, len(wanted))
    return found


def control_sets(chosen: Sequence[Head], entropy: Mapping[Head, float], seed: int = 0) -> dict[str, list[list[Head]]]:
    """Sets to compare the `chosen` heads with, none of them chosen, of the same size or, in a small model, of what is
    left: `layer`, at random with as many heads of each layer, or of the nearest layer where it has too few; `entropy`,
    for each chosen head the free one of nearest attention entropy (nats), of which there is one set; and `random`.

    `entropy` names all heads of the model. Raises InputError where no other head is left.
    """
    others = sorted(set(entropy) - set(chosen))
    if not others:
        raise InputError("all heads are in the set; there is none to compare it with")
    drawing = random.Random(seed)
    return {
        "layer": _different(lambda: _nearest(chosen, others, lambda a, b: abs(a[0] - b[0]), drawing), LAYER_SETS),
        "entropy": [_nearest(chosen, others, lambda a, b: abs(entropy[a] - entropy[b]), drawing)],
        "random": _different(lambda: sorted(drawing.sample(others, min(len(chosen), len(others)))), RANDOM_SETS),
    }


def _nearest(
    chosen: Sequence[Head], others: Sequence[Head], apart: Callable[[Head, Head], float], drawing: random.Random
) -> list[Head]:
    """For each chosen head the nearest of the others that is not taken; of equally near ones any."""
    left, taken = list(others), []
    for head in chosen[: len(others)]:
        drawing.shuffle(left)
        near = min(left, key=lambda other: apart(head, other))
        left.remove(near)
        taken.append(near)
    return sorted(taken)


def _different(draw: Callable[[], list[Head]], count: int) -> list[list[Head]]:
    """Up to `count` different sets, in few tries."""
    sets: dict[tuple[Head, ...], None] = {}
    for _ in range(20 * count):
        sets[tuple(draw())] = None
        if len(sets) == count:
            break
    return [list(heads) for heads in sets]
