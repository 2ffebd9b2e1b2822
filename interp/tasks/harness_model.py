"""A model as lm-evaluation-harness asks it: log-likelihoods of continuations, and greedy text."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from copyscope.interp.forward.residual import batches, final_residual, logits_of
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel

MAX_GENERATED = 256
"""Tokens, where a task does not say."""


def harness_model(model: HookedModel, tokenizer: Any, bos_id: int | None) -> Any:
    """The model as an `lm_eval.api.model.TemplateLM`; needs lm-evaluation-harness.

    Every context opens with `bos_id`, where the model has one. Of a context that is too long the end is kept.
    """
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]

    class Asked(TemplateLM):  # type: ignore[misc]
        """Made here, since what it is derived from may not be installed."""

        @property
        def eot_token_id(self) -> int:
            return int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else bos_id or 0)

        @property
        def prefix_token_id(self) -> int:
            return self.eot_token_id if bos_id is None else bos_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=False))

        def _loglikelihood_tokens(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
            return continuations(model, [(before, after) for _, before, after in requests], bos_id)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            out = []
            for (text,) in (request.args for request in requests):
                tokens = self.tok_encode(text)
                windows = get_rolling_token_windows(tokens, self.prefix_token_id, model.cfg.n_ctx - 1, 1)
                pairs = [make_disjoint_window(window) for window in windows]
                out.append(sum(value for value, _ in continuations(model, pairs, None)))
            return out

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return [greedy_text(model, tokenizer, text, how, bos_id) for text, how in (one.args for one in requests)]

    return Asked()


@torch.no_grad()
def continuations(
    model: HookedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], bos_id: int | None
) -> list[tuple[float, bool]]:
    """Log-probability of each continuation after its context, in nats, and whether every token of it is the likeliest.
    `bos_id` opens contexts that do not begin with it; of prompts longer than n_ctx the end is kept."""
    by_length: dict[int, list[int]] = defaultdict(list)
    whole = []
    for i, (before, after) in enumerate(pairs):
        opened = [*before] if bos_id is None or [*before[:1]] == [bos_id] else [bos_id, *before]
        whole.append([*opened, *after][-(model.cfg.n_ctx + 1) :])
        by_length[len(whole[i])].append(i)
    out = [(0.0, True)] * len(pairs)
    for length, members in by_length.items():  # prompts of one length need no padding
        if length < 2:
            continue
        tokens = torch.tensor([whole[i] for i in members])
        for rows in batches(model, len(members), length - 1):
            residual = final_residual(model, tokens[rows, :-1])
            for i, row, answer in zip(members[rows], residual, tokens[rows], strict=True):
                count = min(len(pairs[i][1]), length - 1)
                if count:
                    logprobs = logits_of(model, row[-count:]).float().log_softmax(1)
                    right = answer[-count:].to(logprobs.device)
                    total = logprobs.gather(1, right[:, None]).sum().item()
                    out[i] = total, bool((logprobs.argmax(1) == right).all())
    return out


@torch.no_grad()
def greedy_text(model: HookedModel, tokenizer: Any, text: str, how: dict[str, Any], bos_id: int | None) -> str:
    """What the model writes after `text`, each time its likeliest token, up to one of `how["until"]`."""
    stops = how.get("until") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    most = min(int(how.get("max_gen_toks", MAX_GENERATED)), model.cfg.n_ctx - 1)
    opening = [] if bos_id is None else [bos_id]
    context = tokenizer.encode(text, add_special_tokens=False)[-(model.cfg.n_ctx - most - len(opening)) :]
    written: list[int] = []
    for token in _likeliest(model, [*opening, *context], most):
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
        so_far = tokenizer.decode(written)
        if any(stop in so_far for stop in stops if stop):
            break
    found = tokenizer.decode(written)
    for stop in stops:
        found = found.split(stop)[0] if stop else found
    return found


def _likeliest(model: HookedModel, tokens: list[int], most: int) -> Iterator[int]:
    for _ in range(most):
        residual = final_residual(model, torch.tensor([tokens], device=device_of(model)))[:, -1]
        tokens = [*tokens, int(logits_of(model, residual)[0].argmax())]
        yield tokens[-1]
