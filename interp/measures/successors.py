"""Heads that write the next of an ordered list: Monday → Tuesday, 3 → 4."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from copyscope.interp.forward.layers import normed
from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.measures.head_score import HeadScore
from copyscope.interp.models.devices import device_of
from copyscope.interp.models.lens import HookedModel, HookedTransformer
from copyscope.interp.models.tokenizer import single_tokens
from copyscope.training.errors import InputError

LISTS = (
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "one two three four five six seven eight nine ten eleven twelve",
    "first second third fourth fifth sixth seventh eighth ninth tenth",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
)
MIN_LIST = 4
"""Entries of a list that have to be single tokens, one after the other."""


def successor_lists(encode: Callable[[str], list[int]]) -> list[Int[Tensor, " _"]]:
    """The tokens of each list's longest stretch that the tokenizer has as single tokens. Raises InputError where no
    stretch has four."""
    lists = []
    for text in LISTS:
        tokens = single_tokens(encode, text.split())
        best: list[int] = []
        stretch: list[int] = []
        for word in text.split():
            stretch = [*stretch, tokens[word]] if word in tokens else []
            best = max(best, stretch, key=len)
        if len(best) >= MIN_LIST:
            lists.append(torch.tensor(best))
    if not lists:
        raise InputError(f"the tokenizer has no {MIN_LIST} entries of an ordered list as single tokens")
    return lists


@torch.no_grad()
def successor_score(model: HookedModel, lists: list[Int[Tensor, " _"]], seed: int = 0) -> HeadScore:
    """Share of entries of ordered lists after which the head, attending to them, raises the next entry above all others
    of the list (Gould et al. 2023, arXiv 2312.09230): the largest of W_U W_O W_V x over the list.

    x is the token's embedding, for layers after the first with what the first MLP adds (of a `TransformerBridge`
    without). In [0, 1]; over entries, which are not quite independent. The null asks for another entry, drawn with
    `seed`, that is not the next. By weights alone: it does not say that the head attends to such tokens.

    `lists`: of `successor_lists`, or any of 3 entries or more.
    """
    w, generator = head_weights(model).folded(), torch.Generator().manual_seed(seed)
    n_layers, n_heads = w.W_V.shape[:2]
    parts = []
    for tokens in lists:
        ids = tokens.to(device_of(model))
        first, later = w.W_E[ids[:-1]].float(), _after_first_mlp(model, w.W_E[ids[:-1]]).float()
        best = []
        for layer in range(n_layers):
            x = first if layer == 0 else later
            written = torch.einsum("nm,hmd,hde->nhe", x, w.W_V[layer].float(), w.W_O[layer].float())
            logits = written @ w.W_U[:, ids].float()  # (entry, head, entry of the list)
            nothing = written.abs().amax(dim=-1) == 0
            best.append(logits.argmax(dim=-1).masked_fill(nothing, -1))
        following = torch.arange(1, len(tokens))
        other = (following + torch.randint(1, len(tokens), following.shape, generator=generator)) % len(tokens)
        wanted = torch.stack([following, other]).to(ids.device)  # (which, entry)
        parts.append(torch.stack(best, dim=1)[None] == wanted[:, :, None, None])
    value, null = torch.cat(parts, dim=1).double().cpu().view(2, -1, n_layers, n_heads)
    return HeadScore.of(value, null)


def _after_first_mlp(model: HookedModel, x: Float[Tensor, "entry d_model"]) -> Float[Tensor, "entry d_model"]:
    if not isinstance(model, HookedTransformer) or model.cfg.attn_only:
        return x
    block = model.blocks[0]
    return x + block.mlp(normed(block.ln2, x[None]))[0]
