"""What the model does: copying accuracy, copying loss, natural-text loss, in-context-learning score."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copyscope.interp.forward.greedy import continue_packed, continue_whole
from copyscope.interp.forward.layers import Layer, Layout, can_run, slices
from copyscope.interp.forward.memory import within_memory
from copyscope.interp.forward.residual import token_losses
from copyscope.interp.models.lens import HookedModel
from copyscope.interp.prompts.generate import SUFFIX, CopyingTest, copying_test, natural_windows
from copyscope.interp.prompts.packing import pack
from copyscope.training.data.repeats import pair_occurred_earlier
from copyscope.training.errors import InputError

__all__ = [
    "CopyingAccuracy",
    "CopyingHits",
    "CopyingLoss",
    "CopyingTest",
    "ICLScore",
    "SplitLoss",
    "copying_accuracy",
    "copying_hits",
    "copying_loss",
    "copying_test",
    "icl_score",
    "induction_predictable",
    "natural_loss",
    "natural_losses",
    "shuffled_copying_loss",
    "split_loss",
    "standard_error",
]


@dataclass(frozen=True, kw_only=True)
class CopyingAccuracy:
    """Result of the copying test; shares in [0, 1]."""

    exact: float
    """Share of samples whose greedy continuation is the whole 6-token suffix."""
    token: float
    """Share of suffix tokens that are the most likely next token, given the right ones before (teacher forcing)."""
    greedy: float
    """Share of suffix tokens that are right as generated: after a wrong token the model continues from it. Of the
    first `greedy_samples` samples."""
    greedy_samples: int
    """Samples that were generated: a fifth of the contexts, at least 10 where there are as many."""
    by_index: pl.DataFrame
    """index (of the subsequence asked for; 0 is the furthest back), samples, greedy_samples, exact, token, greedy."""
    by_place: pl.DataFrame
    """place (of the suffix token, from 1), samples, greedy_samples, token, greedy."""
    mean_rank: float
    """Place of the right suffix token among all tokens by likelihood, 1 the likeliest, given the right ones before;
    mean over suffix tokens. It moves long before any accuracy does."""
    mean_rank_se: float
    exact_se: float
    """Standard error over contexts: samples of one context are not independent. NaN with a single context."""
    token_se: float
    greedy_se: float


class CopyingHits(NamedTuple):
    """Which suffix tokens are the most likely next token, sample by sample."""

    forced: Bool[Tensor, "sample 6"]
    """Given the right tokens before (teacher forcing)."""
    greedy: Bool[Tensor, "generated 6"]
    """As generated, of the first samples only (`CopyingAccuracy.greedy_samples`). All six are right exactly where all
    six of `forced` are."""
    rank: Float[Tensor, "sample 6"]
    """Of the right token among all, from 1 (teacher forcing)."""


Watch = Callable[[int, Int[Tensor, " sample"], Int[Tensor, "sample head 6"]], None]
"""Is handed, while the test runs, a layer, numbers of samples, and which position each head attends to most where each
suffix token is predicted. A sample may come twice, with the same positions."""


GREEDY_SHARE = 5
"""One context in this many is continued greedily: generating all of them costs half as much again as the whole test."""
MIN_GREEDY_CONTEXTS = 10


class CopyingLoss(NamedTuple):
    """Mean next-token loss on repeated random tokens, in nats."""

    first_half: float
    second_half: float
    difference: float
    """second_half - first_half. About 0 without copying; down to minus the whole of first_half with it."""
    difference_se: float
    """Standard error over prompts; NaN with a single prompt."""


@dataclass(frozen=True, kw_only=True)
class ICLScore:
    """Loss late in a context minus loss of the same tokens early in one, in nats, with what it was taken from."""

    score: float
    early_loss: float
    late_loss: float
    early_position: int
    """Middle of the early positions."""
    late_position: int
    positions: int
    """How many positions on each side."""
    score_se: float
    """Standard error over windows; NaN with a single window."""


def copying_accuracy(model: HookedModel, test: CopyingTest) -> CopyingAccuracy:
    """Accuracy on the random-token copying test (2409.09281; definition 9).

    `exact` and `greedy` judge what the model generates from the prefix; `token` puts the right tokens before each
    (teacher forcing), so it is at least as high as `greedy` as a rule. `exact` and `token` use every sample (a
    generated suffix is all right exactly where the teacher-forced one is), `greedy` the first `greedy_samples`;
    contexts are drawn independently, so the first are as good as any. Samples that share a context share its forward
    pass, unless hooks are on the model. The number cannot tell *how* the model copies, and random tokens are far from
    its training text.

    Raises:
        InputError: the test is longer than n_ctx or has token ids outside the vocabulary.
    """
    return accuracy_of(copying_hits(model, test), test)


def accuracy_of(hits: CopyingHits, test: CopyingTest) -> CopyingAccuracy:
    """`copying_accuracy`, from which suffix tokens the model gets right."""
    shares = ("exact", "token", "greedy")
    n_samples, n_generated = len(hits.forced), len(hits.greedy)
    generated = hits.greedy.double()
    table = pl.DataFrame(
        {
            "index": test.index.tolist(),
            "context": test.context.tolist(),
            "exact": hits.forced.all(dim=1).double().tolist(),
            "token": hits.forced.double().mean(dim=1).tolist(),
            "greedy": generated.mean(dim=1).tolist() + [None] * (n_samples - n_generated),
            "mean_rank": hits.rank.double().mean(dim=1).tolist(),
        }
    )
    contexts = table.group_by("context", maintain_order=True).agg(pl.col(*shares, "mean_rank").mean())
    counts = (pl.len().alias("samples"), pl.col("greedy").count().alias("greedy_samples"))
    return CopyingAccuracy(
        **{name: table[name].drop_nulls().to_torch().mean().item() for name in shares},
        **{f"{name}_se": standard_error(contexts[name].drop_nulls().to_torch()) for name in (*shares, "mean_rank")},
        mean_rank=hits.rank.double().mean().item(),
        greedy_samples=n_generated,
        by_index=table.group_by("index").agg(*counts, pl.col(shares).mean()).sort("index"),
        by_place=pl.DataFrame(
            {
                "place": range(1, SUFFIX + 1),
                "samples": [n_samples] * SUFFIX,
                "greedy_samples": [n_generated] * SUFFIX,
                "token": hits.forced.double().mean(dim=0).tolist(),
                "greedy": generated.mean(dim=0).tolist(),
            }
        ),
    )


@within_memory
def copying_hits(model: HookedModel, test: CopyingTest, watch: Watch | None = None) -> CopyingHits:
    """Which suffix tokens the model gets right, sample by sample; for standard errors (over contexts). `watch` sees
    where heads attend meanwhile."""
    check_test(model, test)
    suffix, context = test.suffix.cpu(), test.context.cpu()
    n_contexts = int(context.max()) + 1
    n_generated = max(-(-n_contexts // GREEDY_SHARE), min(n_contexts, MIN_GREEDY_CONTEXTS))  # contexts
    n_samples = int((context < n_generated).sum())
    if not can_run(model):

        def of_rows(layer: int, rows: slice, key: Tensor) -> None:
            if watch is not None:
                watch(layer, torch.arange(rows.start, rows.stop), key)

        best = continue_whole(model, test.tokens, suffix, n_samples, of_rows if watch is not None else None)
        return CopyingHits(best.forced == suffix, best.greedy == suffix[:n_samples], best.rank)
    packed = pack(test)
    n_pos = packed.tokens.shape[1]
    layout = Layout.of(model, packed.length, packed.block, n_pos)
    layers = [Layer(model, i, layout) for i in range(model.cfg.n_layers)]
    read = packed.read.to(layout.device)
    right = packed.suffix.to(layout.device)
    forced = torch.zeros(suffix.shape, dtype=torch.bool, device=layout.device)
    greedy = torch.zeros(n_samples, SUFFIX, dtype=torch.bool, device=layout.device)
    rank = torch.zeros(suffix.shape, device=layout.device)
    for rows in slices(model, len(packed.tokens), n_pos):
        generate = min(max(n_generated - rows.start, 0), rows.stop - rows.start)
        sample = packed.sample[rows]

        def of_blocks(layer: int, key: Tensor, sample: Tensor = sample) -> None:
            if watch is not None:
                watch(layer, sample.flatten(), key.unflatten(2, (-1, SUFFIX)).transpose(1, 2).flatten(0, 1))

        see = of_blocks if watch is not None else None
        best = continue_packed(model, layers, packed.tokens[rows], read, right[rows], generate, see)
        forced[sample], rank[sample] = best.forced == right[rows], best.rank
        greedy[sample[:generate]] = best.greedy == right[rows][:generate]
    return CopyingHits(forced.cpu(), greedy.cpu(), rank.cpu())


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
    error = standard_error(second - first)
    return CopyingLoss(first.mean().item(), second.mean().item(), (second - first).mean().item(), error)


def shuffled_copying_loss(
    model: HookedModel, tokens: Int[Tensor, "prompt pos"], n_prompts: int = 8, seed: int = 0
) -> tuple[float, float]:
    """Control of `copying_loss`: mean loss on the second half with its tokens in random order, in nats, and its
    standard error over prompts.

    The same tokens have been seen, but nothing can be copied in order. Where it is as low as the second half of
    `copying_loss`, the model raises every token that it has seen; where it is above the first half, the model expects
    the old order. `tokens` as for `copying_loss`; the first `n_prompts` of them are taken.
    """
    chosen = tokens[:n_prompts].cpu()
    half = chosen.shape[1] // 2
    draws = torch.rand(len(chosen), half, generator=torch.Generator().manual_seed(seed))
    shuffled = chosen[:, -half:].gather(1, draws.argsort(dim=1))
    check_tokens(model, chosen)
    losses = token_losses(model, torch.cat([chosen[:, :-half], shuffled], dim=1)).double()[:, -half:].mean(dim=1)
    return losses.mean().item(), standard_error(losses)


def natural_losses(model: HookedModel, windows: Int[Tensor, "window pos"]) -> Float[Tensor, "window pos_less_1"]:
    """Next-token loss of every token but the first of natural text, in nats; entry p is that of token p + 1."""
    return token_losses(model, natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx))


def natural_loss(model: HookedModel, windows: Int[Tensor, "window pos"]) -> float:
    """Mean next-token loss on natural text, in nats a token (of this tokenizer: not comparable across tokenizers)."""
    return natural_losses(model, windows).mean().item()


ICL_POSITIONS = 16
"""Tokens of each window that the ICL score averages over."""


def icl_score(
    model: HookedModel,
    windows: Int[Tensor, "window pos"],
    losses: Float[Tensor, "window pos_less_1"] | None = None,
) -> ICLScore:
    """In-context-learning score (Olsson et al. 2022; definition 10): loss around the 500th token of a context minus
    loss around the 50th, in nats; negative when context helps.

    Mean over windows and 16 positions on each side. For windows under 512 tokens both positions are scaled by the
    length (and recorded). The early loss is of the very tokens of the late one, which are read again with less text
    before them: that some tokens are harder than others then cancels. A first token that all
    windows share (BOS) begins the shorter texts too.
    `losses`: `natural_losses` of the windows, if at hand. The number says that a longer context helps, not by which
    means.
    """
    windows = natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx)
    losses = natural_losses(model, windows) if losses is None else losses
    length = windows.shape[1]
    early, late = (50, 500) if length >= 512 else (max(1, 50 * length // 512), 500 * length // 512)
    count = max(1, min(ICL_POSITIONS, 2 * early - 2))
    first_early, first_late = early - count // 2, min(late - count // 2, length - count)
    short = windows[:, first_late - first_early : first_late + count].clone()
    if len(windows) > 1 and bool((windows[:, 0] == windows[0, 0]).all()):
        short[:, 0] = windows[:, 0]
    # Entry p is the loss of predicting token p + 1.
    late_losses = losses[:, first_late - 1 : first_late - 1 + count].double().mean(dim=1)
    early_losses = token_losses(model, short)[:, first_early - 1 :].double().mean(dim=1)
    change = late_losses - early_losses
    return ICLScore(
        score=change.mean().item(),
        early_loss=early_losses.mean().item(),
        late_loss=late_losses.mean().item(),
        early_position=first_early + count // 2,
        late_position=first_late + count // 2,
        positions=count,
        score_se=standard_error(change),
    )


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
    return torch.from_numpy(pair_occurred_earlier(windows.cpu().numpy())).to(windows.device)


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


def standard_error(values: Float[Tensor, " sample"]) -> float:
    """Of the mean over samples (contexts, prompts or windows) that are drawn independently; NaN with a single one."""
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
