"""Few-shot tasks with words, for tokenizers that have the words as single tokens. Word lists of our own."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from copyscope.interp.models.tokenizer import single_tokens
from copyscope.interp.tasks.questions import MAX_QUESTIONS, Questions, Source, TaskPrompts, one_of, some
from copyscope.training.errors import InputError

N_SHOTS = 5
N_ITEMS = 4
MIN_PAIRS = N_SHOTS + MAX_QUESTIONS
ARROW, END = " ->", "\n"

_PLAIN = (
    "water house music school money story power light paper river table stone bread horse heart earth field sound "
    "color white black green world child night ocean metal glass train point value number letter market doctor"
)
_PLURALS = (
    "item items, name names, value values, key keys, file files, line lines, word words, test tests, type types, "
    "list lists, node nodes, user users, day days, point points, number numbers, part parts, method methods, "
    "change changes, option options, result results, book books, tree trees, car cars, hand hands, child children, "
    "man men, class classes, city cities, country countries, woman women"
)
_OPPOSITES = (
    "hot cold, big small, up down, in out, left right, true false, old new, open closed, start end, yes no, "
    "black white, high low, fast slow, first last, good bad, long short, hard soft, day night, push pull, win lose, "
    "buy sell, north south, east west, early late, rich poor, happy sad, love hate, before after, above below"
)
_CAPITALS = (
    "France Paris, Japan Tokyo, Italy Rome, Germany Berlin, Spain Madrid, Russia Moscow, China Beijing, Egypt Cairo, "
    "Greece Athens, Cuba Havana, Iraq Baghdad, Iran Tehran, Austria Vienna, Ireland Dublin, England London, "
    "Portugal Lisbon, Poland Warsaw, Norway Oslo, Hungary Budapest, Peru Lima, Kenya Nairobi, Turkey Ankara, "
    "Canada Ottawa, Belgium Brussels, Syria Damascus"
)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(before, after) for before, after in map(str.split, text.split(","))]


PAIRS: dict[str, list[tuple[str, str]]] = {
    "capitalise": [(word, word.capitalize()) for word in _PLAIN.split()],
    "plural": _pairs(_PLURALS),
    "opposite": _pairs(_OPPOSITES),
    "capital": _pairs(_CAPITALS),
}
PICKS = ("first", "last")


def draw_words(source: Source) -> list[TaskPrompts]:
    """Five examples `word -> answer`, a line each, then another word and an arrow (after Todd et al. 2024, arXiv
    2310.15213): capitalise, singular → plural, opposite, country → capital; and, from four words, the first or the
    last. Only pairs whose words are single tokens, at least nine.

    Chance 1/pairs: any answer of the list (1/4 of the four words). Control: examples with shuffled answers, and any of
    them as the answer. There is no ceiling: a rule would have to know the words. What the model knows without examples
    is what the log-probability is compared with.
    """
    if source.encode is None:
        raise InputError("needs a tokenizer, and this series has none")
    groups, error = [], None
    for name in (*PAIRS, *PICKS):
        try:
            for control in (False, True):
                groups.append(_picked(source, name, control) if name in PICKS else _paired(source, name, control))
        except InputError as why:
            error = error or why
    if not groups and error is not None:
        raise error
    return groups


def _paired(source: Source, name: str, control: bool) -> TaskPrompts:
    before, after = _ids_of_pairs(source, name)
    n, generator = max(2, source.n_prompts // 4), source.generator(f"words {name} {control}")
    order = some(len(before), MIN_PAIRS, n, generator)
    shown, asked = order[:, :N_SHOTS], order[:, N_SHOTS:]
    answers = shown.roll(1, dims=1) if control else shown
    choices = after.expand(n, -1)
    right = torch.cat([one_of(choices, generator) for _ in range(MAX_QUESTIONS)], dim=1) if control else after[asked]
    questions = Questions(
        task="words",
        variant=name,
        query=_with_arrow(source, before[asked][..., None]),
        answer=right,
        chance=1 / len(before),
        control=control,
    )
    return source.prompts(_examples(source, before[shown][..., None], after[answers]), choices, questions)


def _picked(source: Source, name: str, control: bool) -> TaskPrompts:
    words = _single_tokens(source, [word for pairs in PAIRS.values() for pair in pairs for word in pair])
    ids = torch.tensor(sorted(set(words.values())))
    if len(ids) < 2 * N_ITEMS:
        raise InputError(f"{name}: the tokenizer has {len(ids)} words as single tokens; {2 * N_ITEMS} are needed")
    n, generator = max(2, source.n_prompts // 4), source.generator(f"words {name} {control}")
    lists = torch.stack([ids[some(len(ids), N_ITEMS, n, generator)] for _ in range(N_SHOTS + 1)], dim=1)
    place = torch.full(lists.shape[:2], 0 if name == "first" else N_ITEMS - 1)
    if control:
        place = torch.randint(0, N_ITEMS, place.shape, generator=generator)
    answer = lists.gather(2, place[..., None])[..., 0]  # (prompt, list)
    questions = Questions(
        task="words",
        variant=name,
        query=_with_arrow(source, lists[:, -1:]),
        answer=answer[:, -1:],
        chance=1 / N_ITEMS,
        control=control,
    )
    return source.prompts(_examples(source, lists[:, :-1], answer[:, :-1]), lists[:, -1], questions)


def _ids_of_pairs(source: Source, name: str) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    words = _single_tokens(source, [word for pair in PAIRS[name] for word in pair])
    pairs = [(words[a], words[b]) for a, b in PAIRS[name] if a in words and b in words]
    if len(pairs) < MIN_PAIRS:
        raise InputError(
            f"{name}: the tokenizer has {len(pairs)} of {len(PAIRS[name])} pairs as single tokens, and {MIN_PAIRS} are "
            "needed"
        )
    before, after = torch.tensor(pairs).T
    return before, after


def _single_tokens(source: Source, words: Iterable[str]) -> dict[str, int]:
    assert source.encode is not None
    return single_tokens(source.encode, words)


def _with_arrow(source: Source, words: Int[Tensor, "prompt line word"]) -> Int[Tensor, "prompt line pos"]:
    assert source.encode is not None
    arrow = torch.tensor(source.encode(ARROW))
    return torch.cat([words, arrow.expand(*words.shape[:2], -1)], dim=2)


def _examples(
    source: Source, words: Int[Tensor, "prompt line word"], answers: Int[Tensor, "prompt line"]
) -> Int[Tensor, "prompt pos"]:
    assert source.encode is not None
    end = torch.tensor(source.encode(END))
    lines = [_with_arrow(source, words), answers[..., None], end.expand(*answers.shape, -1)]
    return torch.cat(lines, dim=2).flatten(1)
