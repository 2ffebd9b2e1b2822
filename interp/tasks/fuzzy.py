"""The copying test with noise: some tokens of the prefix are changed."""

from collections.abc import Sequence

import torch

from copyscope.interp.prompts.generate import PREFIX, SUBSEQUENCE, copying_test
from copyscope.interp.tasks.questions import Questions, Source, TaskPrompts, one_of, some

CHANGED = (0, 1, 2, 3, 4, 5, 6)
N_SUBSEQUENCES = 12


def draw_fuzzy(source: Source) -> list[TaskPrompts]:
    """Contexts of the copying test (definition 9; at most 12 subsequences), then one of the prefixes with 0 to 6 of its
    12 tokens changed at random places. The answer is the first token of its suffix. Ours.

    With 0 changed it is the copying test's first token, which is what to compare with. Chance 1/subsequences: the first
    token of any suffix. Control: twelve random tokens instead of a prefix.
    """
    n, bos = max(2, source.n_prompts // 2), source.bos_id is not None
    generator = source.generator("fuzzy")
    room = min(source.n_ctx, (N_SUBSEQUENCES + 1) * SUBSEQUENCE + bos)
    few = len(range(0, (room - bos - SUBSEQUENCE) // SUBSEQUENCE, 5))  # samples that ask about a context
    seed = int(torch.randint(0, 2**31, (1,), generator=generator))
    test = copying_test(source.vocab, room, n * max(1, few), seed, source.bos_id)
    context = test.tokens[::few, int(bos) : -PREFIX]
    pieces = context.unflatten(1, (-1, SUBSEQUENCE))
    prefixes, answers = pieces[..., :PREFIX], pieces[..., PREFIX]
    chance, questions = 1 / pieces.shape[1], []
    for changed in CHANGED:
        which = torch.randint(0, pieces.shape[1], (n, 1), generator=generator)
        query = prefixes[torch.arange(n), which[:, 0]].clone()
        places = some(PREFIX, changed, n, generator)
        query.scatter_(1, places, _others(source, query.gather(1, places), generator))
        questions.append(
            Questions(
                task="fuzzy",
                variant=f"changed={changed}",
                query=query[:, None],
                answer=answers.gather(1, which),
                chance=chance,
            )
        )
    drawn = source.vocab[torch.randint(0, len(source.vocab), (n, 1, PREFIX), generator=generator)]
    control = Questions(
        task="fuzzy", variant="", query=drawn, answer=one_of(answers, generator), chance=chance, control=True
    )
    return [source.prompts(context, answers, *questions, control)]


def _others(source: Source, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random tokens other than these."""
    place = torch.searchsorted(source.vocab, tokens.contiguous())
    step = torch.randint(1, len(source.vocab), tokens.shape, generator=generator)
    return source.vocab[(place + step) % len(source.vocab)]


def fuzzy_rule(context: Sequence[int], query: Sequence[int]) -> int:
    """What followed the run of twelve tokens that agrees with the query at most places."""
    n = len(query)
    agree = [sum(a == b for a, b in zip(context[i : i + n], query, strict=True)) for i in range(len(context) - n)]
    return context[agree.index(max(agree)) + n]
