"""What the model does: copying accuracy, copying loss, natural-text loss, in-context-learning score."""

from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import Layout, can_run, run_layers, slices
from copyscope.interp.forward.residual import batches, final_residual, logits_of, token_losses
from copyscope.interp.models.hooked import HookedModel
from copyscope.interp.prompts.generate import SUFFIX, CopyingTest, copying_test, natural_windows
from copyscope.interp.prompts.packing import pack
from copyscope.training.errors import InputError

__all__ = [
    "CopyingAccuracy",
    "CopyingLoss",
    "CopyingTest",
    "ICLScore",
    "SplitLoss",
    "copying_accuracy",
    "copying_hits",
    "copying_loss",
    "copying_test",
    "icl_of",
    "icl_score",
    "induction_predictable",
    "natural_loss",
    "natural_losses",
    "split_loss",
]


class CopyingAccuracy(NamedTuple):
    """Result of the copying test; shares in [0, 1]."""

    exact: float
    """Share of samples whose greedy continuation is the whole 6-token suffix."""
    token: float
    """Share of suffix tokens that are the most likely next token, given the right ones before (teacher forcing)."""
    by_index: pl.DataFrame
    """index (of the subsequence asked for), samples, exact, token."""
    exact_se: float
    """Standard error over contexts: samples of one context are not independent. NaN with a single context."""
    token_se: float


class CopyingLoss(NamedTuple):
    """Mean next-token loss on repeated random tokens, in nats."""

    first_half: float
    second_half: float
    difference: float
    """second_half - first_half. About 0 without copying; down to minus the whole of first_half with it."""
    difference_se: float
    """Standard error over prompts; NaN with a single prompt."""


class ICLScore(NamedTuple):
    """Loss at a late position minus loss at an early one, in nats, with what it was taken from."""

    score: float
    early_loss: float
    late_loss: float
    early_position: int
    late_position: int
    score_se: float
    """Standard error over windows; NaN with a single window."""


def copying_accuracy(model: HookedModel, test: CopyingTest) -> CopyingAccuracy:
    """Accuracy on the random-token copying test (2409.09281; definition 9).

    One forward pass with the suffix appended decides the greedy continuation: it is right in full exactly if each
    suffix token is the most likely one given those before it. Samples that share a context share its forward pass,
    unless hooks are on the model. The number cannot tell *how* the model copies, and random tokens are far from its
    training text.

    Raises:
        InputError: the test is longer than n_ctx or has token ids outside the vocabulary.
    """
    hits = copying_hits(model, test)
    table = pl.DataFrame(
        {
            "index": test.index.tolist(),
            "exact": hits.all(dim=1).double().tolist(),
            "token": hits.double().mean(dim=1).tolist(),
        }
    )
    by_index = table.group_by("index").agg(pl.len().alias("samples"), pl.col("exact", "token").mean()).sort("index")
    contexts = table.group_by(pl.Series(test.context.tolist()), maintain_order=True).agg(
        pl.col("exact", "token").mean()
    )
    exact_se, token_se = (_standard_error(contexts[name].to_torch()) for name in ("exact", "token"))
    exact, token = hits.all(dim=1).double().mean().item(), hits.double().mean().item()
    return CopyingAccuracy(exact, token, by_index, exact_se, token_se)


@torch.no_grad()
def copying_hits(model: HookedModel, test: CopyingTest) -> Bool[Tensor, "sample 6"]:
    """Which suffix tokens are the most likely next token, sample by sample; for standard errors (over contexts)."""
    check_test(model, test)
    if not can_run(model):
        return _hits_row_by_row(model, test)
    packed = pack(test)
    n_pos = packed.tokens.shape[1]
    layout = Layout(packed.length, packed.block, n_pos, model.cfg.device)
    hits = torch.zeros(len(test.tokens), SUFFIX, dtype=torch.bool)
    for rows in slices(len(packed.tokens), n_pos):
        residual = run_layers(model, packed.tokens[rows], layout, packed.read.to(layout.device))
        best = logits_of(model, residual).argmax(dim=-1).cpu().view(packed.suffix[rows].shape)
        hits[packed.sample[rows]] = best == packed.suffix[rows]
    return hits


def _hits_row_by_row(model: HookedModel, test: CopyingTest) -> Tensor:
    tokens = torch.cat([test.tokens, test.suffix[:, :-1]], dim=1)
    hits = []
    for rows in batches(model, *tokens.shape):
        residual = final_residual(model, tokens[rows])[:, -SUFFIX:]
        hits.append(logits_of(model, residual).argmax(dim=-1).cpu() == test.suffix[rows].cpu())
    return torch.cat(hits)


def copying_loss(model: HookedModel, tokens: Int[Tensor, "prompt pos"]) -> CopyingLoss:
    """Mean loss over each half of repeated random tokens (definition 9), the continuous counterpart of copying
    accuracy.

    `tokens` are `repeated_random_tokens(..., repeats=2)`, with or without BOS. Without BOS nothing predicts the
    first token, and the first half is the mean over the others. The second half counts its first token too, which
    nothing in the prompt foretells.

    Raises:
        InputError: the two halves differ.
    """
    half = tokens.shape[1] // 2
    bos = tokens.shape[1] % 2
    if half + bos < 2 or not torch.equal(tokens[:, bos : bos + half], tokens[:, bos + half :]):
        raise InputError(
            "copying_loss: each prompt must be (a BOS and) the same tokens twice, at least two if without BOS"
        )
    check_tokens(model, tokens)
    losses = token_losses(model, tokens).double()
    first, second = losses[:, :-half].mean(dim=1), losses[:, -half:].mean(dim=1)
    error = _standard_error(second - first)
    return CopyingLoss(first.mean().item(), second.mean().item(), (second - first).mean().item(), error)


def natural_losses(model: HookedModel, windows: Int[Tensor, "window pos"]) -> Float[Tensor, "window pos_less_1"]:
    """Next-token loss of every token but the first of natural text, in nats; entry p is that of token p + 1."""
    return token_losses(model, natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx))


def natural_loss(model: HookedModel, windows: Int[Tensor, "window pos"]) -> float:
    """Mean next-token loss on natural text, in nats a token (of this tokenizer: not comparable across tokenizers)."""
    return natural_losses(model, windows).mean().item()


def icl_score(model: HookedModel, windows: Int[Tensor, "window pos"]) -> ICLScore:
    """In-context-learning score (Olsson et al. 2022; definition 10): loss of token 500 minus loss of token 50, in
    nats.

    Mean over windows; negative when context helps. For windows under 512 tokens both positions are scaled by the
    length (and recorded). The number says that a longer context helps, not by which means, and it mixes in that later
    tokens may be easier or harder in themselves.
    """
    return icl_of(natural_losses(model, windows))


def icl_of(losses: Float[Tensor, "window pos_less_1"]) -> ICLScore:
    """`icl_score` of losses at hand (`natural_losses`)."""
    length = losses.shape[1] + 1
    at, after = (50, 500) if length >= 512 else (max(1, 50 * length // 512), 500 * length // 512)
    early, late = (losses[:, p - 1].double() for p in (at, after))  # entry p is the loss of predicting token p + 1
    error = _standard_error(late - early)
    return ICLScore((late - early).mean().item(), early.mean().item(), late.mean().item(), at, after, error)


class SplitLoss(NamedTuple):
    """Loss on natural text, split by whether induction could have predicted the token; in nats."""

    predictable: float
    """Mean loss of tokens that induction could predict; NaN if there is none."""
    other: float
    share: float
    """Of tokens that induction could predict."""
    by_position: pl.DataFrame
    """position (of the predicted token), kind (`predictable` or `other`), count, loss."""


def induction_predictable(windows: Int[Tensor, "window pos"]) -> Bool[Tensor, "window pos_less_1"]:
    """Which tokens followed the current token before: entry p is whether the pair of tokens p, p + 1 occurred earlier.

    What a perfect induction head could get right; whether the model got it by induction is another question, since
    frequent pairs are also learnt by heart.
    """
    # The trainer has this function too: training and interp do not import each other, and a test holds the two equal.
    pairs = windows.long()
    name = pairs[:, :-1] * (int(pairs.max()) + 1) + pairs[:, 1:]
    # A pair has occurred before unless it is the first of its name; a stable sort keeps the first one first.
    ordered, order = name.sort(dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter_(1, order, again)


def split_loss(losses: Float[Tensor, "window pos_less_1"], predictable: Bool[Tensor, "window pos_less_1"]) -> SplitLoss:
    """Splits the losses of natural text (`natural_losses`) by `induction_predictable`, as a whole and by position.

    That the first kind is easier shows in the first checkpoint that learns pairs; what counts is how the two part
    while context grows.
    """
    tables, means = [], []
    for kind, mask in (("predictable", predictable), ("other", ~predictable)):
        count, total = mask.sum(dim=0), (losses * mask).sum(dim=0).double()
        means.append((total.sum() / count.sum()).item())
        table = {"position": range(1, losses.shape[1] + 1), "count": count.tolist(), "total": total.tolist()}
        tables.append(pl.DataFrame(table).with_columns(kind=pl.lit(kind)).filter(pl.col("count") > 0))
    by_position = pl.concat(tables).select("position", "kind", "count", loss=pl.col("total") / pl.col("count"))
    share = predictable.double().mean().item()
    return SplitLoss(means[0], means[1], share, by_position.sort("position", "kind"))


def _standard_error(values: Tensor) -> float:
    return (values.double().std() / len(values) ** 0.5).item() if len(values) > 1 else float("nan")


def check_tokens(model: HookedModel, tokens: Int[Tensor, "row pos"]) -> None:
    """InputError if there are no prompts, or if they are longer than n_ctx or hold ids outside the vocabulary."""
    if not tokens.numel():
        raise InputError(f"prompts of shape {tuple(tokens.shape)} hold no token; give at least one")
    if tokens.shape[1] > model.cfg.n_ctx:
        raise InputError(f"prompts of {tokens.shape[1]} tokens are longer than the model's n_ctx={model.cfg.n_ctx}")
    if int(tokens.max()) >= model.cfg.d_vocab or int(tokens.min()) < 0:
        raise InputError(f"prompts hold token ids outside the model's vocabulary of {model.cfg.d_vocab}")


def check_test(model: HookedModel, test: CopyingTest) -> None:
    """InputError if the test does not fit the model."""
    check_tokens(model, torch.cat([test.tokens, test.suffix], dim=1))
