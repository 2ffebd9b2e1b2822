"""Attention of a run's models on a prompt: loaded when asked, the last used kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from copyscope.analyses.page.build import script_json
from copyscope.analyses.page.head_matrices import head_matrices
from copyscope.analyses.page.predictions import predictions
from copyscope.analyses.tables.as_trained import as_trained
from copyscope.analyses.tables.run import Run, selected
from copyscope.interp.ablation.hooks import ablate_heads
from copyscope.interp.head_names import parse_heads
from copyscope.interp.measures.patterns import PatternBlock, read_patterns
from copyscope.interp.models.devices import dtype_named
from copyscope.interp.models.hooked import load_hooked, load_weights_into
from copyscope.interp.models.lens import HookedModel
from copyscope.training.checkpoints.series import Checkpoint
from copyscope.training.devices import device_named
from copyscope.training.errors import InputError

MODEL_BYTES = 1 << 30
"""Weights kept in memory; at least one model is."""


class Models:
    """The checkpoints of one run, as models; may be asked from several threads."""

    def __init__(self, run: Run, most_bytes: int = MODEL_BYTES, device: str = "auto", dtype: str = "float32") -> None:
        """`device` and `dtype` as in `interp.models.Compute`; InputError for others."""
        self.run, self._most_bytes = run, most_bytes
        self._where: dict[str, Any] = {"device": device_named(device), "dtype": dtype_named(dtype)}
        self._loaded: OrderedDict[int, HookedModel] = OrderedDict()
        self._lock = threading.Lock()

    def attention(self, step: int, ids: Sequence[int]) -> bytes:
        """`attention_bytes` of the checkpoint at `step`.

        Raises InputError: no such step, a damaged checkpoint, or tokens that the model has not got.
        """
        with self._lock, as_trained(self._model(step), self.run, selected(self.run, [step])[0]) as model:
            return attention_bytes(model, ids)

    def predictions(
        self, step: int, ids: Sequence[int], words: Callable[[Sequence[int]], list[str]], without: str = ""
    ) -> bytes:
        """`predictions` of the checkpoint at `step` as JSON that is safe in a page; `without`: heads set to zero, as
        `L3H1,L2H0`. Raises InputError as `attention` does, and for heads that the model has not got."""
        with self._lock, as_trained(self._model(step), self.run, selected(self.run, [step])[0]) as model:
            check_prompt(model, ids)
            with ablate_heads(model, without) if without else nullcontext():
                return script_json(predictions(model, ids, words)).encode()

    def matrices(self, step: int, ids: Sequence[int], words: Callable[[Sequence[int]], list[str]], head: str) -> bytes:
        """`head_matrices` of a head such as `L3H1` at `step`, as JSON that is safe in a page. Raises InputError as
        `attention` does, and for a head that the model has not got."""
        layer, number = parse_heads(head)[0]
        if not isinstance(number, int):
            raise InputError(f"{head!r}: name one head, such as L{layer}H0")
        with self._lock:
            model = self._model(step)
            check_prompt(model, ids)
            return script_json(head_matrices(model, layer, number, ids, words)).encode()

    def load(self, step: int) -> None:
        """Loads the model of a step before it is asked for. Raises InputError as `attention` does."""
        with self._lock:
            self._model(step)

    def shape(self, step: int) -> tuple[int, int]:
        """Layers, and heads a layer. Raises InputError as `attention` does."""
        with self._lock:
            config = self._model(step).cfg
        return config.n_layers, config.n_heads

    def _model(self, step: int) -> HookedModel:
        if step in self._loaded:
            self._loaded.move_to_end(step)
            return self._loaded[step]
        checkpoint = selected(self.run, [step])[0]
        if not self._full():
            model = load_hooked(checkpoint.path, checkpoint.revision, **self._where, prove=False)
        else:
            model = self._instead_of_the_oldest(checkpoint)
        self._loaded[step] = model
        return model

    def _full(self) -> bool:
        """Whether another model of the same size would be too much."""
        sizes = [sum(p.numel() * p.element_size() for p in m.parameters()) for m in self._loaded.values()]
        return bool(sizes) and sum(sizes) + max(sizes) > self._most_bytes

    def _instead_of_the_oldest(self, checkpoint: Checkpoint) -> HookedModel:
        step, model = self._loaded.popitem(last=False)
        try:
            return load_weights_into(model, checkpoint.path, checkpoint.revision)
        except InputError:  # nothing of a checkpoint that is refused has been copied
            self._loaded[step] = model
            self._loaded.move_to_end(step, last=False)
            raise


@torch.no_grad()
def attention_bytes(model: HookedModel, ids: Sequence[int]) -> bytes:
    """Attention × 255, rounded, as bytes: head after head (layer × n_heads + head), the lower triangle row by row.

    Raises InputError for tokens that the model has not got, or more than its context holds.
    """
    check_prompt(model, ids)
    config, length = model.cfg, len(ids)
    shape = (config.n_layers, config.n_heads, length, length)
    patterns = torch.zeros(shape, dtype=torch.uint8, device=torch.device(config.device or "cpu"))

    def read(block: PatternBlock) -> None:
        rounded = (block.pattern[0] * 255).round().clamp(0, 255).to(torch.uint8)
        _, queries, keys = rounded.shape
        patterns[block.layer, :, block.first_query : block.first_query + queries, :keys] = rounded

    read_patterns(model, torch.tensor([list(ids)], dtype=torch.long), read)
    return lower_triangles(patterns.cpu().numpy().reshape(-1, length, length)).tobytes()


def check_prompt(model: HookedModel, ids: Sequence[int]) -> None:
    """Raises InputError for tokens that the model has not got, or more than its context holds."""
    config = model.cfg
    if not ids or len(ids) > config.n_ctx or max(ids) >= config.d_vocab or min(ids) < 0:
        raise InputError(f"the prompt does not fit this model: {config.n_ctx} tokens of {config.d_vocab} kinds do")


def lower_triangles(patterns: UInt8[np.ndarray, "head query key"]) -> UInt8[np.ndarray, "head entry"]:
    """The entries that a causal mask leaves, row by row: one of query 0, two of query 1, …"""
    rows, columns = np.tril_indices(patterns.shape[-1])
    return np.ascontiguousarray(patterns[:, rows, columns])
