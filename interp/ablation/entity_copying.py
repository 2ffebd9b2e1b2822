"""Which heads copy tokens, and which copy what stands further on in a name: their outputs from a prompt in which it
occurred, put into one in which it did not (Feucht et al. 2025)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.put_outputs import Rows, changes, logprobs, outputs_at
from copyscope.interp.forward.layers import Layout, can_run, slices
from copyscope.interp.forward.memory import within_memory
from copyscope.interp.forward.residual import batches
from copyscope.interp.measures.behavior import check_tokens
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.tasks.identifiers import NAMES, STRING_LENGTH
from copyscope.interp.tasks.questions import Source
from copyscope.training.errors import InputError

HALF, REPEATED = 30, 12
"""Tokens of the first part of a prompt, and of the stretch in it that comes again before the entity."""
MAX_ENTITY = 10
MIN_NAMES = 9


class EntityPrompts(NamedTuple):
    """Pairs of prompts that differ in their first part alone, so that `clean` tells what comes next and `corrupted`
    does not."""

    clean: Int[Tensor, "prompt pos"]
    corrupted: Int[Tensor, "prompt pos"]
    targets: Int[Tensor, "prompt 2"]
    """The right next token, and one of the clean first part that is not (the null)."""
    ahead: int
    """How many tokens before the last one outputs are put in: 0 or 1."""


def token_copying_prompts(source: Source) -> EntityPrompts:
    """Entities of three random tokens, the first of which is to be named. Raises InputError where the context or the
    vocabulary is too small."""
    drawn = source.distinct(STRING_LENGTH, source.n_prompts, source.generator("token copying entities"))
    return _drawn(source, [*drawn], ahead=0)


def concept_copying_prompts(source: Source) -> EntityPrompts:
    """Entities are names of two tokens or more, a verb and a noun joined (`loadTable`); the second token is to be named
    after the first. Raises InputError as `token_copying_prompts` does, and where the tokenizer makes under nine."""
    if source.encode is None:
        raise InputError("needs a tokenizer, and this series has none")
    pool = []
    for name in NAMES:
        verb, noun = name.split("_")
        ids = source.encode(f" {verb}{noun.capitalize()}")
        if 1 < len(ids) <= MAX_ENTITY and ids[0] != ids[1]:
            pool.append(torch.tensor(ids))
    if len(pool) < MIN_NAMES:
        raise InputError(f"this tokenizer makes too few names of several tokens; {MIN_NAMES} are needed")
    picks = torch.randint(0, len(pool), (source.n_prompts,), generator=source.generator("concept copying entities"))
    return _drawn(source, [pool[i] for i in picks], ahead=1)


def _drawn(source: Source, entities: list[Tensor], ahead: int) -> EntityPrompts:
    """`[B] … r e … , r` and, `ahead` tokens on, the entity's beginning; all other tokens differ. Where r e stands in
    the first part goes evenly from its beginning to its end."""
    source.room_for(HALF + 1 + REPEATED, ahead)
    generator = source.generator(f"causal copying {ahead}")
    needed = 2 * HALF + 1 + max(map(len, entities))
    bos = torch.tensor([] if source.bos_id is None else [source.bos_id], dtype=torch.long)
    clean, corrupted, targets = [], [], []
    for i, (entity, row) in enumerate(zip(entities, source.distinct(needed, len(entities), generator), strict=True)):
        row = row[~torch.isin(row, entity)]
        n_alone = HALF - REPEATED - len(entity)
        comma, repeated, alone, other_half = row[: 1 + REPEATED + n_alone + HALF].split([1, REPEATED, n_alone, HALF])
        before = round(n_alone * i / max(1, len(entities) - 1))
        half = torch.cat([alone[:before], repeated, entity, alone[before:]])
        end = torch.cat([comma, repeated, entity[:ahead]])
        clean.append(torch.cat([bos, half, end]))
        corrupted.append(torch.cat([bos, other_half, end]))
        null = alone[torch.randint(0, n_alone, (1,), generator=generator)]
        targets.append(torch.cat([entity[ahead : ahead + 1], null]))
    return EntityPrompts(torch.stack(clean), torch.stack(corrupted), torch.stack(targets), ahead)


@within_memory
@torch.no_grad()
def causal_copying(model: HookedModel, prompts: EntityPrompts) -> HeadScore:
    """Token-copying score of every head on `token_copying_prompts`, concept-copying score on `concept_copying_prompts`
    (Feucht et al. 2025, arXiv 2504.03022).

    A head's output at the token before the entity is taken from the clean prompt and put into the corrupted one; the
    score is the mean rise of the log-probability of the entity's first token there, or of its second one token later,
    where the first is given: the head then told of more than the next token. In nats, negative where it falls; the
    paper takes probabilities, which small models hardly move. The null is the same of another token of the clean
    prompt's first part. Over prompts; 2 or more.

    It does not see heads that only work together, and of a head in an early layer it sees what later ones make of it.
    Raises InputError for prompts that do not fit the model.
    """
    check_tokens(model, prompts.clean)
    parts = []
    n, n_pos = prompts.clean.shape
    packed, device = can_run(model), device_of(model)
    for some in slices(model, n, n_pos) if packed else batches(model, n, n_pos):
        layout = Layout.of(model, n_pos) if packed else None
        read = torch.arange(n_pos - prompts.ahead - 1, n_pos, device=device)
        clean, corrupted = (
            Rows(tokens=tokens[some].to(device), layout=layout, read=read)
            for tokens in (prompts.clean, prompts.corrupted)
        )

        def of(residual: Tensor, targets: Tensor = prompts.targets[some]) -> Float[Tensor, "row 2"]:
            return logprobs(model, residual[:, -1], targets)

        outputs = outputs_at(model, clean)[None, :, :, :1]
        parts.append(changes(model, corrupted, outputs, of, places=1)[0])  # (layer, head, row, 2)
    right, other = torch.cat(parts, dim=2).permute(3, 2, 0, 1)
    return HeadScore.of(right, other)
