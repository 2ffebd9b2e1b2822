"""Names of several tokens: copying a token inside a name against copying whole names, one after the other."""

from collections import defaultdict
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.tasks.questions import MAX_QUESTIONS, Questions, Source, TaskPrompts, one_of, some
from copyscope.training.errors import InputError

N_NAMES = 8
STRING_LENGTH = 3
LEVELS = ("token", "whole")
SEPARATORS = (",", ";", "\n")

_VERBS = "load read parse write build check find make start open close merge sort count draw clear send print copy move"
_NOUNS = (
    "table value path name list file node item line page word color event index point model image group token score"
)
NAMES = [f"{verb}_{noun}" for verb in _VERBS.split() for noun in _NOUNS.split()]


def draw_identifiers(source: Source) -> list[TaskPrompts]:
    """Eight names of several tokens with a separator after each. `token`: a name up to its last token; the answer is
    that token. `whole`: a name and its separator; the answer is the first token of the name that came next. The
    separator is the same everywhere, so that a match of the last token alone cannot tell which name comes next (after
    the token- and concept-copying of Feucht et al. 2025, arXiv 2504.03022).

    Of two kinds: `strings`, three random tokens, which can only be copied token by token, and `names`, a verb and a
    noun joined at random (`load_table`), as many tokens each as most of them have; these only where the tokenizer makes
    nine or more of one length that differ in their first and in their last token. What strings lack of names is what it
    helps to know them as units.

    Chance 1/8: the last (first) token of any of the names. Control: a name that is not in the context.
    """
    groups, error = [], None
    kinds: dict[str, Callable[[Source, str, int], tuple[Tensor, Tensor]]] = {"strings": _strings, "names": _names}
    for kind, draw in kinds.items():
        try:
            for level in LEVELS:
                for control in (False, True):
                    n = max(2, source.n_prompts // (4 if control else 2))
                    names, separator = draw(source, f"{level} {control}", n)
                    groups.append(_group(source, f"{kind} {level}", names, separator, control))
        except InputError as why:
            error = error or why
    if not groups and error is not None:
        raise error
    return groups


def _group(
    source: Source,
    variant: str,
    names: Int[Tensor, "prompt name token"],
    separator: Int[Tensor, "prompt 1"],
    control: bool,
) -> TaskPrompts:
    """The last of the names is not shown."""
    n, generator = len(names), source.generator(f"identifiers {variant} {control} asked")
    shown, unseen = names[:, :N_NAMES], names[:, N_NAMES:]
    context = torch.cat([shown, separator[:, None].expand(-1, N_NAMES, -1)], dim=2).flatten(1)
    whole = variant.endswith("whole")
    choices = shown[:, :, 0 if whole else -1]
    if control:
        query, answer = unseen, one_of(choices, generator)
    else:
        asked = some(N_NAMES - whole, MAX_QUESTIONS, n, generator)
        query, answer = shown[torch.arange(n)[:, None], asked], choices.gather(1, asked + whole)
    end = separator[:, None].expand(-1, query.shape[1], -1)
    query = torch.cat([query, end], dim=2) if whole else query[..., :-1]
    questions = Questions(
        task="identifiers", variant=variant, query=query, answer=answer, chance=1 / N_NAMES, control=control
    )
    return source.prompts(context, choices, questions)


def _strings(source: Source, seed: str, n: int) -> tuple[Int[Tensor, "prompt name token"], Int[Tensor, "prompt 1"]]:
    tokens = source.distinct((N_NAMES + 1) * STRING_LENGTH + 1, n, source.generator(f"identifiers strings {seed}"))
    return tokens[:, 1:].unflatten(1, (N_NAMES + 1, STRING_LENGTH)), tokens[:, :1]


def _names(source: Source, seed: str, n: int) -> tuple[Int[Tensor, "prompt name token"], Int[Tensor, "prompt 1"]]:
    """Names whose first tokens differ within a prompt, and whose last tokens do."""
    pool, separator = _pool(source)
    generator = source.generator(f"identifiers names {seed}")
    prompts = [_different(pool[torch.randperm(len(pool), generator=generator)]) for _ in range(n)]
    if any(len(names) <= N_NAMES for names in prompts):
        raise InputError(f"this tokenizer makes too few different names; {N_NAMES + 1} are needed")
    return torch.stack(prompts), torch.full((n, 1), separator)


def _pool(source: Source) -> tuple[Int[Tensor, "name token"], int]:
    """Names of the length that most have, and the separator."""
    if source.encode is None:
        raise InputError("needs a tokenizer, and this series has none")
    single = [ids[0] for text in SEPARATORS if len(ids := source.encode(text)) == 1]
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for name in NAMES:
        ids = source.encode(f" {name}")
        if len(ids) > 1 and not set(ids) & set(single):
            by_length[len(ids)].append(ids)
    if not single or not by_length:
        raise InputError("this tokenizer has no separator or no names of several tokens")
    return torch.tensor(max(by_length.values(), key=len)), single[0]


def _different(names: Int[Tensor, "name token"]) -> Int[Tensor, "chosen token"]:
    """The first `N_NAMES` + 1 that share neither first nor last token with one before; fewer where there are not so
    many."""
    firsts: set[int] = set()
    lasts: set[int] = set()
    chosen = []
    for name in names:
        first, last = int(name[0]), int(name[-1])
        if first not in firsts and last not in lasts:
            firsts.add(first)
            lasts.add(last)
            chosen.append(name)
        if len(chosen) > N_NAMES:
            break
    return torch.stack(chosen)
