"""Interventions: heads, attention layers and MLPs taken out of a model's forward passes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.ablation.effects import sweep_heads, sweep_layers, sweep_pairs
from copyscope.interp.ablation.parts import METHODS, Head, Part, Parts, check_parts
from copyscope.interp.forward.residual import Hook, LastBlockError, batches, final_residual
from copyscope.interp.measures.heads import check_names
from copyscope.interp.models.lens import HookedModel
from copyscope.training.errors import InputError

__all__ = [
    "HELD",
    "METHODS",
    "Head",
    "Part",
    "ablate_heads",
    "hold_heads",
    "sweep_heads",
    "sweep_layers",
    "sweep_pairs",
]

HELD = ("zero", "previous_token", "uniform")
"""Ways to hold a head."""


@contextmanager
def ablate_heads(
    model: HookedModel,
    heads: str | Sequence[Part],
    method: str = "zero",
    *,
    reference: Int[Tensor, "prompt pos"] | None = None,
    seed: int = 0,
) -> Iterator[HookedModel]:
    """Removes heads from every forward pass in its body: `with ablate_heads(model, "L2H1"): model(tokens)`.

    `heads`: text such as `L3H1,L2`, or pairs: (layer, head), and for whole layers (layer, "attention") or (layer,
    "mlp"). What changes is the head's output z before W_O (an attention bias b_O stays), or the MLP's output:
    - `zero`: 0;
    - `mean`: its mean over prompts at the same position, of the clean model on `reference`; without a reference, of
      the batch that runs (then earlier ablated heads act on it, and the batch must have two rows or more);
    - `mean_over_positions`: its mean over prompts and positions, likewise;
    - `resample`: its value at the same position on another prompt, drawn with `seed` for each row: of `reference`, or
      without one of another row of the batch that runs;
    - `frozen_patterns`: 0, while every attention pattern is held at what the clean model has on the same input, so
      that only effects through values remain. Costs a second forward pass. Call the model itself, not
      `run_with_hooks`.

    With a key-value cache the reference's positions continue where the cache ends, and donors stay. Nothing is left on
    the model afterwards, whatever happens in the body. An ablated head takes the model off the distribution it was
    trained on, `zero` most and `resample` least; and backup heads may take over, so that a small effect does not show
    that the head did nothing (2407.07011 and others).

    Raises:
        InputError: no or unknown heads, an unknown method, a reference shorter than the input, or one prompt only
            where another is needed.
    """
    check_names([method], METHODS, "ablation method")
    parts = check_parts(model, heads)
    frozen = _FrozenPatterns(model) if method == "frozen_patterns" else None
    taken = None
    if reference is not None and (method == "resample" or method.startswith("mean")):
        taken = _clean_outputs(model, parts, reference)
    edits = _Edits(parts, method, taken, seed, frozen)
    hooks = edits.hooks + (frozen.hooks if frozen is not None else [])
    handle = frozen.attach() if frozen is not None else None
    try:
        with model.hooks(fwd_hooks=hooks):
            yield model
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def hold_heads(model: HookedModel, heads: str | Sequence[Head], mode: str) -> Iterator[HookedModel]:
    """Holds heads in every forward pass in its body, as training does with `intervention.heads`.

    `mode`: `zero` (output 0), or attention to the token before (`previous_token`; position 0 attends to itself) or to
    all visible tokens alike (`uniform`), whatever the head's queries and keys are. A held pattern is what measures of
    attention then see; values and the output matrix are the model's own. Nothing is left on the model afterwards.
    Raises InputError for unknown heads or modes.
    """
    check_names([mode], HELD, "mode")
    points = check_parts(model, heads).heads

    def zero(z: Tensor, hook: Any, some: list[int]) -> Tensor:
        z = z.clone()
        z[:, :, some] = 0.0
        return z

    def clamp(pattern: Tensor, hook: Any, some: list[int]) -> Tensor:
        pattern = pattern.clone()
        pattern[:, some] = _held_pattern(mode, *pattern.shape[-2:]).to(pattern)
        return pattern

    name, function = ("hook_z", zero) if mode == "zero" else ("hook_pattern", clamp)
    hooks: list[Hook] = [
        (f"blocks.{layer}.attn.{name}", partial(function, some=some)) for layer, some in points.items()
    ]
    with model.hooks(fwd_hooks=hooks):
        yield model


def _held_pattern(mode: str, queries: int, keys: int) -> Float[Tensor, "query key"]:
    """Attention of the last `queries` of `keys` positions."""
    position = torch.arange(keys - queries, keys)
    if mode == "previous_token":
        return torch.nn.functional.one_hot((position - 1).clamp(min=0), keys).float()
    return (torch.arange(keys) <= position[:, None]).float() / (position[:, None] + 1)


class _Reference(NamedTuple):
    """The clean model on the reference prompts."""

    embedded: Float[Tensor, "prompt pos d_model"]
    """Identifies whether an input is one of them."""
    outputs: dict[str, Tensor]
    """Hook point → (prompt, pos, …)."""


def _hook_points(parts: Parts) -> dict[str, list[int] | None]:
    """Hook point → the heads that are replaced there; None for all of an MLP's output."""
    points: dict[str, list[int] | None] = {}
    for layer in parts.layers:
        if layer in parts.heads:
            points[f"blocks.{layer}.attn.hook_z"] = parts.heads[layer]
        if layer in parts.mlps:
            points[f"blocks.{layer}.hook_mlp_out"] = None
    return points


def _clean_outputs(model: HookedModel, parts: Parts, reference: Tensor) -> _Reference:
    names = ["hook_embed", *_hook_points(parts)]
    recorded: dict[str, list[Tensor]] = {name: [] for name in names}
    # Named here, as a bridge's hooks may go by another name than the one they were asked for under.
    hooks: list[Hook] = [(n, lambda x, hook, n=n: recorded[n].append(x.detach().clone())) for n in names]
    for rows in batches(model, *reference.shape):
        final_residual(model, reference[rows], hooks)
    outputs = {name: torch.cat(values) for name, values in recorded.items()}
    return _Reference(outputs.pop("hook_embed"), outputs)


class _Edits:
    """What replaces outputs during forward passes."""

    def __init__(
        self, parts: Parts, method: str, reference: _Reference | None, seed: int, frozen: "_FrozenPatterns | None"
    ) -> None:
        self.method, self.reference, self.frozen = method, reference, frozen
        self.points, self.first_layer = _hook_points(parts), parts.layers[0]
        self.generator = torch.Generator().manual_seed(seed)
        self.offset = 0
        self.embedded: Tensor | None = None
        self.donors: Tensor | None = None

    @property
    def hooks(self) -> list[Hook]:
        hooks: list[Hook] = [(name, lambda value, hook, name=name: self._edit(name, value)) for name in self.points]
        if self.reference is not None:
            hooks.append(("hook_embed", self._see_input))
            hooks.append((f"blocks.{self.first_layer}.attn.hook_pattern", self._see_offset))
        return hooks

    def _see_input(self, embedded: Tensor, hook: Any) -> None:
        self.embedded = embedded

    def _see_offset(self, pattern: Tensor, hook: Any) -> None:
        self.offset = pattern.shape[-1] - pattern.shape[-2]

    def _edit(self, name: str, value: Tensor) -> Tensor | None:
        if self.frozen is not None and self.frozen.recording:
            return None
        if self.method in ("zero", "frozen_patterns"):
            source: Any = 0.0
        else:
            source = self._source(name, value)
        heads = self.points[name]
        if heads is None:
            return torch.zeros_like(value) + source
        value = value.clone()
        value[:, :, heads] = source if isinstance(source, float) else source[..., heads, :]
        return value

    def _source(self, name: str, value: Tensor) -> Tensor:
        length = value.shape[1]
        if self.reference is None:
            if len(value) < 2 and (self.method != "mean_over_positions" or length < 2):
                raise InputError(
                    f"{self.method} ablation of a single prompt needs reference prompts; pass reference=tokens"
                )
            source = value
        else:
            source = self.reference.outputs[name]
            if source.shape[1] < self.offset + length:
                raise InputError(
                    f"reference prompts have {source.shape[1]} positions, but the input has {self.offset + length}"
                )
            if self.method != "mean_over_positions":
                source = source[:, self.offset : self.offset + length]
        if self.method == "mean":
            return source.mean(dim=0)
        if self.method == "mean_over_positions":
            return source.mean(dim=(0, 1))
        if name == next(iter(self.points)) and (self.donors is None or not self.offset):
            self.donors = self._draw(len(value))  # one donor for all heads of a forward pass
        assert self.donors is not None
        return source[self.donors.to(value.device)]

    def _draw(self, rows: int) -> Int[Tensor, " row"]:
        if self.reference is None:
            # Each row's donor is the next one in a random ring, which is never the row itself.
            ring = torch.randperm(rows, generator=self.generator)
            return torch.empty_like(ring).scatter_(0, ring, ring.roll(1))
        known = self.reference.embedded
        draw = torch.rand(rows, len(known), generator=self.generator)
        if self.embedded is not None and len(self.embedded) == rows:
            mine = self.embedded
            same = [(mine == prompt).flatten(1).all(dim=1) for prompt in known[:, : mine.shape[1]]]
            draw[torch.stack(same, dim=1).cpu()] = -1.0  # the input itself
        if bool((draw.amax(dim=1) < 0).any()):
            raise InputError("resample ablation: the reference holds the input only; give at least 2 different prompts")
        return draw.argmax(dim=1)


class _FrozenPatterns:
    """Runs the clean model before each call and holds the attention patterns of the call at what it saw."""

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.recording = False
        self.patterns: dict[int, Tensor] = {}

    @property
    def hooks(self) -> list[Hook]:
        return [
            (f"blocks.{i}.attn.hook_pattern", lambda p, hook, i=i: self._hold(p, i))
            for i in range(self.model.cfg.n_layers)
        ]

    def attach(self) -> Any:
        return self.model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.recording:
            return
        if kwargs.get("past_kv_cache") is not None:
            raise InputError("frozen_patterns runs the input twice, so it cannot continue from a key-value cache")
        self.patterns.clear()
        self.recording = True
        try:
            with suppress(LastBlockError):  # `final_residual` of a bridge ends a pass so: this one, not the call's own
                self.model(*args, **kwargs)
        finally:
            self.recording = False

    def _hold(self, pattern: Tensor, layer: int) -> Tensor | None:
        if self.recording:
            self.patterns[layer] = pattern.detach().clone()
            return None
        held = self.patterns.pop(layer, None)
        if held is None or held.shape != pattern.shape:
            raise InputError("frozen_patterns: call the model itself, model(tokens), so that the clean run comes first")
        return held
