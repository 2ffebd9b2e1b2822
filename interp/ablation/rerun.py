"""Many ablations of one model at once: one clean run goes through the layers, and every ablation branches off from it.

An ablation (a *variant*) changes nothing before its first layer, and in that layer only what some heads write. So it
starts from the clean residual stream after that layer's attention, plus the change:

    for each batch of prompts:
        for each layer of the clean run:                        CleanLayer
            for the variants whose first layer this is:         as many at once as fit into memory
                run the layers above with their parts replaced  Rerun.branch

In the last layer only the positions that are read are computed. Activations are called as in TransformerLens
(`resid_pre`, `z`, `attn_out`, `resid_mid`, `mlp_out`); shapes are (variant, row, pos, …), without `variant` in the
clean run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.donors import batches_of_groups, donor_groups, donors, places_of_donors
from copyscope.interp.ablation.parts import NOTHING, Parts
from copyscope.interp.ablation.questions import Question
from copyscope.interp.forward.layers import Layer, Layout, embed
from copyscope.interp.forward.memory import ablation_bytes, for_sums
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedTransformer


class Answers(NamedTuple):
    """Each measure of each prompt, without and with the ablations."""

    clean: Float[Tensor, "row measure"]
    ablated: Float[Tensor, "variant row measure"]


class Means(NamedTuple):
    """Mean outputs of each layer over all prompts of a question, at each position of a row."""

    z: list[Float[Tensor, "pos head d_head"]]
    mlp_out: list[Float[Tensor, "pos d_model"] | None]
    """None in a layer without an MLP."""


@dataclass(frozen=True, kw_only=True)
class CleanLayer:
    """One layer of the clean run of a batch. In the last layer, all but `resid_pre_everywhere` has only the positions
    that are read."""

    index: int
    resid_pre_everywhere: Float[Tensor, "row all_pos d_model"]
    """The residual stream before the layer."""
    resid_pre: Float[Tensor, "row pos d_model"]
    z: Float[Tensor, "row pos head d_head"]
    attn_out: Float[Tensor, "row pos d_model"]
    resid_mid: Float[Tensor, "row pos d_model"]
    mlp_out: Float[Tensor, "row pos d_model"] | None
    """None if the layer has no MLP."""
    donor: Int[Tensor, " row"] | None
    """Row of the batch that each row's resampled outputs come from; None for other methods."""

    @property
    def resid_post(self) -> Float[Tensor, "row pos d_model"]:
        """The residual stream after the layer."""
        return self.resid_mid if self.mlp_out is None else self.resid_mid + self.mlp_out


class Rerun:
    """One question to one model, under as many ablations of one method as wanted."""

    def __init__(
        self, model: HookedTransformer, question: Question, method: str, seed: int, max_bytes: int | None = None
    ) -> None:
        """`max_bytes`: of activations at once, beside the model; None for `ablation_bytes`."""
        self.model, self.question, self.method, self.seed = model, question, method, seed
        self.device = device_of(model)
        self.tokens = question.tokens.to(self.device)
        self.n_rows, n_pos = question.tokens.shape
        self.layout = Layout.of(model, question.context, question.block, n_pos)
        self.layers = [Layer(model, i, self.layout) for i in range(model.cfg.n_layers)]
        self.read = question.read.to(self.device)
        max_bytes = ablation_bytes(model) if max_bytes is None else max_bytes
        self.rows_at_once = max(2, max_bytes // (model.cfg.dtype.itemsize * _floats_of_a_row(model, n_pos, method)))
        """How many rows × variants fit into memory."""
        # Small enough batches for all heads of a layer to run at once, twice over.
        size = max(1, self.rows_at_once // (2 * model.cfg.n_heads))
        self.batches = list(batches_of_groups(donor_groups(self.n_rows, seed), size))
        if method == "resample":
            donors(self.n_rows, seed)  # refuses a single row
        self.means = self._means() if method.startswith("mean") else None

    @property
    def can_share_base(self) -> bool:
        """Whether `answers` takes a `base`: not where a removed part depends on the clean run of the same prompts."""
        return self.method not in ("resample", "frozen_patterns")

    @torch.no_grad()
    def answers(
        self, variants: Sequence[Parts], progress: Callable[[int], None] | None = None, base: Parts = NOTHING
    ) -> Answers:
        """What the model answers as it is, and under each of `variants`.

        `progress` is called with the number of rows × variants done since the last call. With a `base`, its parts are
        removed throughout: `clean` is the model without them, each variant has them removed too, and what the variants
        share runs once.
        """
        shape = (self.n_rows, len(self.question.measures))
        where = for_sums(self.device)
        clean, ablated = torch.empty(shape, **where), torch.empty(len(variants), *shape, **where)
        by_first_layer: dict[int, list[int]] = {}
        for v, parts in enumerate(variants):
            by_first_layer.setdefault(parts.layers[0], []).append(v)
        removed = [parts.union(base) for parts in variants]
        for rows in self.batches:
            for at in self.clean_layers(rows, base):
                for chunk in self.chunks(by_first_layer.get(at.index, []), len(rows)):
                    parts = [removed[v] for v in chunk]
                    resid = self.branch(at, self._attn_out_change(at, parts), parts)
                    ablated[torch.tensor(chunk)[:, None], rows] = self.score(resid, rows)
                    if progress:
                        progress(len(chunk) * len(rows))
                if at.index == len(self.layers) - 1:
                    clean[rows] = self.question.score(at.resid_post, rows)
        return Answers(clean.cpu().double(), ablated.cpu().double())

    def clean_layers(
        self, rows: Int[Tensor, " row"], base: Parts = NOTHING, everywhere: bool = False
    ) -> Iterator[CleanLayer]:
        """The run of a batch that ablations branch off from, layer by layer; without the parts of `base`.

        `everywhere`: all positions of the last layer are computed, not only those that are read.
        """
        resid = embed(self.model, self.tokens[rows], self.layout)
        donor = None
        if self.method == "resample":
            donor = places_of_donors(rows, self.n_rows, self.seed).to(self.device)
        for i, layer in enumerate(self.layers):
            read = None if everywhere else self.read_in(i)
            z = self._without_heads(layer.z(resid, read)[None], i, [base], donor=None)[0]
            resid_pre = resid if read is None else resid[:, read]
            attn_out = layer.attn_out(z)
            resid_mid, mlp_out = layer.after_attention(resid_pre, attn_out)
            if mlp_out is not None:
                mlp_out = self._without_mlp(mlp_out[None], i, [base], None, donor=None)[0]
            at = CleanLayer(
                index=i,
                resid_pre_everywhere=resid,
                resid_pre=resid_pre,
                z=z,
                attn_out=attn_out,
                resid_mid=resid_mid,
                mlp_out=mlp_out,
                donor=donor,
            )
            yield at
            resid = at.resid_post

    def chunks(self, variants: Sequence[int], n_rows: int) -> Iterator[Sequence[int]]:
        """The variants that run at once with a batch of `n_rows` rows, as many as fit into memory."""
        size = max(1, self.rows_at_once // n_rows)
        for start in range(0, len(variants), size):
            yield variants[start : start + size]

    def read_in(self, layer: int) -> Int[Tensor, " read"] | None:
        """The positions at which this layer's attention is computed; None for all."""
        return self.read if layer == len(self.layers) - 1 else None

    def score(
        self, resid: Float[Tensor, "variant row read d_model"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "variant row measure"]:
        """The question's measures of final residual streams."""
        return self.question.score(resid.flatten(0, 1), rows.repeat(len(resid))).unflatten(0, (len(resid), -1))

    def branch(
        self, at: CleanLayer, attn_out_change: Float[Tensor, "variant row pos d_model"], variants: Sequence[Parts]
    ) -> Float[Tensor, "variant row read d_model"]:
        """The final residual stream of a batch under each variant, from the clean layer `at` on.

        `attn_out_change` is added to what attention writes in that layer; from its MLP on, the variant's parts are
        replaced.
        """
        resid_mid, mlp_out = self.layers[at.index].after_attention(at.resid_pre, at.attn_out + attn_out_change)
        resid = resid_mid
        if mlp_out is not None:  # without a variant dimension where the MLP does not read what attention writes
            mlp_out = mlp_out.expand(resid_mid.shape)
            resid = resid_mid + self._without_mlp(mlp_out, at.index, variants, at.mlp_out, at.donor)
        if not self._needs_clean_run_above(at.index, variants):
            for i in range(at.index + 1, len(self.layers)):
                resid = self._ablated_layer(i, resid, variants, at.donor)
            return resid
        # The clean run goes along as the first variant, which removes nothing.
        resid = torch.cat([at.resid_post[None], resid])
        for i in range(at.index + 1, len(self.layers)):
            resid = self._ablated_layer(i, resid, [NOTHING, *variants], at.donor)
        return resid[1:]

    def _needs_clean_run_above(self, layer: int, variants: Sequence[Parts]) -> bool:
        """Whether layers above this one take patterns or resampled outputs from the clean run."""
        if self.method == "resample":
            return any(parts.layers[-1] > layer for parts in variants if parts.layers)
        return self.method == "frozen_patterns"

    def _ablated_layer(
        self, i: int, resid: Float[Tensor, "variant row pos d_model"], variants: Sequence[Parts], donor: Tensor | None
    ) -> Float[Tensor, "variant row query d_model"]:
        """The residual stream after layer `i`, with the variants' parts replaced; where they need the clean run, it is
        the first variant."""
        layer, read, n_rows = self.layers[i], self.read_in(i), resid.shape[1]
        rows = resid.flatten(0, 1)
        if self.method == "frozen_patterns":
            z = layer.z_with_patterns_of_first(rows, n_rows, read)
        else:
            z = layer.z(rows, read)
        z = self._without_heads(z.unflatten(0, (-1, n_rows)), i, variants, donor)
        resid_mid, mlp_out = layer.after_attention(resid if read is None else resid[:, :, read], layer.attn_out(z))
        if mlp_out is None:
            return resid_mid
        return resid_mid + self._without_mlp(mlp_out, i, variants, mlp_out[0], donor)

    def _attn_out_change(self, at: CleanLayer, variants: Sequence[Parts]) -> Float[Tensor, "variant row pos d_model"]:
        """What attention writes in this layer under each variant, less what it writes in the clean run."""
        heads = sorted({head for parts in variants for head in parts.heads.get(at.index, ())})
        if not heads:
            return at.attn_out.new_zeros(len(variants), *at.attn_out.shape)
        changes = torch.stack([self.change_of_head(at, head) for head in heads])
        on = torch.tensor([[head in parts.heads.get(at.index, ()) for head in heads] for parts in variants])
        return (on.to(changes) @ changes.flatten(1)).unflatten(1, changes.shape[1:])

    def change_of_head(self, at: CleanLayer, head: int) -> Float[Tensor, "row pos d_model"]:
        """What a head writes when it is replaced, less what it writes in the clean run."""
        new = self.new_z(at.index, at.z, at.donor)
        new = new[..., head, :] if isinstance(new, Tensor) else new
        return (new - at.z[..., head, :]) @ self.layers[at.index].w_o[head]

    def new_z(
        self, layer: int, clean: Float[Tensor, "row pos head d_head"], donor: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row_or_1 pos head d_head"] | float:
        """What replaces the outputs of a layer's heads. `clean`: those of the clean run."""
        return self._new(None if self.means is None else self.means.z[layer], layer, clean, donor)

    def new_mlp_out(
        self, layer: int, clean: Float[Tensor, "row pos d_model"] | None, donor: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row_or_1 pos d_model"] | float:
        """What replaces the output of a layer's MLP. `clean`: that of the clean run."""
        return self._new(None if self.means is None else self.means.mlp_out[layer], layer, clean, donor)

    def _new(
        self, mean: Tensor | None, layer: int, clean: Tensor | None, donor: Int[Tensor, " row"] | None
    ) -> Tensor | float:
        """By the method: the mean over prompts, the clean outputs of each row's donor, or 0."""
        if mean is not None:
            read = self.read_in(layer)
            return (mean if read is None else mean[read])[None]
        if donor is not None and clean is not None:
            return clean[donor]
        return 0.0

    def _without_heads(
        self,
        z: Float[Tensor, "variant row pos head d_head"],
        layer: int,
        variants: Sequence[Parts],
        donor: Int[Tensor, " row"] | None,
    ) -> Float[Tensor, "variant row pos head d_head"]:
        """`z` with the outputs of the heads that each variant removes replaced; for `resample`, the first variant is
        the clean run."""
        removed = [[head in parts.heads.get(layer, ()) for head in range(z.shape[-2])] for parts in variants]
        if not any(map(any, removed)):
            return z
        mask = torch.tensor(removed, device=z.device)[:, None, None, :, None]
        return torch.where(mask, self.new_z(layer, z[0], donor), z)

    def _without_mlp(
        self,
        mlp_out: Float[Tensor, "variant row pos d_model"],
        layer: int,
        variants: Sequence[Parts],
        clean: Float[Tensor, "row pos d_model"] | None,
        donor: Int[Tensor, " row"] | None,
    ) -> Float[Tensor, "variant row pos d_model"]:
        """`mlp_out` with the output of the MLP replaced under the variants that remove it."""
        removed = [layer in parts.mlps for parts in variants]
        if not any(removed):
            return mlp_out
        mask = torch.tensor(removed, device=mlp_out.device)[:, None, None, None]
        return torch.where(mask, self.new_mlp_out(layer, clean, donor), mlp_out)

    @torch.no_grad()
    def _means(self) -> Means:
        """Over all prompts; for `mean_over_positions` over their positions too."""
        n_layers, total = len(self.layers), float(self.question.weight.sum())
        z: list[Any] = [0.0] * n_layers
        mlp_out: list[Any] = [None] * n_layers
        for rows in self.batches:
            part = self.question.rows(rows)
            for at in self.clean_layers(rows, everywhere=True):
                z[at.index] = z[at.index] + part.over_positions(at.z) / total
                if at.mlp_out is not None:
                    before = 0.0 if mlp_out[at.index] is None else mlp_out[at.index]
                    mlp_out[at.index] = part.over_positions(at.mlp_out) / total + before
        if self.method == "mean_over_positions":
            pos = self.question.unpacked[0].to(self.device)
            z = [mean[pos].mean(dim=0).expand_as(mean) for mean in z]
            mlp_out = [None if mean is None else mean[pos].mean(dim=0).expand_as(mean) for mean in mlp_out]
        return Means(z, mlp_out)


def _floats_of_a_row(model: HookedTransformer, n_pos: int, method: str) -> int:
    """Numbers that are in memory at once for one row under one variant."""
    c = model.cfg
    floats = n_pos * (6 * c.d_model + 5 * c.n_heads * c.d_head + (0 if c.attn_only else 3 * (c.d_mlp or 0)))
    if method == "frozen_patterns":
        floats += 2 * c.n_heads * n_pos * n_pos
    return floats
