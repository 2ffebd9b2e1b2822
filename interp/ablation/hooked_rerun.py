"""`interp.ablation.rerun` for any model: one hooked forward pass an ablation, every prompt in full.

For bridges, for models with hooks and for attention that cannot be fused; and the version that the fast one
is held against.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from copyscope.interp.ablation.donors import donors
from copyscope.interp.ablation.parts import Parts
from copyscope.interp.ablation.questions import Question
from copyscope.interp.ablation.rerun import Answers
from copyscope.interp.forward.residual import Hook, batches, final_residual
from copyscope.interp.models.lens import HookedModel


class HookedRuns:
    """One question to one model, under as many ablations of one method as wanted."""

    def __init__(self, model: HookedModel, question: Question, method: str, seed: int) -> None:
        self.model, self.question, self.method = model, question, method
        at = question.unpacked  # (block, prompt_pos)
        self.blocks = len(at)
        self.prompts = question.tokens[:, at].flatten(0, 1)  # (row · block, prompt_pos)
        self.rows = torch.arange(len(question.tokens))
        first = at[0].tolist()
        self.read = torch.tensor([first.index(p) for p in question.read.tolist() if p in first])
        self.donors = donors(len(self.rows), seed) if method == "resample" else None
        self.batches = list(batches(model, len(self.rows), self.prompts.shape[1]))
        self.means = self._means() if method.startswith("mean") else {}

    def answers(self, variants: Sequence[Parts], progress: Callable[[int], None] | None = None) -> Answers:
        """As `Rerun.answers`."""
        clean, ablated = [], []
        for rows in self.batches:
            kept = self._recorded(self.rows[rows])
            other = self._recorded(self.donors[rows]) if self.donors is not None else {}
            clean.append(self._answer(rows, []))
            parts = []
            for variant in variants:
                parts.append(self._answer(rows, self._hooks(variant, kept, other)))
                if progress:
                    progress(rows.stop - rows.start)
            ablated.append(torch.stack(parts) if parts else clean[-1].new_empty(0, *clean[-1].shape))
        return Answers(torch.cat(clean).cpu().double(), torch.cat(ablated, dim=1).cpu().double())

    def _prompts(self, rows: Tensor) -> Tensor:
        return self.prompts.unflatten(0, (-1, self.blocks))[rows].flatten(0, 1)

    def _answer(self, rows: slice, hooks: Sequence[Hook]) -> Float[Tensor, "row measure"]:
        residual = final_residual(self.model, self._prompts(self.rows[rows]), hooks)[:, self.read]
        packed = residual.unflatten(0, (-1, self.blocks)).flatten(1, 2)
        return self.question.score(packed, self.rows[rows])

    def _recorded(self, rows: Tensor) -> dict[str, Tensor]:
        """Clean outputs and patterns of these rows, by the name of their hook point."""
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            kept[hook.name] = value.detach().clone()

        names = ["attn.hook_z"] + ([] if self.model.cfg.attn_only else ["hook_mlp_out"])
        if self.method == "frozen_patterns":
            names = ["attn.hook_pattern"]
        hooks: list[Hook] = [(f"blocks.{i}.{n}", keep) for i in range(self.model.cfg.n_layers) for n in names]
        if self.method in ("frozen_patterns", "resample") or self.method.startswith("mean"):
            final_residual(self.model, self._prompts(rows), hooks)
        return kept

    def _means(self) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for rows in self.batches:
            weight = self.question.samples[rows].flatten()
            for name, value in self._recorded(self.rows[rows]).items():
                sums[name] = sums.get(name, 0.0) + torch.einsum("r,r...->...", weight.to(value), value)
        means = {name: value / self.question.weight.sum().item() for name, value in sums.items()}
        if self.method == "mean_over_positions":
            means = {name: value.mean(dim=0).expand_as(value) for name, value in means.items()}
        return means

    def _hooks(self, variant: Parts, kept: dict[str, Tensor], other: dict[str, Tensor]) -> list[Hook]:
        hooks: list[Hook] = []
        if self.method == "frozen_patterns":
            hooks += [(name, lambda p, hook, held=held: held) for name, held in kept.items()]

        def edit(value: Tensor, hook: Any, heads: list[int] | None) -> Tensor:
            source: Any = self.means.get(hook.name, other.get(hook.name, 0.0))
            if heads is None:
                return torch.zeros_like(value) + source
            value = value.clone()
            value[:, :, heads] = source if isinstance(source, float) else source[..., heads, :]
            return value

        for layer, heads in variant.heads.items():
            hooks.append((f"blocks.{layer}.attn.hook_z", lambda z, hook, heads=heads: edit(z, hook, heads)))
        for layer in variant.mlps:
            hooks.append((f"blocks.{layer}.hook_mlp_out", lambda m, hook: edit(m, hook, None)))
        return hooks
