"""Path patching: what an earlier head gives a later one directly, by the residual stream alone (2304.05969)."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.parts import NOTHING, Head, check_parts
from copyscope.interp.ablation.questions import loss_question
from copyscope.interp.ablation.rerun import CleanLayer, Rerun
from copyscope.interp.forward.layers import can_run
from copyscope.interp.forward.memory import for_sums, within_memory
from copyscope.interp.measures.behavior import standard_error
from copyscope.interp.measures.circuits import composition_table
from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.lens import HookedModel, HookedTransformer
from copyscope.training.errors import InputError

INTO = ("keys", "queries", "values")
METHODS = ("zero", "mean", "mean_over_positions", "resample")


@within_memory
@torch.no_grad()
def patch_paths(
    model: HookedModel,
    sources: Sequence[Head],
    readers: Sequence[Head],
    repeated: Int[Tensor, "prompt pos"],
    *,
    into: str = "keys",
    method: str = "mean",
    seed: int = 0,
    max_bytes: int | None = None,
) -> pl.DataFrame:
    """What happens when a source head's output is replaced in the keys of one reader head, and nowhere else.

    For each source and each reader of a later layer: the reader's keys (or queries, or values) are computed from the
    clean residual stream with the source's output replaced (as `method` says); no head or MLP between the two sees
    that. The reader's own output then changes, and all layers after it run on. A previous-token head feeds an induction
    head if its path into the *keys* matters.

    Args:
        repeated: repeated random tokens, with or without BOS.

    Returns:
        source_layer, source_head, layer, head, into, method, measure, value: `copying_loss` (nats, patched - clean:
        above 0 if the path helps) and `induction_attention` (of the reader, patched - clean, definition 2: below 0 if
        the path draws its attention), each with `_se` over prompts, and `induction_attention_clean`.

    Raises:
        InputError: no pair with the source in an earlier layer, unknown heads or names, or a model with hooks on it or
            with attention other than plain causal softmax.
    """
    check_names([into], INTO, "input of a reader")
    check_names([method], METHODS, "method of path patching")
    check_parts(model, sources)
    check_parts(model, readers)
    pairs = [(s, r) for r in sorted(set(readers)) for s in sorted(set(sources)) if s[0] < r[0]]
    if not pairs:
        raise InputError("path patching: no source lies in an earlier layer than a reader; give other heads")
    if not isinstance(model, HookedTransformer):
        raise InputError(
            "path patching: this model's family runs as a TransformerBridge, which computes no single paths; ablate "
            "its heads instead (sweep_heads, `copyscope ablate`)"
        )
    if not can_run(model):
        raise InputError(
            "path patching: the model has hooks on it, or attention of a kind that is not taken apart; take hooks off"
        )
    half = repeated.shape[1] // 2
    question = loss_question(model, "copying_loss", repeated, half)
    runs = Rerun(model, question, method, seed, max_bytes)
    clean = runs.answers([]).clean[:, 0]
    by_batch = [_patched(runs, rows, pairs, into, half) for rows in runs.batches]
    order = torch.cat(runs.batches)
    patched = _Patched(*(torch.cat(column, dim=1).cpu().double() for column in zip(*by_batch, strict=True)))
    return _table(pairs, (into, method), patched, clean[order])


Pair = tuple[Head, Head]
"""Source and reader."""


class _Patched(NamedTuple):
    """Every pair's path patched, prompt by prompt."""

    loss: Float[Tensor, "pair row"]
    attention: Float[Tensor, "pair row"]
    """The reader's induction attention."""
    clean_attention: Float[Tensor, "pair row"]


def _table(
    pairs: Sequence[Pair], label: tuple[str, str], patched: _Patched, clean_loss: Float[Tensor, " row"]
) -> pl.DataFrame:
    rows = []
    for p, ((source_layer, source_head), (layer, head)) in enumerate(pairs):
        pair = (source_layer, source_head, layer, head, *label)
        loss, attention = patched.loss[p] - clean_loss, patched.attention[p] - patched.clean_attention[p]
        for measure, change in (("copying_loss", loss), ("induction_attention", attention)):
            rows.append((*pair, measure, change.mean().item()))
            rows.append((*pair, f"{measure}_se", standard_error(change)))
        rows.append((*pair, "induction_attention_clean", patched.clean_attention[p].mean().item()))
    schema = dict.fromkeys(("source_layer", "source_head", "layer", "head"), pl.Int64)
    schema |= dict.fromkeys(("into", "method", "measure"), pl.String)
    return pl.DataFrame(rows, schema=schema | {"value": pl.Float64}, orient="row")


def _patched(runs: Rerun, rows: Int[Tensor, " row"], pairs: Sequence[Pair], into: str, half: int) -> _Patched:
    """One batch: the clean run goes through the layers, keeps what sources would write differently, and where it meets
    a reader, runs on from there with each of its paths patched."""
    where = for_sums(runs.device)
    result = _Patched(*(torch.empty(len(pairs), len(rows), **where) for _ in _Patched._fields))
    deltas: dict[Head, Tensor] = {}  # source → what it writes when replaced, less what it writes: (row, pos, d_model)
    for at in runs.clean_layers(rows):
        of_layer = [p for p, (_, reader) in enumerate(pairs) if reader[0] == at.index]
        if of_layer:
            readers = _Readers(runs, at, into, half)
            for chunk in runs.chunks(of_layer, len(rows)):
                paths = [readers.patched(deltas[pairs[p][0]], pairs[p][1][1]) for p in chunk]
                resid = runs.branch(at, torch.stack([path.change for path in paths]), [NOTHING] * len(chunk))
                result.loss[chunk] = runs.score(resid, rows)[..., 0]
                result.attention[chunk] = torch.stack([path.attention for path in paths]).to(result.attention)
                result.clean_attention[chunk] = torch.stack([path.clean for path in paths]).to(result.attention)
        for layer, head in {source for source, _ in pairs if source[0] == at.index}:
            deltas[layer, head] = runs.change_of_head(at, head)
    return result


def paths_beside_composition(model: HookedModel, paths: pl.DataFrame) -> pl.DataFrame:
    """A row a pair, the strongest first: columns of `patch_paths`, its measures side by side, and `k_composition`.

    K-composition knows weights only; the causal weight also needs the heads to attend where it matters. Where the two
    disagree, believe the second.
    """
    pair = ["source_layer", "source_head", "layer", "head"]
    wide = paths.pivot("measure", index=[*pair, "into", "method"], values="value")
    composition = composition_table(model).rename({"value": "k_composition"})
    return wide.join(composition, on=pair, how="left").sort("copying_loss", descending=True)


class _PatchedPath(NamedTuple):
    """One path patched."""

    change: Float[Tensor, "row query d_model"]
    """In what the reader's layer writes."""
    attention: Float[Tensor, " row"]
    """The reader's induction attention."""
    clean: Float[Tensor, " row"]


class _Readers:
    """The readers of one layer in one batch."""

    def __init__(self, runs: Rerun, at: CleanLayer, into: str, half: int) -> None:
        self.layer, self.read, self.into = runs.layers[at.index], runs.read_in(at.index), into
        self.x = x = at.resid_pre_everywhere
        self.positions = torch.arange(x.shape[1], device=x.device) if self.read is None else self.read
        self.mask = self.layer.layout.mask[self.positions]
        last = x.shape[1] - 1  # nothing is read there, so the last layer does not compute it
        inside = (self.positions > last - half) & (self.positions < last)
        self.queries = inside.nonzero().flatten()
        self.targets = self.positions[inside] - half + 1
        self.clean = self._inputs(x)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.layer.normed(x)
        q = self.layer.queries(normed if self.read is None else normed[:, self.read], self.read)
        return q, self.layer.keys(normed), self.layer.values(normed)

    def _attend(self, inputs: tuple[Tensor, Tensor, Tensor], head: int) -> tuple[Tensor, Tensor]:
        q, k, v = (part[:, head] for part in inputs)  # (row, pos, d_head)
        scores = q @ k.transpose(1, 2) * self.layer.scale + self.mask
        pattern = scores.softmax(dim=-1, dtype=torch.float32)
        return pattern.to(v) @ v, pattern[:, self.queries, self.targets].mean(dim=1)

    def patched(self, delta: Float[Tensor, "row pos d_model"], head: int) -> _PatchedPath:
        """`delta`: the change of what the source writes."""
        inputs = list(self.clean)
        at = ("queries", "keys", "values").index(self.into)
        inputs[at] = self._inputs(self.x + delta)[at]
        before, clean = self._attend(self.clean, head)
        after, attention = self._attend((inputs[0], inputs[1], inputs[2]), head)
        return _PatchedPath((after - before) @ self.layer.w_o[head], attention, clean)
