"""The copying test with every context once: the queries that ask about it stand side by side behind it."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from copyscope.interp.prompts.generate import PREFIX, SUFFIX, CopyingTest


@dataclass(frozen=True, kw_only=True)
class PackedTest:
    """A row is a context, then its queries: prefix and suffix without the last token, which nothing is predicted
    from."""

    tokens: Int[Tensor, "context pos"]
    length: int
    """Of the context."""
    block: int
    """Of a query."""
    sample: Int[Tensor, "context query"]
    """Which sample each query is. A row with fewer of them is filled up with its first one."""
    real: Bool[Tensor, "context query"]
    """False where a query only fills up the row."""
    suffix: Int[Tensor, "context query 6"]
    read: Int[Tensor, " read"]
    """The positions that suffix tokens are predicted from, query by query."""


def pack(test: CopyingTest) -> PackedTest:
    """Packs the test; on the CPU."""
    length, context = test.tokens.shape[1] - PREFIX, test.context.cpu()
    counts = torch.bincount(context)
    number = torch.arange(int(counts.max()))
    real = number < counts[:, None]  # (context, query)
    sample = counts.cumsum(0)[:, None] - counts[:, None] + number * real
    queries = torch.cat([test.tokens[:, length:], test.suffix[:, :-1]], dim=1).cpu()[sample]
    ends = length + queries.shape[2] * (number + 1)
    return PackedTest(
        tokens=torch.cat([test.tokens[sample[:, 0].to(test.tokens.device), :length].cpu(), queries.flatten(1)], dim=1),
        length=length,
        block=queries.shape[2],
        sample=sample,
        real=real,
        suffix=test.suffix.cpu()[sample],
        read=(ends[:, None] + torch.arange(-SUFFIX, 0)).flatten(),
    )
