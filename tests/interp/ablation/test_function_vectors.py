"""Function vectors: the head that holds what a task is, exact and by one backward pass, packed and prompt by prompt."""

import pytest
import torch
from handmade import induction_model, llama, saved

from copyscope.interp.ablation.function_vectors import function_vector, labels_prompts
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens
from copyscope.interp.tasks.questions import Questions, Source, TaskPrompts
from copyscope.training.errors import InputError

RIGHT = 7


def told(labels: torch.Tensor, tokens: torch.Tensor) -> TaskPrompts:
    """Tokens with their labels, then each of two tokens; the answer is always the same."""
    n = len(tokens)
    query, answer = tokens[:, :2, None], torch.full((n, 2), RIGHT)
    questions = Questions(task="one label", variant="", query=query, answer=answer, chance=0.0)
    context = torch.stack([tokens, labels], dim=2).flatten(1)
    return TaskPrompts(torch.cat([torch.zeros(n, 1, dtype=torch.long), context], dim=1), True, (questions,), answer)


def test_the_head_that_holds_the_only_label() -> None:
    """Where every example has one label, the induction head's mean output is that label's code."""
    model = induction_model(n_ctx=64, d_vocab=60)  # codes without overlap
    drawn = repeated_random_tokens(range(10, 60), 10, 12, 0, repeats=1)
    tokens, others = drawn[:, :5], drawn[:, 5:]
    clean, shuffled = told(torch.full_like(tokens, RIGHT), tokens), told(others, tokens)
    result = function_vector(model, clean, shuffled)
    # From e^20 on a wrong label against 1 on the right one, to e^20 on the right one.
    assert result.exact.value[1, 0].item() == pytest.approx(20, abs=0.1)
    assert result.exact.p[1, 0] < 1e-6
    assert result.exact.null[1, 0] < 18
    rest = torch.tensor([[True, True], [False, True]])
    assert result.exact.value[rest].abs().max() < 1e-4
    assert result.estimate[1, 0].item() == pytest.approx(40, abs=1)  # the gradient does not see that p ends at 1
    assert result.estimate[rest].abs().max() < 1e-4
    assert result.correlation == pytest.approx(1, abs=1e-3)


def test_packed_contexts_equal_hooked_passes_and_the_gradient_small_changes(tmp_path) -> None:
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    source = Source(vocab=torch.arange(5, 85), n_ctx=128, bos_id=1, n_prompts=24)
    clean, shuffled = labels_prompts(source)
    assert clean.context.shape[1] == 1 + 2 * 8 * 4  # ten examples of each token have no room
    packed = function_vector(model, clean, shuffled)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: x)]):
        whole = function_vector(model, clean, shuffled)
    for one, other in zip(packed.exact, whole.exact, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(packed.estimate, whole.estimate, atol=1e-5)
    assert packed.correlation > 0.95
    assert packed.exact.value.abs().max() > 1e-3


def test_where_no_example_fits() -> None:
    with pytest.raises(InputError, match="n_ctx"):
        labels_prompts(Source(vocab=torch.arange(5, 85), n_ctx=16, bos_id=1))
