"""What heads write: over how many directions, and how long the first position's value is."""

import pytest
import torch
from handmade import induction_model, llama, saved

from copyscope.interp.measures.circuits import circuit_ranks, head_weights, model_circuit_ranks
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.measures.pattern_scores import first_token_norm_ratio, participation_ratio
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.varied import varied_repeats


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_participation_ratio_counts_directions() -> None:
    flat = drawn(50, 1) * torch.ones(7) + 3
    assert participation_ratio(flat).item() == pytest.approx(1)
    assert participation_ratio(torch.cat([torch.eye(6), -torch.eye(6)])).item() == pytest.approx(6)
    assert participation_ratio(torch.ones(5, 3)).item() == 0


def test_first_token_norm_ratio_of_a_known_length() -> None:
    values = torch.ones(2, 1, 5, 3)
    values[:, :, 0] = torch.tensor([[0.1], [4.0]])[..., None]
    assert first_token_norm_ratio(values).flatten().tolist() == pytest.approx([0.1, 4.0])
    assert first_token_norm_ratio(torch.zeros(1, 1, 5, 3)).item() == 0


def test_both_equal_what_a_cache_gives(tmp_path) -> None:
    model = load_hooked(saved(llama(num_key_value_heads=2), tmp_path))
    vocab, n = torch.arange(5, 85), 5
    names = ["participation_ratio", "first_token_norm_ratio", "first_token_norm_ratio_se"]
    table = score_heads(model, names, seed=4, vocab=vocab, n_prompts=n)
    _, cache = model.run_with_cache(varied_repeats(vocab, 100, n, 4, None, 2, n_ctx=128))
    for layer in range(2):
        for head in range(4):
            got = dict(table.filter(layer=layer, head=head).select("measure", "value").rows())
            out = cache["z", layer][:, 1:, head].flatten(0, 1) @ model.W_O[layer, head]
            assert got["participation_ratio"] == pytest.approx(participation_ratio(out).item(), rel=1e-4)
            lengths = cache["v", layer][:, :, head // 2].norm(dim=-1)
            ratios = lengths[:, 0] / lengths[:, 1:].mean(dim=1)
            assert got["first_token_norm_ratio"] == pytest.approx(ratios.mean().item(), rel=1e-5)
            assert got["first_token_norm_ratio_se"] == pytest.approx(ratios.std().item() / n**0.5, rel=1e-3)


def test_ranks_of_circuits_against_whole_matrices() -> None:
    A, B = drawn(3, 12, 5), drawn(3, 5, 12).flip(0)
    for i, (stable, effective) in enumerate(zip(*circuit_ranks(A, B), strict=True)):
        sizes = torch.linalg.svdvals((A[i] @ B[i]).double())[:5]
        shares = sizes / sizes.sum()
        assert stable.item() == pytest.approx((sizes.square().sum() / sizes[0] ** 2).item(), rel=1e-6)
        assert effective.item() == pytest.approx((-shares * shares.log()).sum().exp().item(), rel=1e-6)
    one = torch.zeros(5, 12)
    one[0, 3] = 2.0
    known = torch.stack([torch.eye(5, 12), one, 0 * one])
    stable, effective = circuit_ranks(torch.eye(12, 5).expand(3, 12, 5), known)
    assert stable.tolist() == pytest.approx([5, 1, 0])
    assert effective.tolist() == pytest.approx([5, 1, 0])


def test_ranks_of_a_hand_built_circuit() -> None:
    ranks = model_circuit_ranks(head_weights(induction_model()))
    assert ranks["ov_stable_rank"][1, 0].item() == pytest.approx(64)  # it copies the whole code of 64 dimensions
    assert ranks["qk_effective_rank"][1, 0].item() == pytest.approx(64)
    assert ranks["qk_stable_rank"][0, 0].item() == pytest.approx(127)  # every position but the first asks
    assert ranks["ov_effective_rank"][0, 1].item() == 0
