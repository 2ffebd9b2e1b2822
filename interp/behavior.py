"""What the model does: copying accuracy, copying loss, natural-text loss, in-context-learning score."""

from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from interp.models import HookedModel
from interp.prompts import PREFIX, SUFFIX, CopyingTest, copying_test, natural_windows
from interp.runs import Stage, batches, final_residual, is_hooked, logits_of, run_stages, to_device, token_losses
from training.checkpoints import InputError

__all__ = [
    "CopyingAccuracy",
    "CopyingLoss",
    "CopyingTest",
    "ICLScore",
    "copying_accuracy",
    "copying_hits",
    "copying_loss",
    "copying_test",
    "icl_score",
    "natural_loss",
]


class CopyingAccuracy(NamedTuple):
    """Result of the copying test; shares in [0, 1]."""

    exact: float
    """Share of samples whose greedy continuation is the whole 6-token suffix."""
    token: float
    """Share of suffix tokens that are the most likely next token, given the right ones before (teacher forcing)."""
    by_index: pl.DataFrame
    """index (of the subsequence asked for), samples, exact, token."""


class CopyingLoss(NamedTuple):
    """Mean next-token loss on repeated random tokens, in nats."""

    first_half: float
    second_half: float
    difference: float
    """second_half - first_half. About 0 without copying; down to minus the whole of first_half with it."""


class ICLScore(NamedTuple):
    """Loss at a late position minus loss at an early one, in nats, with what it was taken from."""

    score: float
    early_loss: float
    late_loss: float
    early_position: int
    late_position: int


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
    return CopyingAccuracy(hits.all(dim=1).double().mean().item(), hits.double().mean().item(), by_index)


@torch.no_grad()
def copying_hits(model: HookedModel, test: CopyingTest) -> Bool[Tensor, "sample 6"]:
    """Which suffix tokens are the most likely next token, sample by sample; for standard errors (over contexts)."""
    check_test(model, test)
    if not isinstance(model, HookedTransformer) or is_hooked(model):
        return _hits_row_by_row(model, test)
    hits = []
    for samples, stages in copying_stages(model, test):
        residual = run_stages(model, stages)[:, -SUFFIX:]
        hits.append(logits_of(model, residual).argmax(dim=-1).cpu() == test.suffix[samples].cpu())
    return torch.cat(hits)


def _hits_row_by_row(model: HookedModel, test: CopyingTest) -> Tensor:
    tokens = torch.cat([test.tokens, test.suffix[:, :-1]], dim=1)
    hits = []
    for rows in batches(model, *tokens.shape):
        residual = final_residual(model, tokens[rows])[:, -SUFFIX:]
        hits.append(logits_of(model, residual).argmax(dim=-1).cpu() == test.suffix[rows].cpu())
    return torch.cat(hits)


def copying_stages(model: HookedModel, test: CopyingTest) -> list[tuple[slice, list[Stage]]]:
    """The test cut into batches of whole contexts: which samples, and the context stage and query stage to run.

    The query stage holds the prefix and all suffix tokens but the last, which nothing is predicted from.
    """
    length = test.tokens.shape[1] - PREFIX
    context = test.context
    queries = torch.cat([test.tokens[:, length:], test.suffix[:, :-1]], dim=1)
    starts = torch.cat([torch.tensor([0]), (context.diff() > 0).nonzero().flatten().cpu() + 1])
    ends = torch.cat([starts[1:], torch.tensor([len(context)])])
    parts = []
    for group in batches(model, len(starts), length):
        samples = slice(int(starts[group.start]), int(ends[group.stop - 1]))
        first = Stage(to_device(model, test.tokens[starts[group], :length]), None, 0)
        parent = to_device(model, context[samples] - group.start)
        parts.append((samples, [first, Stage(to_device(model, queries[samples]), parent, length)]))
    return parts


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
    if half < 1 or not torch.equal(tokens[:, bos : bos + half], tokens[:, bos + half :]):
        raise InputError("copying_loss: each prompt must be (a BOS and) the same tokens twice")
    check_tokens(model, tokens)
    losses = token_losses(model, tokens)
    first, second = losses[:, :-half].mean().item(), losses[:, -half:].mean().item()
    return CopyingLoss(first, second, second - first)


def natural_loss(model: HookedModel, windows: Int[Tensor, "window pos"]) -> float:
    """Mean next-token loss on natural text, in nats a token (of this tokenizer: not comparable across tokenizers)."""
    return token_losses(model, natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx)).mean().item()


def icl_score(model: HookedModel, windows: Int[Tensor, "window pos"]) -> ICLScore:
    """In-context-learning score (Olsson et al. 2022; definition 10): loss of token 500 minus loss of token 50, in
    nats.

    Mean over windows; negative when context helps. For windows under 512 tokens both positions are scaled by the
    length (and recorded). The number says that a longer context helps, not by which means, and it mixes in that later
    tokens may be easier or harder in themselves.
    """
    windows = natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx)
    length = windows.shape[1]
    early, late = (50, 500) if length >= 512 else (max(1, 50 * length // 512), 500 * length // 512)
    # Entry p of the losses is that of predicting token p + 1.
    losses: Float[Tensor, "window pos"] = token_losses(model, windows[:, : late + 1])
    early_loss, late_loss = losses[:, early - 1].mean().item(), losses[:, late - 1].mean().item()
    return ICLScore(late_loss - early_loss, early_loss, late_loss, early, late)


def check_tokens(model: HookedModel, tokens: Int[Tensor, "row pos"]) -> None:
    """InputError if prompts are longer than n_ctx or hold ids outside the vocabulary."""
    if tokens.shape[1] > model.cfg.n_ctx:
        raise InputError(f"prompts of {tokens.shape[1]} tokens are longer than the model's n_ctx={model.cfg.n_ctx}")
    if int(tokens.max()) >= model.cfg.d_vocab or int(tokens.min()) < 0:
        raise InputError(f"prompts hold token ids outside the model's vocabulary of {model.cfg.d_vocab}")


def check_test(model: HookedModel, test: CopyingTest) -> None:
    """InputError if the test does not fit the model."""
    check_tokens(model, torch.cat([test.tokens, test.suffix], dim=1))
