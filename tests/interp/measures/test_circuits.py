"""Weights-only scores: against full-size products, on hand-built copiers, and with grouped heads."""

import pytest
import torch
from handmade import induction_model, llama, needs_hooked, saved

from copyscope.interp.measures.circuits import (
    MATCH_RANK,
    composition_table,
    copying_score,
    eigenvalue_positivity,
    head_weights,
    k_composition,
    model_copying_score,
    model_eigenvalue_positivity,
    qk_ov_diagonal,
    qk_ov_subspace,
)
from copyscope.interp.measures.heads import score_heads
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.prompts.generate import repeated_random_tokens


def random_weights(heads=3, d_vocab=40, d_model=12, d_head=5):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return draw(d_vocab, d_model), draw(heads, d_model, d_head), draw(heads, d_head, d_model), draw(d_model, d_vocab)


def test_eigenvalue_positivity_against_the_full_product():
    W_E, W_V, W_O, W_U = random_weights()
    for head, value in enumerate(eigenvalue_positivity(W_E, W_V, W_O, W_U)):
        full = torch.linalg.eigvals((W_E @ W_V[head] @ W_O[head] @ W_U).double())
        wanted = full.real.sum() / full.abs().sum()
        assert value.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_copier_negative_copier_rotation_and_nothing():
    W_E = torch.linalg.qr(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)))[0]
    identity, turn = torch.eye(6), torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * 3)
    W_O = torch.stack([identity, -identity, turn, 0 * identity])
    W_V = identity.expand(4, 6, 6)
    assert eigenvalue_positivity(W_E, W_V, W_O, W_E.T).tolist() == pytest.approx([1, -1, 0, 0], abs=1e-5)


@needs_hooked
def test_folding_the_norms_by_hand_and_by_the_model(tmp_path):
    path = saved(llama(), tmp_path)
    plain, folded = load_hooked(path), load_hooked(path, fold_norms=True)
    raw = model_eigenvalue_positivity(head_weights(plain), folded=False)
    by_hand = model_eigenvalue_positivity(head_weights(plain), folded=True)
    assert torch.allclose(by_hand, model_eigenvalue_positivity(head_weights(folded), folded=False), atol=1e-5)
    assert (raw - by_hand).abs().max() > 1e-3


def expanded(grouped):
    """The same model with every key-value head spelled out for each query head that uses it."""
    whole = llama(num_key_value_heads=4)
    state = grouped.state_dict()
    for name in list(state):
        if "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(2, 8, -1).repeat_interleave(2, dim=0).reshape(32, -1)
    whole.load_state_dict(state)
    return whole


def test_grouped_heads_equal_an_expanded_model(tmp_path):
    grouped = llama(num_key_value_heads=2)
    one = load_hooked(saved(grouped, tmp_path / "grouped"))
    two = load_hooked(saved(expanded(grouped), tmp_path / "expanded"))
    ours, theirs = vars(head_weights(one)), vars(head_weights(two))
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[name]), name
    left, right = (score_heads(m, n_prompts=2).drop("value") for m in (one, two))
    assert left.equals(right)
    values = [score_heads(m, n_prompts=2)["value"].to_torch() for m in (one, two)]
    assert torch.allclose(values[0], values[1], atol=1e-5)
    prompts = repeated_random_tokens(range(5, 80), 25, 3, repeats=1)
    assert torch.allclose(model_copying_score(one, prompts), model_copying_score(two, prompts), atol=1e-5)
    assert torch.allclose(
        composition_table(one)["value"].to_torch(), composition_table(two)["value"].to_torch(), atol=1e-6
    )


def test_k_composition_against_the_full_matrices():
    generator = torch.Generator().manual_seed(0)
    W_V, W_Q, W_K = (torch.randn(n, 10, 4, generator=generator) for n in (2, 3, 3))
    W_O = torch.randn(2, 4, 10, generator=generator)
    got = k_composition(W_V, W_O, W_Q, W_K)
    for s in range(2):
        for r in range(3):
            read, write = W_Q[r] @ W_K[r].T, W_V[s] @ W_O[s]
            wanted = (read @ write.T).norm() / (read.norm() * write.norm())
            assert got[s, r].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_k_composition_finds_the_pair():
    model = induction_model()
    table = composition_table(model)
    best = table.sort("value", descending=True).row(0)
    assert best[:4] == (0, 0, 1, 0)
    assert best[4] == pytest.approx(1 / 8, rel=1e-4)  # two projections on the same 64 dimensions
    assert table["value"].sort()[:-1].to_list() == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("copies", [1, -1])
def test_copying_score_of_copier_and_negative_copier(copies):
    model = induction_model(d_vocab=60, copies=copies)
    prompts = repeated_random_tokens(range(1, 60), 25, 4, bos_id=0, repeats=1)
    score = model_copying_score(model, prompts, has_bos=True)
    assert score[1, 0].item() == pytest.approx(copies, abs=1e-3)
    assert score[1, 1].item() == -1  # writes nothing
    positivity = model_eigenvalue_positivity(head_weights(model))
    assert positivity[1, 0].item() == pytest.approx(copies, abs=1e-3)


def test_copying_score_against_a_slow_version():
    generator = torch.Generator().manual_seed(0)
    W_O, W_U = torch.randn(2, 3, 7, generator=generator), torch.randn(7, 30, generator=generator)
    values = torch.randn(2, 5, 2, 3, generator=generator)
    pattern = torch.rand(2, 2, 5, 5, generator=generator).tril()
    tokens = torch.stack([torch.randperm(30, generator=generator)[:5] for _ in range(2)])
    got = copying_score(pattern, values, W_O, W_U, tokens)
    for h in range(2):
        own = total = 0.0
        for b in range(2):
            for q in range(5):
                for k in range(q + 1):
                    logits = pattern[b, h, q, k] * (values[b, k, h] @ W_O[h] @ W_U)
                    raised = (logits - logits.mean()).relu()
                    own += raised[tokens[b, k]].item()
                    total += raised[tokens[b]].sum().item()
        assert got[h].item() == pytest.approx(2 * own / total - 1, abs=1e-4)


def test_qk_ov_matches_against_whole_matrices():
    d_model, heads = 20, 3
    generator = torch.Generator().manual_seed(1)
    W_V, W_Q, W_K = (torch.randn(heads, d_model, 12, generator=generator) for _ in range(3))
    W_O = torch.randn(heads, 12, d_model, generator=generator)
    diagonal, subspace = (of(W_V, W_O, W_Q, W_K) for of in (qk_ov_diagonal, qk_ov_subspace))
    for s in range(heads):
        for r in range(heads):
            OV, QK = W_V[s] @ W_O[s], W_Q[r] @ W_K[r].T
            M = QK @ OV.T
            wanted = (M.diagonal().mean() - M.mean()) / M.std(correction=0)
            assert diagonal[s, r].item() == pytest.approx(wanted.item(), rel=1e-4)
            written, read = (torch.linalg.svd(W).Vh[:MATCH_RANK] for W in (OV, QK))
            assert subspace[s, r].item() == pytest.approx(torch.linalg.svdvals(written @ read.T)[0].item(), rel=1e-4)


def test_qk_ov_of_a_model_equals_that_of_its_heads(tmp_path):
    model = load_hooked(saved(llama(num_hidden_layers=3), tmp_path))
    w = head_weights(model).folded()
    for name, of in (("qk_ov_diagonal", qk_ov_diagonal), ("qk_ov_subspace", qk_ov_subspace)):
        table = composition_table(model, measure=name)
        assert table.height == 3 * 4 * 4
        for source, later in ((0, 1), (0, 2), (1, 2)):
            got = table.filter(source_layer=source, layer=later)["value"].to_torch().view(4, 4)
            wanted = of(w.W_V[source], w.W_O[source], w.W_Q[later], w.W_K[later])
            assert torch.allclose(got.float(), wanted, atol=1e-5)


def test_qk_ov_finds_the_reader_of_what_was_written():
    """Head 0 passes coordinates on and looks for the same ones; reader 1 looks in coordinates that nobody writes."""
    eye, zero = torch.eye(64), torch.zeros(64, 64)
    passes, nothing = torch.cat([torch.eye(4, 64).T, zero[:, :4]], dim=1), zero[:, :8]
    W_V = torch.stack([passes, nothing])
    elsewhere = torch.cat([eye[8:12].T, zero[:, :4]], dim=1)
    W_Q, W_K = torch.stack([passes, elsewhere]), torch.stack([passes, elsewhere])
    diagonal = qk_ov_diagonal(W_V, W_V.mT, W_Q, W_K)
    assert diagonal[0, 0] > 1
    assert diagonal[0, 1] == diagonal[1, 0] == 0
    subspace = qk_ov_subspace(W_V, W_V.mT, W_Q, W_K)
    assert subspace.flatten().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
