"""Tasks without heads: a known induction head, shared contexts against plain ones, sets to compare with."""

from typing import Any

import pytest
import torch
from handmade import induction_model
from untrained import untrained

from copyscope.interp.ablation.task_effects import control_sets, without_heads
from copyscope.interp.tasks.questions import Source
from copyscope.interp.tasks.registry import draw_tasks
from copyscope.training.errors import InputError


def groups(names: list[str], n_prompts: int = 16) -> list[Any]:
    drawn = draw_tasks(Source(vocab=torch.arange(1, 400), n_ctx=128, bos_id=0, n_prompts=n_prompts), names)
    return [group for some in drawn.values() for group in some]


@pytest.mark.parametrize("method", ["mean", "zero"])
def test_recall_needs_the_induction_head_alone(method: str) -> None:
    found = without_heads(induction_model(), groups(["recall", "labels"]), [[(1, 0)], [(1, 1)]], method)
    variants = [result.variant for result in found]
    assert variants == ["pairs=4", "pairs=8", "pairs=16", "shots=1", "shots=4"]
    for result in found:
        assert result.clean.mean() == 1
        assert result.ablated[0].mean() < 0.6
        assert result.ablated[1].mean() == 1


def test_shared_contexts_give_what_plain_prompts_give() -> None:
    """Of a model with hooks on it each question is a prompt of its own."""
    model, asked = untrained(2, 0.3, n_layers=2, n_ctx=128), groups(["prefix", "fuzzy"], 8)
    packed = without_heads(model, asked, [[(0, 1), (1, 2)], [(1, 0)]])
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        plain = without_heads(model, asked, [[(0, 1), (1, 2)], [(1, 0)]])
    for one, other in zip(packed, plain, strict=True):
        assert torch.equal(one.clean, other.clean)
        assert torch.allclose(one.ablated, other.ablated)


def test_sets_to_compare_with() -> None:
    entropy = {(layer, head): layer + head / 10 for layer in range(3) for head in range(4)}
    chosen = [(2, 0), (2, 1), (2, 3)]
    sets = control_sets(chosen, entropy)
    assert all(len(heads) == 3 and not set(heads) & set(chosen) for some in sets.values() for heads in some)
    assert all((2, 2) in heads and {layer for layer, _ in heads} == {1, 2} for heads in sets["layer"])
    assert sets["entropy"] == [[(1, 2), (1, 3), (2, 2)]]
    assert len(sets["random"]) == len({tuple(heads) for heads in sets["random"]}) == 8
    with pytest.raises(InputError, match="none to compare"):
        control_sets(list(entropy), entropy)
