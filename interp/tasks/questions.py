"""What a task asks: contexts, and the questions that share one. All tokens are drawn on the CPU from a seed."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.training.errors import InputError

N_PROMPTS = 256
"""Independent contexts of a variant; tasks with long contexts take half, their controls a quarter."""
MAX_QUESTIONS = 4
"""About one context."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What prompts are drawn from."""

    vocab: Int[Tensor, " vocab"]
    """Token ids (`interp.prompts.drawable`)."""
    n_ctx: int
    bos_id: int | None
    n_prompts: int = N_PROMPTS
    seed: int = 0
    encode: Callable[[str], list[int]] | None = None
    """The tokenizer, without special tokens; None where there is none."""

    def generator(self, name: str) -> torch.Generator:
        """For the task and variant `name`: which others are drawn changes none of its prompts."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))

    def distinct(self, count: int, n_prompts: int, generator: torch.Generator) -> Int[Tensor, "prompt count"]:
        """Tokens that differ within a prompt. Raises InputError where the vocabulary has fewer."""
        if len(self.vocab) < count:
            raise InputError(f"needs {count} different tokens, and this tokenizer has {len(self.vocab)} to draw from")
        picks = [torch.randperm(len(self.vocab), generator=generator)[:count] for _ in range(n_prompts)]
        return self.vocab[torch.stack(picks)]

    def room_for(self, length: int, block: int) -> None:
        """InputError unless a context of `length`, a BOS where the model has one, and a query fit."""
        needed = length + block + (self.bos_id is not None)
        if needed > self.n_ctx:
            raise InputError(f"needs {needed} positions, and n_ctx is {self.n_ctx}")

    def prompts(
        self, context: Int[Tensor, "prompt pos"], choices: Int[Tensor, "prompt choice"], *questions: "Questions"
    ) -> "TaskPrompts":
        """The context, with a BOS in front where the model has one, and its questions. Raises InputError where they
        are too long together."""
        self.room_for(context.shape[1], questions[0].query.shape[2])
        bos = [] if self.bos_id is None else [torch.full((len(context), 1), self.bos_id)]
        return TaskPrompts(torch.cat([*bos, context], dim=1), bool(bos), questions, choices)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions of one kind, the same number about each context."""

    task: str
    variant: str
    """Such as `pairs=8`; of a control, empty if it is one for all variants."""
    query: Int[Tensor, "prompt question block"]
    """What follows the context; the answer is the next token."""
    answer: Int[Tensor, "prompt question"]
    chance: float
    """Accuracy of the guess that the task's docstring names."""
    control: bool = False
    """Nothing in the context tells the answer."""
    rules: Mapping[str, Float[Tensor, "prompt question choice"]] = field(default_factory=dict)
    """Distributions over the choices to compare the model's with."""


class TaskPrompts(NamedTuple):
    """Contexts and all that is asked about them, so that each runs once. All queries have one length."""

    context: Int[Tensor, "prompt pos"]
    bos: bool
    """Whether contexts begin with a BOS."""
    questions: tuple[Questions, ...]
    choices: Int[Tensor, "prompt choice"]
    """The tokens that a guess by the rule of chance picks from; the answers are among them."""


def some(count: int, chosen: int, n_prompts: int, generator: torch.Generator) -> Int[Tensor, "prompt chosen"]:
    """`chosen` different numbers below `count`, for each prompt."""
    return torch.rand(n_prompts, count, generator=generator).argsort(dim=1)[:, :chosen]


def one_of(values: Int[Tensor, "prompt value"], generator: torch.Generator) -> Int[Tensor, "prompt 1"]:
    """One value of each prompt, at random."""
    pick = torch.randint(0, values.shape[1], (len(values), 1), generator=generator)
    return values.gather(1, pick)


def that_fit(values: Iterable[int], draw: Callable[[int], list[TaskPrompts]]) -> list[TaskPrompts]:
    """Sheets of all variants that context and vocabulary have room for. Raises InputError if not even one fits."""
    groups, error = [], None
    for value in values:
        try:
            groups += draw(value)
        except InputError as why:
            error = error or why
    if not groups and error is not None:
        raise error
    return groups
