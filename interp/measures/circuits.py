"""Scores read off weights: what a head's OV circuit copies, and which earlier head feeds which later one's keys."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.memory import wide, within_memory
from copyscope.interp.measures.patterns import PatternBlock, read_patterns
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer
from copyscope.interp.models.weights import bridge_weights


def eigenvalue_positivity(
    W_E: Float[Tensor, "d_vocab d_model"],
    W_V: Float[Tensor, "head d_model d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
) -> Float[Tensor, " head"]:
    """sum(Re λ) / sum |λ| over the non-zero eigenvalues of W_E W_V W_O W_U (Elhage et al. 2021, "Summarizing OV/QK
    matrices").

    In [-1, 1]: near 1 attending to a token raises the logit of that same token, near -1 it lowers it; 0 for a head of
    zeros. Computed from W_O (W_U W_E) W_V (d_head × d_head), which has the same non-zero eigenvalues; nothing of size
    d_vocab² is built. It knows only the direct path from embedding to logits: a head that copies what an MLP or
    another head has written can score anything, and so can a head that never attends.
    """
    return _positivity(W_V, W_O, W_U.float() @ W_E.float())


def _positivity(W_V: Tensor, W_O: Tensor, W_UE: Tensor) -> Tensor:
    small = W_O.float() @ (W_UE @ W_V.float())  # (head, d_head, d_head)
    # Eigenvalues on the CPU in double precision: the matrices are small, and not every device has them. PyTorch takes
    # one after the other.
    matrices = small.cpu().double()
    parts = matrices.chunk(torch.get_num_threads())
    if len(parts) > 1:
        with ThreadPoolExecutor(len(parts)) as pool:
            values = torch.cat(list(pool.map(torch.linalg.eigvals, parts)))
    else:
        values = torch.linalg.eigvals(matrices)
    size = values.abs().sum(dim=-1)
    return torch.where(size > 0, values.real.sum(dim=-1) / size.clamp(min=1e-300), 0.0).float().to(W_V.device)


SPECTRA = ("ov_stable_rank", "ov_effective_rank", "qk_stable_rank", "qk_effective_rank")


def circuit_ranks(
    A: Float[Tensor, "*head d_model d_head"], B: Float[Tensor, "*head d_head d_model"]
) -> tuple[Float[Tensor, " *head"], Float[Tensor, " *head"]]:
    """Stable rank and effective rank of A B, as W_V W_O or W_Q W_Kᵀ: over how many directions a circuit spreads.

    With singular values σ: Σσ² / max σ² (Rudelson and Vershynin 2007), and exp of the entropy of σ / Σσ (Roy and
    Vetterli 2007). From 1 to d_head; 0 for a circuit of zeros; on the CPU. The first counts strong directions, the
    second weak ones too. Neither says what the directions mean.
    """
    A, B = (W.to(wide(W.device)) for W in (A, B))
    gram_A, gram_B = torch.stack([A.mT @ A, B @ B.mT]).cpu().double()  # (head, d_head, d_head)
    values, vectors = torch.linalg.eigh(gram_A)
    root = vectors * values.clamp(min=0).sqrt()[..., None, :]
    squares = torch.linalg.eigvalsh(root.mT @ gram_B @ root).clamp(min=0)  # the squares of the singular values
    largest = squares.amax(dim=-1)
    stable = torch.where(largest > 0, squares.sum(dim=-1) / largest.clamp(min=1e-300), 0.0)
    sizes = squares.sqrt()
    shares = sizes / sizes.sum(dim=-1, keepdim=True).clamp(min=1e-300)
    effective = torch.where(largest > 0, torch.special.entr(shares).sum(dim=-1).exp(), 0.0)
    return stable, effective


def model_circuit_ranks(weights: "HeadWeights") -> dict[str, Float[Tensor, "layer head"]]:
    """`circuit_ranks` of OV and QK of every head, with the norms' weights folded in. Rotary positions, which turn QK
    with the distance, are left out."""
    w = weights.folded()
    return dict(zip(SPECTRA, (*circuit_ranks(w.W_V, w.W_O), *circuit_ranks(w.W_Q, w.W_K.mT)), strict=True))


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """A model's matrices as its heads see them; grouped key and value heads repeated for each query head."""

    W_E: Float[Tensor, "d_vocab d_model"]
    W_U: Float[Tensor, "d_model d_vocab"]
    W_Q: Float[Tensor, "layer head d_model d_head"]
    W_K: Float[Tensor, "layer head d_model d_head"]
    W_V: Float[Tensor, "layer head d_model d_head"]
    W_O: Float[Tensor, "layer head d_head d_model"]
    attention_norm: Float[Tensor, "layer d_model"] | None
    """Weight of the norm that each layer's heads read through; None where norms are folded in or absent."""
    final_norm: Float[Tensor, " d_model"] | None
    centred: bool
    """Whether the norm subtracts the mean (LayerNorm)."""
    after_norm: Float[Tensor, "layer d_model"] | None = None
    """Weight of the norm that each layer's attention output passes (Gemma 2 and 3, OLMo 2 and 3); None elsewhere."""

    def folded(self) -> "HeadWeights":
        """The same with norm weights (and LayerNorm's centring) folded into the matrices that read through them."""
        if self.attention_norm is None or self.final_norm is None:
            return self
        scale = self.attention_norm[:, None, :, None]

        def fold(W: Tensor) -> Tensor:
            W = W * scale
            return W - W.mean(dim=-2, keepdim=True) if self.centred else W

        W_U = self.W_U * self.final_norm[:, None]
        return replace(
            self,
            W_Q=fold(self.W_Q),
            W_K=fold(self.W_K),
            W_V=fold(self.W_V),
            W_O=self.W_O if self.after_norm is None else self.W_O * self.after_norm[:, None, None],
            W_U=W_U - W_U.mean(dim=0, keepdim=True) if self.centred else W_U,
            attention_norm=None,
            final_norm=None,
            after_norm=None,
        )


@torch.no_grad()
def head_weights(model: HookedModel) -> HeadWeights:
    """Collects the weights; of a bridge from transformers' own modules (`bridge_weights`).

    Raises InputError where a family's heads have no such matrices.
    """
    if not isinstance(model, HookedTransformer):
        return HeadWeights(**bridge_weights(model))
    kind = model.cfg.normalization_type
    has_norms = kind in ("RMS", "LN")
    blocks: Any = model.blocks
    final: Any = model.ln_final if has_norms else None
    return HeadWeights(
        W_E=model.W_E.detach(),
        W_U=model.W_U.detach(),
        W_Q=model.W_Q.detach(),
        W_K=model.W_K.detach(),
        W_V=model.W_V.detach(),
        W_O=model.W_O.detach(),
        attention_norm=torch.stack([block.ln1.w.detach() for block in blocks]) if has_norms else None,
        final_norm=final.w.detach() if has_norms else None,
        centred=kind == "LN",
    )


def model_eigenvalue_positivity(weights: HeadWeights, folded: bool = True) -> Float[Tensor, "layer head"]:
    """`eigenvalue_positivity` of every head; W_U W_E is computed once.

    `folded` counts the norm weights on the way; in a model loaded with folded norms, raw equals folded.
    """
    w = weights.folded() if folded else weights
    n_layers, n_heads = w.W_V.shape[:2]
    flat = _positivity(w.W_V.flatten(0, 1), w.W_O.flatten(0, 1), w.W_U.float() @ w.W_E.float())
    return flat.view(n_layers, n_heads)


def copying_score(
    pattern: Float[Tensor, "batch head query key"],
    values: Float[Tensor, "batch key head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    tokens: Int[Tensor, "batch key"],
) -> Float[Tensor, " head"]:
    """Does the head raise the logits of the very tokens it attends to? (Olsson et al. 2022; definition 7)

    On distinct random tokens. What the head writes for each attended token is taken to the logits, its mean over the
    vocabulary subtracted, negative parts cut off; the share of the raise, among the prompt's tokens, that falls on
    the attended token itself, weighted by attention, rescaled from [0, 1] to [-1, 1]. 1: only the attended token is
    raised; -1: never. Indifferent heads get about 2/(number of tokens) - 1, not 0. Direct effect only; the final
    norm's scale is left out.
    """
    on_itself, total = _raise_on_itself(pattern.float().sum(dim=2), values, W_O, W_U, tokens)
    return torch.where(total > 0, 2 * on_itself / total.clamp(min=1e-30) - 1, -1.0)


def _raise_on_itself(attention: Tensor, values: Tensor, W_O: Tensor, W_U: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """What each head raises the attended tokens by, and all tokens of the prompt; `attention` is (batch, head, key),
    summed over queries, since ReLU lets a positive factor through."""
    direction = W_U.float().T[tokens] - W_U.float().mean(dim=1)  # (batch, token, d_model)
    written = torch.einsum("bkhd,hdm->bhkm", values.float(), W_O.float())
    raised = torch.einsum("bhkm,btm->bhkt", written, direction).relu()  # (batch, head, key, token)
    on_itself = (attention * raised.diagonal(dim1=-2, dim2=-1)).sum(dim=(0, 2))
    return on_itself, (attention * raised.sum(dim=-1)).sum(dim=(0, 2))


@within_memory
@torch.no_grad()
def model_copying_score(
    model: HookedModel,
    tokens: Int[Tensor, "prompt pos"],
    has_bos: bool = False,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "layer head"]:
    """`copying_score` of every head of `layers` (None: all) on prompts of distinct random tokens (25 of them by
    definition); a BOS is left out."""
    weights = head_weights(model).folded()
    chosen = sorted(set(range(model.cfg.n_layers) if layers is None else layers))
    first = int(has_bos)
    sums = torch.zeros(2, len(chosen), model.cfg.n_heads, device=device_of(model))
    attention = torch.zeros(0)

    def read(block: PatternBlock) -> None:
        nonlocal attention
        if block.first_query == 0:
            attention = block.pattern.new_zeros(*block.pattern.shape[:2], tokens.shape[1])
        queries = block.pattern[:, :, max(0, first - block.first_query) :].float().sum(dim=2)
        attention[..., : queries.shape[-1]] += queries
        if block.first_query + block.pattern.shape[2] == tokens.shape[1]:
            values, words = block.values[:, :, first:].transpose(1, 2), tokens[block.rows, first:]
            W_O, at = weights.W_O[block.layer], chosen.index(block.layer)
            parts = _raise_on_itself(attention[..., first:], values, W_O, weights.W_U, words.to(W_O.device))
            sums[:, at] += torch.stack(parts)

    read_patterns(model, tokens, read, chosen)
    on_itself, total = sums.cpu()
    return torch.where(total > 0, 2 * on_itself / total.clamp(min=1e-30) - 1, -1.0)


def k_composition(
    W_V: Float[Tensor, "source d_model d_head"],
    W_O: Float[Tensor, "source d_head d_model"],
    W_Q: Float[Tensor, "reader d_model d_head"],
    W_K: Float[Tensor, "reader d_model d_head"],
) -> Float[Tensor, "source reader"]:
    """How much of what a source head writes a reader head's keys pick up (Elhage et al. 2021, "Composition scores").

    ‖W_Q W_Kᵀ W_Oᵀ W_Vᵀ‖ / (‖W_Q W_Kᵀ‖ ‖W_V W_O‖), Frobenius norms, in [0, 1]. Random heads score about 1/√d_model,
    not 0. Computed from d_head × d_head products. It sees neither rotary positions nor norms' scales nor where heads
    attend: a pair with a high score may still never work together.
    """
    W_V, W_O, W_Q, W_K = (W.float() for W in (W_V, W_O, W_Q, W_K))
    gram_V, gram_O = W_V.mT @ W_V, W_O @ W_O.mT  # (source, d_head, d_head)
    gram_Q, gram_K = W_Q.mT @ W_Q, W_K.mT @ W_K  # (reader, d_head, d_head)
    middle = torch.einsum("som,rmk->srok", W_O, W_K)  # (source, reader, d_head of source, d_head of reader)
    # ‖A M Bᵀ‖² = tr(Mᵀ (AᵀA) M (BᵀB)), so the two outer factors enter through their Gram matrices.
    squared = torch.einsum("srok,soi,srij,rjk->sr", middle, gram_V, middle, gram_Q)
    write = torch.einsum("sij,sji->s", gram_V, gram_O)
    read = torch.einsum("rij,rji->r", gram_Q, gram_K)
    scale = (write[:, None] * read[None]).clamp(min=1e-30)
    return (squared.clamp(min=0) / scale).sqrt()


MATCH_RANK = 10
"""Directions of each circuit that `qk_ov_subspace` compares."""


def qk_ov_diagonal(
    W_V: Float[Tensor, "source d_model d_head"],
    W_O: Float[Tensor, "source d_head d_model"],
    W_Q: Float[Tensor, "reader d_model d_head"],
    W_K: Float[Tensor, "reader d_model d_head"],
) -> Float[Tensor, "source reader"]:
    """Whether a reader head finds, by what a source head wrote, the very thing it looks for (Song et al. 2024, arXiv
    2408.09503): of M = W_Q W_Kᵀ (W_V W_O)ᵀ, the mean of the diagonal minus the mean of all entries, over their standard
    deviation.

    √d_model where M is the identity, about 0 ± 1/√d_model for random heads, 0 for heads of zeros. Computed from d_head
    × d_head products. It compares coordinates of the residual stream, so it sees a match only if both circuits keep
    them: not one that is turned on the way.
    """
    W_V, W_O, W_Q, W_K = (W.float() for W in (W_V, W_O, W_Q, W_K))
    middle = torch.einsum("rmk,som->srko", W_K, W_O)  # W_Kᵀ W_Oᵀ
    d = W_V.shape[1]
    trace = torch.einsum("srko,smo,rmk->sr", middle, W_V, W_Q)
    mean = torch.einsum("srko,so,rk->sr", middle, W_V.sum(dim=1), W_Q.sum(dim=1)) / d**2
    squared = torch.einsum("srko,soi,srji,rjk->sr", middle, W_V.mT @ W_V, middle, W_Q.mT @ W_Q) / d**2
    spread = (squared - mean.square()).clamp(min=0).sqrt()
    return torch.where(spread > 0, (trace / d - mean) / spread.clamp(min=1e-30), 0.0)


def qk_ov_subspace(
    W_V: Float[Tensor, "source d_model d_head"],
    W_O: Float[Tensor, "source d_head d_model"],
    W_Q: Float[Tensor, "reader d_model d_head"],
    W_K: Float[Tensor, "reader d_model d_head"],
) -> Float[Tensor, "source reader"]:
    """How near the strongest 10 directions that a source head writes come to the strongest 10 that a reader's keys read
    (Song et al. 2024, arXiv 2408.09503): the largest cosine between any two directions of the two subspaces.

    In [0, 1]. Random heads are near 2 √(10 / d_model), not at 0. It is of the best direction alone, and does not say
    how strongly it is used.
    """
    return _largest_cosine(_strongest(W_V, W_O), _strongest(W_Q, W_K.mT)).to(W_V)


def _largest_cosine(written: Tensor, read: Tensor) -> Float[Tensor, "source reader"]:
    return torch.linalg.matrix_norm(torch.einsum("smi,rmj->srij", written, read), 2).clamp(max=1)


def _strongest(A: Float[Tensor, "head d_model d_head"], B: Float[Tensor, "head d_head d_model"]) -> Tensor:
    """The first right singular vectors of A B as columns, (head, d_model, at most `MATCH_RANK`); in double precision on
    the CPU. Zeros for those of no strength."""
    r_A = torch.linalg.qr(A.cpu().double()).R
    q_B, r_B = torch.linalg.qr(B.mT.cpu().double())
    _, sizes, right = torch.linalg.svd(r_A @ r_B.mT)
    there = sizes > 1e-9 * sizes[:, :1].clamp(min=1e-30)
    return (q_B @ (right.mT * there[:, None, :]))[..., :MATCH_RANK]


def _of_later_layers(
    w: HeadWeights, measure: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Iterator[Float[Tensor, "source reader"]]:
    """The measure of each layer's heads with all of the later layers."""
    for source in range(len(w.W_V) - 1):
        yield measure(
            w.W_V[source], w.W_O[source], w.W_Q[source + 1 :].flatten(0, 1), w.W_K[source + 1 :].flatten(0, 1)
        )


def _subspaces(w: HeadWeights) -> Iterator[Float[Tensor, "source reader"]]:
    """`qk_ov_subspace` likewise, with each head's directions looked for once."""
    n_heads = w.W_V.shape[1]
    written = _strongest(w.W_V.flatten(0, 1), w.W_O.flatten(0, 1))
    read = _strongest(w.W_Q.flatten(0, 1), w.W_K.flatten(0, 1).mT)
    for start in range(0, len(written) - n_heads, n_heads):
        yield _largest_cosine(written[start : start + n_heads], read[start + n_heads :])


PAIR_MEASURES: dict[str, Callable[[HeadWeights], Iterator[Float[Tensor, "source reader"]]]] = {
    "k_composition": lambda w: _of_later_layers(w, k_composition),
    "qk_ov_diagonal": lambda w: _of_later_layers(w, qk_ov_diagonal),
    "qk_ov_subspace": _subspaces,
}


@within_memory
@torch.no_grad()
def composition_table(model: HookedModel, folded: bool = True, measure: str = "k_composition") -> pl.DataFrame:
    """K-composition of every head with every head of a later layer: source_layer, source_head, layer, head, value; or
    another of `PAIR_MEASURES`."""
    w = head_weights(model).folded() if folded else head_weights(model)
    n_heads = w.W_V.shape[1]
    rows: list[tuple[int, int, int, int, float]] = []
    tables = list(PAIR_MEASURES[measure](w))
    sizes = [len(table.flatten()) for table in tables]
    values = torch.cat([table.flatten() for table in tables] or [torch.zeros(0)]).cpu().split(sizes or [0])
    for source, table in enumerate(values[: len(tables)]):
        for h, row in enumerate(table.view(n_heads, -1)):
            for r, value in enumerate(row.tolist()):
                rows.append((source, h, source + 1 + r // n_heads, r % n_heads, value))
    schema = {
        "source_layer": pl.Int64,
        "source_head": pl.Int64,
        "layer": pl.Int64,
        "head": pl.Int64,
        "value": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")
