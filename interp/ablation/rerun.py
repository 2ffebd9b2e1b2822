"""Many ablations of one model at once: the clean run goes through the layers, and every ablation starts from it.

An ablation changes nothing before its first layer, and in that layer only what some heads write. So it begins with the
clean residual stream after that layer's attention, plus the change, and ablations with the same first layer are packed
into one batch. In the last layer only the positions that are read are computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.parts import NOTHING, Parts
from copyscope.interp.ablation.questions import Question
from copyscope.interp.forward.layers import Layer, Layout, embed
from copyscope.interp.models.lens import HookedTransformer
from copyscope.training.errors import InputError

MAX_BYTES = 64 * 2**20
"""Memory that activations may take at once, beside the model. More is no faster on a CPU."""


class Means(NamedTuple):
    """Mean outputs over all prompts of a question, at each position of a row."""

    z: list[Float[Tensor, "pos head d_head"]]
    mlp: list[Float[Tensor, "pos d_model"] | None]


class Answers(NamedTuple):
    """Each measure of each prompt, without and with the ablations."""

    clean: Float[Tensor, "row measure"]
    ablated: Float[Tensor, "variant row measure"]


def donors(n_rows: int, seed: int) -> Int[Tensor, "row"]:
    """The row that each row's resampled outputs come from, never itself: rows are put into pairs (and one group of
    three if their number is odd) at random, and each takes the next of its group.

    Raises:
        InputError: fewer than 2 rows.
    """
    if n_rows < 2:
        raise InputError("resample ablation needs prompts with at least 2 different contexts; give a longer test")
    donor = torch.empty(n_rows, dtype=torch.long)
    for group in groups_of_rows(n_rows, seed):
        donor[group] = group.roll(-1)
    return donor


def groups_of_rows(n_rows: int, seed: int) -> list[Int[Tensor, "member"]]:
    """The groups behind `donors`, which one batch holds whole; a single row is a group of its own."""
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    groups = list(order.split(2))
    if len(groups) > 1 and len(groups[-1]) == 1:
        groups[-2:] = [torch.cat(groups[-2:])]
    return groups


class Rerun:
    """One question to one model, under as many ablations of one method as wanted."""

    def __init__(self, model: HookedTransformer, question: Question, method: str, seed: int, max_bytes: int) -> None:
        self.model, self.question, self.method, self.seed = model, question, method, seed
        self.device = torch.device(model.cfg.device or "cpu")
        self.layout = Layout(question.context, question.block, question.tokens.shape[1], self.device)
        self.layers = [Layer(model, i, self.layout) for i in range(model.cfg.n_layers)]
        self.read = question.read.to(self.device)
        c, pos = model.cfg, question.tokens.shape[1]
        floats = pos * (6 * c.d_model + 5 * c.n_heads * c.d_head + (0 if c.attn_only else 3 * (c.d_mlp or 0)))
        if method == "frozen_patterns":
            floats += 2 * c.n_heads * pos * pos
        self.runs_at_once = max(2, max_bytes // (4 * floats))
        """How many rows × ablations fit."""
        groups = groups_of_rows(len(question.tokens), seed)
        self.batches = list(batched(groups, max(1, self.runs_at_once // (2 * c.n_heads))))
        if method == "resample":
            donors(len(question.tokens), seed)  # refuses a single row
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
        shape = (len(self.question.tokens), len(self.question.measures))
        clean = torch.empty(shape, dtype=torch.float64)
        ablated = torch.empty(len(variants), *shape, dtype=torch.float64)
        starting: dict[int, list[int]] = {}
        for v, parts in enumerate(variants):
            starting.setdefault(parts.layers[0], []).append(v)
        variants = [parts.union(base) for parts in variants]
        for rows in self.batches:
            x = self.embed(rows)
            for i, layer in enumerate(self.layers):
                read = self.read_in(i)
                z = self._put(layer.z(x, read)[None], i, [base], None, None, heads=True)[0]
                if read is not None:
                    x = x[:, read]
                attention = layer.write(z)
                mid, written = layer.rest(x, attention)
                if written is not None:
                    written = self._put(written[None], i, [base], None, None)[0]
                chosen, size = starting.get(i, []), max(1, self.runs_at_once // len(rows))
                for chunk in (chosen[s : s + size] for s in range(0, len(chosen), size)):
                    start = Start(
                        layer=i, x=x, z=z, attention=attention, mid=mid, written=written, donor=self.donors_in(rows)
                    )
                    some = [variants[v] for v in chunk]
                    final = self.onward(start, self._change(start, some), some)
                    got = self.question.score(final.flatten(0, 1), rows.repeat(len(chunk)))
                    ablated[torch.tensor(chunk)[:, None], rows] = got.unflatten(0, (len(chunk), -1))
                    if progress:
                        progress(len(chunk) * len(rows))
                x = mid if written is None else mid + written
            clean[rows] = self.question.score(x, rows)
        return Answers(clean, ablated)

    def embed(self, rows: Tensor) -> Float[Tensor, "row pos d_model"]:
        """The residual stream before the first layer."""
        return embed(self.model, self.question.tokens[rows], self.layout)

    def read_in(self, layer: int) -> Tensor | None:
        """The positions at which this layer's attention is computed; None for all."""
        return self.read if layer == len(self.layers) - 1 else None

    def donors_in(self, rows: Tensor) -> Tensor | None:
        """Where in the batch each row's donor stands."""
        if self.method != "resample":
            return None
        place = {int(row): at for at, row in enumerate(rows)}
        donor = donors(len(self.question.tokens), self.seed)
        return torch.tensor([place[int(donor[row])] for row in rows], device=self.device)

    def onward(
        self, start: "Start", change: Float[Tensor, "variant row pos d_model"], variants: Sequence[Parts]
    ) -> Float[Tensor, "variant row read d_model"]:
        """The final residual stream of a batch, for each variant: `change` is added to what attention writes in layer
        `start.layer`, and from that layer's MLP on the variant's parts are replaced."""
        first, later = start.layer, range(start.layer + 1, len(self.layers))
        # Frozen patterns and resampled outputs of later layers come from the clean run, which is then put in front of
        # the variants in the batch.
        beside = self.method == "frozen_patterns" or (
            self.method == "resample" and any(parts.layers[-1] > first for parts in variants if parts.layers)
        )
        n, clean = len(start.x), int(beside)
        mid, written = self.layers[first].rest(start.x, start.attention + change)  # (variant, row, pos, d_model)
        x = mid
        if written is not None:  # one for all variants where the MLP does not read what attention writes
            x = mid + self._put(written.expand(mid.shape), first, variants, start.written, start.donor)
        if beside:
            own = start.mid if start.written is None else start.mid + start.written
            x = torch.cat([own[None], x])
        for i in later:
            layer, read = self.layers[i], self.read_in(i)
            rows = x.flatten(0, 1)
            frozen = self.method == "frozen_patterns"
            z = layer.z_with_patterns_of_first(rows, n, read) if frozen else layer.z(rows, read)
            z = z.unflatten(0, (-1, n))
            own = self._put(z[clean:], i, variants, z[0] if beside else None, start.donor, heads=True)
            attention = layer.write(torch.cat([z[:clean], own]) if clean else own)
            mid, written = layer.rest(x if read is None else x[:, :, read], attention)
            if written is None:
                x = mid
                continue
            own = self._put(written[clean:], i, variants, written[0] if beside else None, start.donor)
            x = mid + (torch.cat([written[:clean], own]) if clean else own)
        return x[clean:]

    def _change(self, start: "Start", variants: Sequence[Parts]) -> Float[Tensor, "variant row pos d_model"]:
        """What the first layer's attention writes under each variant, less what it writes in the clean run."""
        heads = sorted({head for parts in variants for head in parts.heads.get(start.layer, ())})
        if not heads:
            return start.attention.new_zeros(len(variants), *start.attention.shape)
        source = self.source(start.layer, start.z, start.donor, heads=True)
        w_o = self.layers[start.layer].w_o
        changes = torch.stack([(_pick(source, h) - start.z[..., h, :]) @ w_o[h] for h in heads])
        on = torch.tensor([[h in parts.heads.get(start.layer, ()) for h in heads] for parts in variants])
        return (on.to(changes) @ changes.flatten(1)).unflatten(1, changes.shape[1:])

    def source(self, layer: int, clean: Tensor | None, donor: Tensor | None, heads: bool = False) -> Tensor | float:
        """What is put in the place of outputs: (row or 1, pos, …), or 0. `clean`: the clean outputs of the batch."""
        if self.means is not None:
            value = (self.means.z if heads else self.means.mlp)[layer]
            assert value is not None
            read = self.read_in(layer)
            return (value if read is None else value[read])[None]
        if donor is not None and clean is not None:
            return clean[donor]
        return 0.0

    def _put(
        self,
        value: Float[Tensor, "variant row pos *rest"],
        layer: int,
        variants: Sequence[Parts],
        clean: Tensor | None,
        donor: Tensor | None,
        heads: bool = False,
    ) -> Float[Tensor, "variant row pos *rest"]:
        """`value` with what the variants remove in this layer replaced: heads' outputs, or the MLP's."""
        if heads:
            on = [[h in parts.heads.get(layer, ()) for h in range(value.shape[-2])] for parts in variants]
        else:
            on = [[layer in parts.mlps] for parts in variants]
        if not any(map(any, on)):
            return value
        mask = torch.tensor(on, device=value.device)[:, None, None]
        source = self.source(layer, clean, donor, heads)
        return torch.where(mask[..., None] if heads else mask, source, value)

    @torch.no_grad()
    def _means(self) -> Means:
        n_layers, total = len(self.layers), float(self.question.weight.sum())
        z: list[Any] = [0.0] * n_layers
        mlp: list[Any] = [None] * n_layers
        for rows in self.batches:
            part, x = self.question.rows(rows), self.embed(rows)
            for i, layer in enumerate(self.layers):
                own = layer.z(x)
                x, written = layer.rest(x, layer.write(own))
                z[i] = z[i] + part.over_positions(own) / total
                if written is not None:
                    x = x + written
                    mlp[i] = part.over_positions(written) / total + (0.0 if mlp[i] is None else mlp[i])
        if self.method == "mean_over_positions":
            at = self.question.unpacked[0].to(self.device)
            z = [m[at].mean(dim=0).expand_as(m) for m in z]
            mlp = [None if m is None else m[at].mean(dim=0).expand_as(m) for m in mlp]
        return Means(z, mlp)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The clean run of a batch in the layer where ablations begin. In the last layer it has only the positions that are
    read."""

    layer: int
    x: Tensor
    """The residual stream before the layer, (row, pos, d_model), as are the next ones."""
    z: Tensor
    """The heads' outputs, (row, pos, head, d_head)."""
    attention: Tensor
    """What attention writes."""
    mid: Tensor
    """The residual stream that the layer's MLP adds to."""
    written: Tensor | None
    """What the MLP writes; None if the layer has none."""
    donor: Tensor | None
    """Row of the batch that each row's resampled outputs come from; None for other methods."""


def _pick(source: Tensor | float, head: int) -> Tensor | float:
    return source[..., head, :] if isinstance(source, Tensor) else source


def batched(groups: Sequence[Tensor], size: int) -> Iterator[Tensor]:
    """Groups joined into batches of at most `size` rows, or of one group."""
    batch: list[Tensor] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > size:
            yield torch.cat(batch)
            batch = []
        batch.append(group)
    yield torch.cat(batch)
