"""Interventions on head outputs, and the sweep over all heads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from interp.behavior import CopyingTest, check_test, copying_hits, copying_stages
from interp.heads import check_names
from interp.models import HookedModel
from interp.prompts import SUFFIX, fitting_length, natural_windows, repeated_random_tokens
from interp.runs import (
    Hook,
    Stage,
    batches,
    final_residual,
    is_hooked,
    logits_of,
    losses_of,
    run_stages,
    to_device,
    token_losses,
)
from training.checkpoints import InputError

METHODS = ("zero", "mean", "resample", "frozen_patterns")
Head = tuple[int, int]


def check_heads(model: HookedModel, heads: Sequence[Head]) -> dict[int, list[int]]:
    """Heads by layer; InputError for an empty set or a head that the model does not have."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if not heads:
        raise InputError("no head to ablate; give at least one (layer, head)")
    layers: dict[int, list[int]] = {}
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise InputError(
                f"head ({layer}, {head}) does not exist: the model has {n_layers} layers × {n_heads} heads, "
                f"from (0, 0) to ({n_layers - 1}, {n_heads - 1})"
            )
        layers.setdefault(layer, []).append(head)
    return layers


@contextmanager
def ablate_heads(
    model: HookedModel,
    heads: Sequence[Head],
    method: str = "zero",
    *,
    reference: Int[Tensor, "prompt pos"] | None = None,
    seed: int = 0,
) -> Iterator[HookedModel]:
    """Removes heads from every forward pass in its body: `with ablate_heads(model, [(2, 1)]): model(tokens)`.

    What changes is the head's output z (before W_O):
    - `zero`: 0;
    - `mean`: its mean over prompts at the same position, of the clean model on `reference`; without a reference, of
    the
      batch that runs (then earlier ablated heads act on it, and the batch must have two rows or more);
    - `resample`: its value at the same position on another prompt, drawn with `seed` for each row: of `reference`, or
      without one of another row of the batch that runs;
    - `frozen_patterns`: 0, while every attention pattern is held at what the clean model has on the same input, so
    that only
      effects through values remain. Costs a second forward pass. Call the model itself, not `run_with_hooks`.

    Nothing is left on the model afterwards, whatever happens in the body. An ablated head takes the model off the
    distribution it was trained on, `zero` most and `resample` least; and backup heads may take over, so that a small
    effect does not show that the head did nothing (2407.07011 and others).

    Raises:
        InputError: no or unknown heads, an unknown method, a reference shorter than the input, or one prompt only
            where another is needed.
    """
    check_names([method], METHODS, "ablation method")
    layers = check_heads(model, heads)
    clean: dict[int, Tensor] = {}
    if reference is not None and method in ("mean", "resample"):
        clean = _clean_outputs(model, layers, reference)
    generator = torch.Generator().manual_seed(seed)
    frozen = _FrozenPatterns(model) if method == "frozen_patterns" else None
    donors: dict[str, Tensor] = {}

    def draw(rows: int) -> Tensor:
        if clean:
            return torch.randint(0, len(next(iter(clean.values()))), (rows,), generator=generator)
        # Each row's donor is the next one in a random ring, which is never the row itself.
        ring = torch.randperm(rows, generator=generator)
        return torch.empty_like(ring).scatter_(0, ring, ring.roll(1))

    def edit(z: Tensor, hook: Any, layer: int) -> Tensor | None:
        if frozen is not None and frozen.recording:
            return None
        chosen = layers[layer]
        z = z.clone()
        if method in ("zero", "frozen_patterns"):
            z[:, :, chosen] = 0
            return z
        source = clean[layer] if clean else z
        if source.shape[1] < z.shape[1]:
            raise InputError(f"reference prompts have {source.shape[1]} positions, but the input has {z.shape[1]}")
        if not clean and len(z) < 2:
            raise InputError(f"{method} ablation of a single prompt needs reference prompts; pass reference=tokens")
        source = source[:, : z.shape[1]]
        if method == "mean":
            z[:, :, chosen] = source[:, :, chosen].mean(dim=0)
        else:
            if layer == min(layers):  # one donor for all heads of a forward pass
                donors["rows"] = draw(len(z))
            z[:, :, chosen] = source[donors["rows"].to(z.device)][:, :, chosen]
        return z

    hooks: list[Hook] = [
        (f"blocks.{layer}.attn.hook_z", lambda z, hook, layer=layer: edit(z, hook, layer)) for layer in layers
    ]
    if frozen is not None:
        hooks += frozen.hooks
    handle = frozen.attach() if frozen is not None else None
    try:
        with model.hooks(fwd_hooks=hooks):
            yield model
    finally:
        if handle is not None:
            handle.remove()


def _clean_outputs(model: HookedModel, layers: dict[int, list[int]], reference: Tensor) -> dict[int, Tensor]:
    """z of the clean model on the reference prompts: layer → (prompt, pos, head, d_head)."""
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [(f"blocks.{i}.attn.hook_z", lambda z, hook, i=i: parts[i].append(z.detach().clone())) for i in layers]
    for rows in batches(model, *reference.shape):
        final_residual(model, reference[rows], hooks)
    return {layer: torch.cat(z) for layer, z in parts.items()}


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
            raise InputError("frozen_patterns runs the input twice, so it cannot go on from a key-value cache")
        self.patterns.clear()
        self.recording = True
        try:
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


# ------------------------------------------------------------------------------------------------------------ the
# sweep


class _Question(NamedTuple):
    """One thing to measure under every ablation: batches to run, and how to read a batch's final residual stream."""

    jobs: list[tuple[slice, list[Stage]]]
    read: Callable[[Tensor, slice], dict[str, tuple[float, int]]]
    """Final residual and the rows it belongs to → measure: (sum, count)."""
    first: Callable[[slice], int]
    """Number of the prompt (context) that a batch of rows starts with."""
    plain: Callable[[], dict[str, float]]
    """The same measures by ordinary forward passes, for models that cannot start in the middle."""
    reference: Tensor
    """Whole prompts that means and resampled outputs are taken from."""


@torch.no_grad()
def sweep_heads(
    model: HookedModel,
    test: CopyingTest,
    methods: Sequence[str] = ("zero",),
    *,
    windows: Int[Tensor, "window window_pos"] | None = None,
    repeated: Int[Tensor, "prompt prompt_pos"] | None = None,
    heads: Sequence[Head] | None = None,
    seed: int = 0,
    n_reference: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Effect of removing each head, one at a time: a table of layer, head, method, measure, value (definition 11).

    Measures (value = ablated - clean): `copying_accuracy_exact`, `copying_accuracy_token`, `copying_loss` (second
    half of repeated random tokens, nats), and `natural_loss` (nats) when `windows` are given. For calibration
    (definition 12) each measure m has `m_control`, the mean effect of the other swept heads of the same layer, and
    `control_heads` says how many they are; with 0 of them there is no control row.

    Args:
        test: the copying test; 100 to 200 samples do for a sweep.
        methods: as in `ablate_heads`. `mean` and `resample` take their outputs from the first `n_reference` prompts
            with different contexts of each measure's own prompts.
        repeated: prompts for the copying loss; None draws 16 (100 tokens twice, or what fits) from the test's own
            tokens.
        heads: the heads to sweep; None for all.
        progress: called with (forward passes done, of how many).

    The clean run's prefix is reused: only layers from the ablated one on run again, shared contexts run once, and
    logits are computed only where they are read. A single-head effect misses what backup heads make up for.
    """
    chosen_methods = check_names(methods, METHODS, "ablation method")
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if heads is None:
        heads = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    check_heads(model, heads)
    heads = sorted(set(heads))
    check_test(model, test)
    questions = _questions(model, test, windows, repeated, seed, n_reference)
    cells = [(layer, head, method) for method in chosen_methods for layer, head in heads]
    steps = sum(len(q.jobs) for q in questions) * len(cells)
    done = 0
    effects: dict[tuple[int, int, str, str], float] = {}
    for question in questions:
        if not isinstance(model, HookedTransformer) or is_hooked(model):
            clean = question.plain()
            for layer, head, method in cells:
                with ablate_heads(model, [(layer, head)], method, reference=question.reference, seed=seed):
                    ablated = question.plain()
                for measure, value in ablated.items():
                    effects[layer, head, method, measure] = value - clean[measure]
                done += len(question.jobs)
                if progress is not None:
                    progress(done, steps)
            continue
        swapped = _swap_sources(model, question, chosen_methods, seed)
        sums: dict[tuple[int, int, str, str], tuple[float, int]] = {}
        totals: dict[str, tuple[float, int]] = {}
        for rows, stages in question.jobs:
            run = _CleanRun(model, question.first(rows), stages, keep_patterns="frozen_patterns" in chosen_methods)
            _add(totals, question.read(run.final, rows), lambda m: m)
            for layer, head, method in cells:
                final = run.without(layer, head, method, swapped)
                _add(sums, question.read(final, rows), lambda m, c=(layer, head, method): (*c, m))
                done += 1
                if progress is not None:
                    progress(done, steps)
        for (layer, head, method, measure), (total, count) in sums.items():
            effects[layer, head, method, measure] = total / count - totals[measure][0] / totals[measure][1]
    return _effect_table(effects)


def _add(into: dict[Any, tuple[float, int]], new: dict[str, tuple[float, int]], key: Callable[[str], Any]) -> None:
    for measure, (value, count) in new.items():
        old = into.get(key(measure), (0.0, 0))
        into[key(measure)] = (old[0] + value, old[1] + count)


def _effect_table(effects: dict[tuple[int, int, str, str], float]) -> pl.DataFrame:
    table = pl.DataFrame(
        [(*key, value) for key, value in effects.items()],
        schema={"layer": pl.Int64, "head": pl.Int64, "method": pl.String, "measure": pl.String, "value": pl.Float64},
        orient="row",
    )
    same_layer = ["layer", "method", "measure"]
    others = table.with_columns(
        (pl.col("value").sum().over(same_layer) - pl.col("value")).alias("rest"),
        (pl.len().over(same_layer) - 1).alias("n"),
    )
    control = others.filter(pl.col("n") > 0).select(
        "layer", "head", "method", pl.col("measure") + "_control", (pl.col("rest") / pl.col("n")).alias("value")
    )
    counts = others.unique(["layer", "head", "method"]).select(
        "layer", "head", "method", pl.lit("control_heads").alias("measure"), pl.col("n").cast(pl.Float64).alias("value")
    )
    return pl.concat([table, control, counts]).sort("method", "layer", "head", "measure")


def _questions(
    model: HookedModel,
    test: CopyingTest,
    windows: Tensor | None,
    repeated: Tensor | None,
    seed: int,
    n_reference: int,
) -> list[_Question]:
    if repeated is None:
        bos_id = int(test.tokens[0, 0]) if test.has_bos else None
        length = fitting_length(model.cfg.n_ctx, 100, 2, bos_id)
        vocab = test.tokens[:, int(test.has_bos) :].unique()
        repeated = repeated_random_tokens(vocab, length, 16, seed, bos_id)

    def read_hits(residual: Tensor, rows: slice) -> dict[str, tuple[float, int]]:
        hits = logits_of(model, residual[:, -SUFFIX:]).argmax(dim=-1).cpu() == test.suffix[rows].cpu()
        return {
            "copying_accuracy_exact": (float(hits.all(dim=1).sum()), len(hits)),
            "copying_accuracy_token": (float(hits.sum()), hits.numel()),
        }

    def plain_hits() -> dict[str, float]:
        hits = copying_hits(model, test).double()
        return {
            "copying_accuracy_exact": hits.all(dim=1).double().mean().item(),
            "copying_accuracy_token": hits.mean().item(),
        }

    first_of_context = torch.cat([torch.tensor([True]), test.context.diff().cpu() > 0])
    full = torch.cat([test.tokens, test.suffix[:, :-1]], dim=1)[first_of_context]
    jobs = copying_stages(model, test)
    hits = _Question(jobs, read_hits, lambda rows: int(test.context[rows.start]), plain_hits, full[:n_reference])
    questions = [hits, _loss_question(model, "copying_loss", repeated, repeated.shape[1] // 2, n_reference)]
    if windows is not None:
        windows = natural_windows(windows, model.cfg.d_vocab, model.cfg.n_ctx)
        questions.append(_loss_question(model, "natural_loss", windows, None, n_reference))
    return questions


def _loss_question(model: HookedModel, name: str, tokens: Tensor, last: int | None, n_reference: int) -> _Question:
    """Mean loss of the `last` tokens (None: of all but the first)."""
    count = tokens.shape[1] - 1 if last is None else last

    def read(residual: Tensor, rows: slice) -> dict[str, tuple[float, int]]:
        # Losses of the last `count` tokens need one residual row more than they are.
        losses = losses_of(model, residual[:, -count - 1 :], tokens[rows, -count - 1 :])
        return {name: (losses.double().sum().item(), losses.numel())}

    def plain() -> dict[str, float]:
        return {name: token_losses(model, tokens)[:, -count:].double().mean().item()}

    jobs = [(r, [Stage(to_device(model, tokens[r]), None, 0)]) for r in batches(model, *tokens.shape)]
    return _Question(jobs, read, lambda rows: rows.start, plain, tokens[:n_reference])


def _swap_sources(
    model: HookedModel, question: _Question, methods: Sequence[str], seed: int
) -> dict[str, dict[int, Tensor]]:
    """For `mean` and `resample`: layer → z (prompt, pos, head, d_head) to put in; one prompt of means for `mean`."""
    if not {"mean", "resample"} & set(methods):
        return {}
    z = _clean_outputs(model, {layer: [] for layer in range(model.cfg.n_layers)}, question.reference)
    if "resample" in methods and len(question.reference) < 2:
        raise InputError("resample ablation needs prompts with at least 2 different contexts; give a longer test")
    shift = resample_shift(len(question.reference), seed) if "resample" in methods else 0
    return {
        "mean": {layer: value.mean(dim=0, keepdim=True) for layer, value in z.items()},
        "resample": {layer: value.roll(-shift, dims=0) for layer, value in z.items()},
    }


def resample_shift(n_reference: int, seed: int) -> int:
    """Prompt r is resampled from reference prompt (r + shift) mod n_reference, which is never itself."""
    return 1 + int(torch.randint(0, n_reference - 1, (), generator=torch.Generator().manual_seed(seed)))


class _CleanRun:
    """A batch's clean run, with what is needed to run it again from any layer on."""

    def __init__(self, model: HookedTransformer, first: int, stages: list[Stage], keep_patterns: bool) -> None:
        self.model, self.first, self.stages = model, first, stages
        self.before: list[dict[int, Tensor]] = [{} for _ in stages]
        self.patterns: list[dict[int, Tensor]] = [{} for _ in stages]
        hooks: list[list[Hook]] = []
        for s in range(len(stages)):
            own: list[Hook] = []
            for i in range(model.cfg.n_layers):
                own.append((f"blocks.{i}.hook_resid_pre", _keeper(self.before[s], i)))
                if keep_patterns:
                    own.append((f"blocks.{i}.attn.hook_pattern", _keeper(self.patterns[s], i)))
            hooks.append(own)
        self.final = run_stages(model, stages, hooks)

    def without(self, layer: int, head: int, method: str, swapped: dict[str, dict[int, Tensor]]) -> Tensor:
        """The final residual stream at the last stage with one head's output replaced."""
        hooks: list[list[Hook]] = []
        rows = self.first + torch.arange(self.stages[0].tokens.shape[0])
        for s, stage in enumerate(self.stages):
            rows = rows if stage.parent is None else rows[stage.parent.cpu()]
            edit = self._editor(stage, rows, layer, head, method, swapped)
            own: list[Hook] = [(f"blocks.{layer}.attn.hook_z", edit)]
            if method == "frozen_patterns":
                for i, pattern in self.patterns[s].items():
                    if i > layer:
                        own.append((f"blocks.{i}.attn.hook_pattern", lambda p, hook, pattern=pattern: pattern))
            hooks.append(own)
        return run_stages(self.model, self.stages, hooks, start=layer, residuals=[b[layer] for b in self.before])

    def _editor(
        self,
        stage: Stage,
        rows: Tensor,
        layer: int,
        head: int,
        method: str,
        swapped: dict[str, dict[int, Tensor]],
    ) -> Callable[..., Tensor]:
        replacement: Tensor | float = 0.0
        if method in swapped:
            source = swapped[method][layer][:, stage.offset : stage.offset + stage.tokens.shape[1], head]
            # Prompt r takes the same donor in both stages, whichever batch it is in.
            replacement = source[rows.to(source.device) % len(source)]

        def edit(z: Float[Tensor, "row pos head d_head"], hook: Any) -> Tensor:
            z = z.clone()
            z[:, :, head] = replacement
            return z

        return edit


def _keeper(store: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        store[layer] = value

    return keep
