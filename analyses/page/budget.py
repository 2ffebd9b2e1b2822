"""Which checkpoints' attention a page of limited size holds: those around what formed, and the rest evenly in log."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from copyscope.analyses.page.build import packed, page, script_json
from copyscope.analyses.page.contents import Payload
from copyscope.analyses.page.prompts import default_prompts, typed_prompt
from copyscope.analyses.page.texts import texts_of
from copyscope.analyses.tables.run import Run
from copyscope.training.errors import InputError
from copyscope.training.progress import Progress

PER_ELEMENT = 100
"""Bytes of an element beside its data."""


class Embedded(NamedTuple):
    """The attention that fits into a page, and what was left out of it."""

    blocks: dict[str, bytes]
    size: int
    """Bytes they add to the page."""
    notes: list[str]


def embed_attention(
    runs: Sequence[Run],
    content: Payload,
    max_bytes: int,
    progress: Progress | None = None,
    device: str = "auto",
    dtype: str = "float32",
    typed: Sequence[str] = (),
) -> dict[str, bytes]:
    """The page's blocks with attention and predictions of the default prompts and of `typed` text, as far as
    `max_bytes` reaches.

    Fills in the `prompts` and `left_out` of the index. Runs share what room there is; what one does not need is the
    next one's. A checkpoint that cannot be read is left out and named.
    """
    blocks = dict(content.blocks)
    room = max_bytes - len(page(content.index, blocks).encode())
    if room <= 0:
        content.index["left_out"].append(
            f"all attention: the page takes {(max_bytes - room) / 1e6:.1f} MB without it, more than the "
            f"{max_bytes / 1e6:g} MB asked for (--max-megabytes)"
        )
        return blocks
    for place, run in enumerate(runs):
        several = f"{content.entries[place].fields['name']}: " if len(runs) > 1 else ""
        try:
            one = _of_run(run, place, content, room // (len(runs) - place), progress, (device, dtype), typed)
        except InputError as error:
            content.index["left_out"].append(f"{several}all attention: {error}")
            continue
        blocks |= one.blocks
        room -= one.size
        content.index["left_out"] += [several + note for note in one.notes]
    return blocks


def _of_run(
    run: Run,
    place: int,
    content: Payload,
    room: int,
    progress: Progress | None,
    where: tuple[str, str],
    typed: Sequence[str],
) -> Embedded:
    texts = texts_of(run)
    prompts = [*default_prompts(run, texts), *(typed_prompt(texts, text) for text in typed)]
    entry = content.entries[place]
    known = [checkpoint.step for checkpoint in run.series.checkpoints]
    steps = [step for step in known if step in set(entry.fields["steps"])]
    if not prompts or not steps:
        raise InputError("there is no prompt for it" if steps else "no checkpoint that was scored is still there")
    from copyscope.analyses.page.attention import Models  # takes torch

    room -= len(script_json([prompt.entry(texts, steps) for prompt in prompts]))
    models = Models(run, 0, *where)  # each is needed once
    blocks: dict[str, bytes] = {}
    shown: list[int] = []
    damaged: list[str] = []
    size, full = 0, False
    order = priority(steps, entry.band)
    for done, step in enumerate(order):
        try:
            new = {f"attention/{place}/{p.id}/{step}": models.attention(step, p.ids) for p in prompts}
            new |= {f"predictions/{place}/{p.id}/{step}": models.predictions(step, p.ids, texts.words) for p in prompts}
        except InputError as error:
            damaged.append(f"attention at step {step}: {error}")
            continue
        more = sum(len(packed(data)) + len(name) + PER_ELEMENT for name, data in new.items())
        full = size + more > room
        if full:
            break
        blocks |= new
        size += more
        shown.append(step)
        if progress:
            progress("attention for the page", done + 1, len(order))
    if progress and full:
        progress("attention for the page", len(order), len(order))
    entry.fields["prompts"] = [prompt.entry(texts, sorted(shown)) for prompt in prompts] if shown else []
    notes = damaged
    if full:
        notes = [
            f"attention at {len(steps) - len(shown) - len(damaged)} of {len(steps)} checkpoints, to keep the page "
            "small (--max-megabytes); `copyscope explore` shows them all",
            *damaged,
        ]
    return Embedded(blocks, size, notes)


def priority(steps: Sequence[int], band: tuple[float, float] | None) -> list[int]:
    """All `steps`, the most telling first: the last, the first, then each time the one farthest from those chosen.

    Distance is in the log of the step, and counts double within `band`, where heads and copying formed.
    """
    at = np.log1p(np.array(steps, dtype=float))
    place = at / max(at[-1], 1e-9)
    if band is not None and band[1] > band[0]:
        low, high = np.log1p(band)
        place = place + np.clip((at - low) / (high - low), 0, 1)
    order = [len(steps) - 1]
    far = np.abs(place - place[-1])
    while len(order) < len(steps):
        far[order] = -1.0
        new = int(far.argmax())
        order.append(new)
        far = np.minimum(far, np.abs(place - place[new]))
    return [steps[i] for i in order]
