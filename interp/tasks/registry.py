"""All tasks by name."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.hooked import model_vocabulary
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.generate import drawable
from copyscope.interp.tasks.answers import TaskResult, results
from copyscope.interp.tasks.chains import draw_markov, markov_rule
from copyscope.interp.tasks.fuzzy import draw_fuzzy, fuzzy_rule
from copyscope.interp.tasks.identifiers import draw_identifiers
from copyscope.interp.tasks.lookups import (
    backward_rule,
    draw_backward,
    draw_labels,
    draw_prefix,
    draw_recall,
    labels_rule,
    prefix_rule,
    recall_rule,
)
from copyscope.interp.tasks.questions import Source, TaskPrompts
from copyscope.interp.tasks.words import draw_words
from copyscope.training.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One task: how its prompts are drawn, and a rule that solves it."""

    draw: Callable[[Source], list[TaskPrompts]]
    """Its docstring says what the task is, its chance and its control. Raises InputError where it has no room."""
    rule: Callable[[Sequence[int], Sequence[int]], int] | None
    """The answer to a query after a context, without a model: right at every question, at chance on the control. None
    where the context alone does not tell it."""

    @property
    def ceiling(self) -> float | None:
        """Accuracy of the rule."""
        return None if self.rule is None else 1.0


TASKS: dict[str, Task] = {
    "recall": Task(draw_recall, recall_rule),
    "prefix": Task(draw_prefix, prefix_rule),
    "markov": Task(draw_markov, markov_rule),
    "fuzzy": Task(draw_fuzzy, fuzzy_rule),
    "backward": Task(draw_backward, backward_rule),
    "labels": Task(draw_labels, labels_rule),
    "identifiers": Task(draw_identifiers, prefix_rule),
    "words": Task(draw_words, None),
}


def draw_tasks(source: Source, names: Iterable[str] | None = None) -> dict[str, list[TaskPrompts]]:
    """The prompts of each task, the same for the same source whichever tasks are drawn.

    `names`: None for all that the model has room for; those that it has not are named in a log line. Variants for which
    the context is too short or the vocabulary too small are left out.

    Raises:
        InputError: an unknown task, a named one of which no variant fits, or none that fits at all.
    """
    chosen = list(TASKS) if names is None else check_names(list(names), list(TASKS), "task")
    drawn: dict[str, list[TaskPrompts]] = {}
    for name in chosen:
        try:
            drawn[name] = TASKS[name].draw(source)
        except InputError as error:
            if names is not None:
                raise InputError(f"task {name}: {error}; leave it out") from None
            logger.info(f"task {name} is left out: {error}")
    if not drawn:
        raise InputError(f"no task fits a context of {source.n_ctx} tokens and {len(source.vocab)} tokens to draw from")
    return drawn


def encoder(tokenizer: Any | None) -> Callable[[str], list[int]] | None:
    """`Source.encode` of a transformers tokenizer."""
    return None if tokenizer is None else lambda text: list(tokenizer.encode(text, add_special_tokens=False))


def run_tasks(model: HookedModel, drawn: Mapping[str, Sequence[TaskPrompts]] | None = None) -> list[TaskResult]:
    """How well the model does each variant of each task; `drawn` by `draw_tasks`, None for all with seed 0."""
    if drawn is None:
        vocabulary = model_vocabulary(model)
        encode = encoder(getattr(model, "tokenizer", None))
        source = Source(vocab=drawable(vocabulary), n_ctx=model.cfg.n_ctx, bos_id=vocabulary.bos_id, encode=encode)
        drawn = draw_tasks(source)
    return [result for name, groups in drawn.items() for result in results(model, groups, TASKS[name].ceiling)]
