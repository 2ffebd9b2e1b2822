"""Tasks whose answer stands in the context: recall, prefixes with decoys, backward copying, labels.

Each `draw_…` has a `…_rule` beside it, which answers every question right: the ceiling, 1.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch

from copyscope.interp.tasks.questions import MAX_QUESTIONS, Questions, Source, TaskPrompts, one_of, some, that_fit

PAIRS = (4, 8, 16)
ORDERS = (1, 2, 3)
N_DECOYS = 3
BACKWARD_TOKENS = 32
SHOTS = (1, 4, 10)
N_LABELS, N_LABELLED = 4, 8


def draw_recall(source: Source) -> list[TaskPrompts]:
    """D key–value pairs, then one of the keys; the answer is its value (multi-query associative recall, arXiv
    2312.04927). All 2 D tokens differ.

    Chance 1/D: any value of the context. Control: a key that is not in the context, and any of its values as the
    answer.
    """
    return that_fit(PAIRS, lambda pairs: [_recall(source, pairs)])


def _recall(source: Source, pairs: int) -> TaskPrompts:
    variant, n = f"pairs={pairs}", source.n_prompts
    generator = source.generator(f"recall {variant}")
    tokens = source.distinct(2 * pairs + 1, n, generator)
    keys, values = tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2]
    asked = some(pairs, min(pairs, MAX_QUESTIONS), n, generator)
    questions = Questions(
        task="recall",
        variant=variant,
        query=keys.gather(1, asked)[..., None],
        answer=values.gather(1, asked),
        chance=1 / pairs,
    )
    control = Questions(
        task="recall",
        variant=variant,
        query=tokens[:, -1:, None],
        answer=one_of(values, generator),
        chance=1 / pairs,
        control=True,
    )
    return source.prompts(tokens[:, :-1], values, questions, control)


def recall_rule(context: Sequence[int], query: Sequence[int]) -> int:
    """What followed the key where it last stood; of an unknown key the last value."""
    places = [i for i in range(len(context) - 1) if context[i] == query[-1]]
    return context[places[-1] + 1] if places else context[-1]


def draw_prefix(source: Source) -> list[TaskPrompts]:
    """Prefixes of n tokens, each followed by a token of its own, in random order; then one of the prefixes. They
    differ in their first token only, so that a match of fewer than n tokens cannot tell them apart (n-gram heads, arXiv
    2401.12973). Each is asked for, with the other `N_DECOYS` as decoys.

    Chance 1/(decoys + 1): any token that followed a prefix. Control: a prefix whose first token is not in the context.
    """
    return that_fit(ORDERS, lambda order: [_prefix(source, order)])


def _prefix(source: Source, order: int) -> TaskPrompts:
    variant, n, many = f"order={order}", source.n_prompts, N_DECOYS + 1
    generator = source.generator(f"prefix {variant}")
    tokens = source.distinct(2 * many + order, n, generator)
    first, answers, rest = tokens[:, :many], tokens[:, many : 2 * many], tokens[:, 2 * many + 1 :]
    shared = rest[:, None].expand(-1, many, -1)
    prefixes = torch.cat([first[..., None], shared], dim=2)  # (prompt, prefix, order)
    unseen = torch.cat([tokens[:, 2 * many, None, None], shared[:, :1]], dim=2)
    context = torch.cat([prefixes, answers[..., None]], dim=2).flatten(1)
    common = {"task": "prefix", "variant": variant, "chance": 1 / many}
    questions = Questions(**common, query=prefixes, answer=answers)
    control = Questions(**common, query=unseen, answer=one_of(answers, generator), control=True)
    return source.prompts(context, answers, questions, control)


def prefix_rule(context: Sequence[int], query: Sequence[int]) -> int:
    """What followed all tokens of the query where they last stood in a row; without such a place the last token."""
    n = len(query)
    places = [i for i in range(len(context) - n) if list(context[i : i + n]) == list(query)]
    return context[places[-1] + n] if places else context[-1]


def draw_backward(source: Source) -> list[TaskPrompts]:
    """Different random tokens, then one of them; the answer is the token *before* it (arXiv 2509.22947). Text gives
    little reason to learn this, so chance is expected.

    Chance 1/(tokens of the context). Control: a token that is not in the context.
    """
    variant, n = f"tokens={BACKWARD_TOKENS}", source.n_prompts
    generator = source.generator(f"backward {variant}")
    tokens = source.distinct(BACKWARD_TOKENS + 1, n, generator)
    context = tokens[:, :-1]
    asked = 1 + some(BACKWARD_TOKENS - 1, MAX_QUESTIONS, n, generator)
    common = {"task": "backward", "variant": variant, "chance": 1 / BACKWARD_TOKENS}
    questions = Questions(**common, query=context.gather(1, asked)[..., None], answer=context.gather(1, asked - 1))
    control = Questions(**common, query=tokens[:, -1:, None], answer=one_of(context, generator), control=True)
    return [source.prompts(context, context, questions, control)]


def backward_rule(context: Sequence[int], query: Sequence[int]) -> int:
    """What stood before the token where it last stood; of an unknown one the last token."""
    places = [i for i in range(1, len(context)) if context[i] == query[-1]]
    return context[places[-1] - 1] if places else context[-1]


def draw_labels(source: Source) -> list[TaskPrompts]:
    """Eight tokens with one of four labels each, every pair shown `shots` times in random order; then one of the
    tokens. The answer is its label (after Todd et al. 2024, arXiv 2310.15213, and Yin and Steinhardt 2025, arXiv
    2502.14010).

    Chance 1/labels. Control: labels drawn anew for every pair, and any of them as the answer. Without examples (0
    shots) is what the log-probability is compared with.
    """
    return that_fit(SHOTS, lambda shots: _labels(source, shots))


def _labels(source: Source, shots: int) -> list[TaskPrompts]:
    variant = f"shots={shots}"
    groups = []
    for control in (False, True):
        n = max(2, source.n_prompts // (4 if control else 2))
        generator = source.generator(f"labels {variant} {control}")
        tokens = source.distinct(N_LABELLED + N_LABELS, n, generator)
        shown, labels = tokens[:, :N_LABELLED], tokens[:, N_LABELLED:]
        order = torch.cat([some(N_LABELLED, N_LABELLED, n, generator) for _ in range(shots)], dim=1)
        of_token = some(N_LABELLED, N_LABELLED, n, generator) % N_LABELS  # as many tokens for each label
        drawn = torch.randint(0, N_LABELS, order.shape, generator=generator)
        label = drawn if control else of_token.gather(1, order)
        context = torch.stack([shown.gather(1, order), labels.gather(1, label)], dim=2).flatten(1)
        asked = some(N_LABELLED, MAX_QUESTIONS, n, generator)
        questions = Questions(
            task="labels",
            variant=variant,
            query=shown.gather(1, asked)[..., None],
            answer=labels.gather(1, of_token.gather(1, asked)),
            chance=1 / N_LABELS,
            control=control,
        )
        groups.append(source.prompts(context, labels, questions))
    return groups


def labels_rule(context: Sequence[int], query: Sequence[int]) -> int:
    """The label that the token was shown with most often."""
    followed = Counter(after for token, after in pairwise(context) if token == query[-1])
    return followed.most_common(1)[0][0]
