"""What is measured under every ablation: prompts laid out so that shared contexts run once, and how to read the answer.

A row is a context followed by blocks, each of which continues the context and sees nothing of the other blocks: the
queries of the copying test share one row a context. Prompts that share nothing are rows without blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.memory import logit_elements, wide
from copyscope.interp.forward.residual import logits_of
from copyscope.interp.measures.behavior import check_test, check_tokens
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.generate import (
    SUFFIX,
    CopyingTest,
    fitting_length,
    natural_windows,
    repeated_random_tokens,
)
from copyscope.interp.prompts.packing import pack

MEASURES = ("copying_accuracy_exact", "copying_accuracy_token", "copying_loss", "natural_loss")


@dataclass(frozen=True, kw_only=True)
class Question:
    """Prompts and what is read off the final residual stream."""

    measures: tuple[str, ...]
    tokens: Int[Tensor, "row pos"]
    context: int
    """Positions of the context, the first of each row."""
    block: int
    """Positions of each block after it; 0 without blocks."""
    read: Int[Tensor, " read"]
    """Positions whose final residual stream is read."""
    score: Callable[[Tensor, Tensor], Tensor]
    """(final residual [n, read, d_model], row of each [n]) → [n, measure], a mean over the row's samples, on the
    model's device."""
    samples: Float[Tensor, "row block_or_1"]
    """1 where a block is a sample of its own, 0 where it only fills up the row."""

    @property
    def weight(self) -> Float[Tensor, " row"]:
        """How much each row counts: its samples."""
        return self.samples.sum(dim=1)

    @property
    def unpacked(self) -> Int[Tensor, "block_or_1 prompt_pos"]:
        """The row's positions that make up each prompt."""
        context = torch.arange(self.context)
        if not self.block:
            return context[None]
        starts = range(self.context, self.tokens.shape[1], self.block)
        return torch.stack([torch.cat([context, torch.arange(s, s + self.block)]) for s in starts])

    def over_positions(self, value: Float[Tensor, "row pos *rest"]) -> Float[Tensor, " pos *rest"]:
        """Sum over prompts of a value at each position of a row, blocks taken together; divide by all `weight`."""
        rows = torch.einsum("r,rp...->p...", self.weight.to(value), value)
        if self.block:
            tail = value[:, self.context :].unflatten(1, (-1, self.block))
            rows[self.context :] = torch.einsum("rb,rbp...->p...", self.samples.to(value), tail).repeat(
                tail.shape[1], *[1] * (value.ndim - 2)
            )
        return rows

    def rows(self, chosen: Int[Tensor, " chosen"]) -> "Question":
        """The question about some rows only; `score` still takes numbers of rows of the whole."""
        return replace(self, tokens=self.tokens[chosen], samples=self.samples[chosen])


def copying_question(model: HookedModel, test: CopyingTest) -> Question:
    """Copying accuracy: exact and per token (definition 9)."""
    check_test(model, test)
    packed, device = pack(test), device_of(model)
    right, real = packed.suffix.to(device), packed.real.to(device, wide(device))

    def score(residual: Tensor, rows: Tensor) -> Tensor:
        best = torch.cat([logits_of(model, some).argmax(dim=-1) for some in _blocks_of_rows(model, residual)])
        hits = (best.view(len(rows), -1, SUFFIX) == right[rows]).to(real)
        share = real[rows]
        both = torch.stack([hits.amin(dim=2), hits.mean(dim=2)], dim=-1)  # (n, block, measure)
        return (both * share[..., None]).sum(dim=1) / share.sum(dim=1, keepdim=True)

    return Question(
        measures=("copying_accuracy_exact", "copying_accuracy_token"),
        tokens=packed.tokens,
        context=packed.length,
        block=packed.block,
        read=packed.read,
        score=score,
        samples=packed.real.float(),
    )


def loss_question(
    model: HookedModel, name: str, tokens: Int[Tensor, "prompt pos"], last: int | None = None
) -> Question:
    """Mean loss of the `last` tokens of each prompt (None: of all but the first), in nats."""
    check_tokens(model, tokens)
    length = tokens.shape[1]
    count = length - 1 if last is None else last
    device, tokens = device_of(model), tokens.cpu()
    wanted_tokens = tokens[:, -count:].to(device).long()

    def score(residual: Tensor, rows: Tensor) -> Tensor:
        targets = wanted_tokens[rows].flatten()
        losses, start = [], 0
        for some in _blocks_of_rows(model, residual.flatten(0, 1)):
            wanted = targets[start : start + len(some)]
            start += len(some)
            losses.append(torch.nn.functional.cross_entropy(logits_of(model, some).float(), wanted, reduction="none"))
        return torch.cat(losses).view(len(rows), count).to(wide(device)).mean(dim=1, keepdim=True)

    return Question(
        measures=(name,),
        tokens=tokens,
        context=length,
        block=0,
        read=torch.arange(length - count - 1, length - 1),
        score=score,
        samples=torch.ones(len(tokens), 1),
    )


def _blocks_of_rows(model: HookedModel, residual: Tensor) -> tuple[Tensor, ...]:
    per_row = model.cfg.d_vocab * (residual[0].numel() // model.cfg.d_model)
    return residual.split(max(1, logit_elements(model) // 4 // per_row))


def questions(
    model: HookedModel,
    test: CopyingTest,
    repeated: Int[Tensor, "prompt prompt_pos"] | None = None,
    windows: Int[Tensor, "window window_pos"] | None = None,
    seed: int = 0,
) -> list[Question]:
    """Copying accuracy, copying loss, and with `windows` the loss on natural text.

    `repeated`: prompts for the copying loss; None draws 16 (100 tokens twice, or what fits) from the test's tokens.
    """
    if repeated is None:
        repeated = default_repeated(model, test, seed)
    asked = [
        copying_question(model, test),
        loss_question(model, "copying_loss", repeated, repeated.shape[1] // 2),
    ]
    if windows is not None:
        asked.append(loss_question(model, "natural_loss", natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx)))
    return asked


def default_repeated(model: HookedModel, test: CopyingTest, seed: int = 0) -> Int[Tensor, "prompt pos"]:
    """16 prompts of 100 random tokens twice, or as many as fit, of the tokens that the test is made of."""
    bos_id = int(test.tokens[0, 0]) if test.has_bos else None
    length = fitting_length(model.cfg.n_ctx, 100, 2, bos_id)
    return repeated_random_tokens(test.tokens[:, int(test.has_bos) :].unique(), length, 16, seed, bos_id)
