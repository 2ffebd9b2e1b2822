"""A fresh Markov chain in every prompt: does the model count which state follows which?"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copyscope.interp.tasks.questions import MAX_QUESTIONS, Questions, Source, TaskPrompts, some
from copyscope.training.errors import InputError

N_STATES = 8
LENGTH = 96


def draw_markov(source: Source) -> list[TaskPrompts]:
    """A chain over 8 random tokens whose transition probabilities are drawn evenly (Dirichlet 1) for each prompt
    (arXiv 2402.11004), then one of the tokens. The answer is the token that followed it most often in the context;
    states for which two did so equally often are not asked for.

    Chance: the share of questions whose answer is the most common token of the context (the unigram rule). Control:
    independent draws, each token equally likely, and one more draw as the answer: chance 1/8. Beside accuracy, the KL
    divergence of the model's next token from two rules, in nats: `bigram`, (count of the transition + 1) / (count of
    the token + 8), and `unigram`, (count of the next token + 1) / (tokens + 8).
    """
    variant = f"states={N_STATES}"
    n, generator = max(2, source.n_prompts // 2), source.generator(f"markov {variant}")
    source.room_for(LENGTH, 1)
    states, asked = _chains(n, generator)
    tokens = source.distinct(N_STATES, n, generator)
    counts = _transitions(states, asked)
    ones = torch.nn.functional.one_hot(states, N_STATES).sum(dim=1)
    answer = counts.argmax(dim=2)
    unigram = (ones + 1) / (LENGTH + N_STATES)
    questions = Questions(
        task="markov",
        variant=variant,
        query=tokens.gather(1, asked)[..., None],
        answer=tokens.gather(1, answer),
        chance=(ones.argmax(dim=1, keepdim=True) == answer).double().mean().item(),
        rules={
            "kl_bigram": (counts + 1) / (counts.sum(dim=2, keepdim=True) + N_STATES),
            "kl_unigram": unigram[:, None].expand(-1, asked.shape[1], -1),
        },
    )
    return [source.prompts(tokens.gather(1, states), tokens, questions), _independent(source, variant)]


def _independent(source: Source, variant: str) -> TaskPrompts:
    n, generator = max(2, source.n_prompts // 4), source.generator(f"markov {variant} control")
    tokens = source.distinct(N_STATES, n, generator)
    context = torch.randint(0, N_STATES, (n, LENGTH), generator=generator)
    asked = some(N_STATES, MAX_QUESTIONS, n, generator)
    questions = Questions(
        task="markov",
        variant=variant,
        query=tokens.gather(1, asked)[..., None],
        answer=tokens.gather(1, torch.randint(0, N_STATES, asked.shape, generator=generator)),
        chance=1 / N_STATES,
        control=True,
    )
    return source.prompts(tokens.gather(1, context), tokens, questions)


def markov_rule(context: Sequence[int], query: Sequence[int]) -> int:
    """The token that followed the last one most often; if it is new, the last of the context."""
    whole = [*context, query[-1]]
    followed = Counter(after for token, after in pairwise(whole) if token == query[-1])
    return followed.most_common(1)[0][0] if followed else context[-1]


def _chains(n: int, generator: torch.Generator) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt question"]]:
    """States over time, and states to ask for."""
    kept: list[tuple[Tensor, Tensor]] = []
    missing = n
    for _ in range(50):
        drawn = _exponential((2 * missing, N_STATES, N_STATES), generator)
        steps = [torch.randint(0, N_STATES, (2 * missing,), generator=generator)]
        for _ in range(LENGTH - 1):
            steps.append(torch.multinomial(drawn[torch.arange(len(drawn)), steps[-1]], 1, generator=generator)[:, 0])
        states = torch.stack(steps, dim=1)
        clear = _clear(_transitions(states, torch.arange(N_STATES).expand(len(states), -1)))
        order = torch.rand(clear.shape, generator=generator).masked_fill(~clear, -1).argsort(dim=1, descending=True)
        good = clear.sum(dim=1) >= MAX_QUESTIONS
        kept.append((states[good][:missing], order[good][:missing, :MAX_QUESTIONS]))
        missing -= len(kept[-1][0])
        if not missing:
            break
    else:
        raise InputError("no chains with clear transitions were drawn; give another seed")
    states, asked = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return states, asked


def _exponential(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Normalised, these are even draws of probabilities (Dirichlet 1)."""
    return -torch.rand(shape, generator=generator).clamp(min=1e-9).log()


def _transitions(
    states: Int[Tensor, "prompt pos"], asked: Int[Tensor, "prompt question"]
) -> Float[Tensor, "prompt question state"]:
    """How often each state followed those asked for, the step from the end of the context to them included."""
    after = torch.nn.functional.one_hot(states[:, 1:], N_STATES)
    before = states[:, :-1, None] == asked[:, None]  # (prompt, pos, question)
    counts = torch.einsum("npq,nps->nqs", before.float(), after.float())
    itself = (states[:, -1:] == asked).float()
    return counts.scatter_add(2, asked[..., None], itself[..., None])


def _clear(counts: Float[Tensor, "prompt question state"]) -> Bool[Tensor, "prompt question"]:
    """Where one state followed more often than any other."""
    top = counts.topk(2, dim=2).values
    return top[..., 0] > top[..., 1]
