"""Interventions while training: what they do to the forward pass, when they act, and that plain runs are untouched."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import metrics, small_config, train_small, weights, write_corpus
from transformers import LlamaForCausalLM

from copyscope.interp.measures.behavior import induction_predictable
from copyscope.training.config import InterventionConfig, RunConfig
from copyscope.training.errors import InputError
from copyscope.training.model.interventions import Intervention, active, predictable
from copyscope.training.model.llama import build_model
from copyscope.training.model.loss import NextTokenLoss

BATCH = torch.randint(61, (3, 25), generator=torch.Generator().manual_seed(1))


def small(kv_heads: int = 4) -> LlamaForCausalLM:
    sizes = {
        "model.n_layers": 2,
        "model.d_model": 32,
        "model.d_mlp": 48,
        "model.n_key_value_heads": kv_heads,
        "model.init_std": 0.3,
    }
    return build_model(RunConfig().with_values(sizes), 61)


def loss_of(model: LlamaForCausalLM, intervention: Intervention | None) -> torch.Tensor:
    loss = NextTokenLoss(model, 64, torch.float32)
    loss.intervention = intervention
    return loss(BATCH)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_silenced_head_is_one_without_output_weights(kv_heads: int) -> None:
    model = small(kv_heads)
    got = loss_of(model, Intervention({1: [2, 0]}, "zero", False))
    got.backward()
    with torch.no_grad():
        attention = model.get_submodule("model.layers.1.self_attn")
        for head in (2, 0):
            attention.get_parameter("o_proj.weight")[:, head * 8 : (head + 1) * 8] = 0.0
    assert got.item() == pytest.approx(loss_of(model, None).item(), abs=1e-5)
    gradient = attention.get_parameter("q_proj.weight").grad
    assert gradient is not None
    if kv_heads == 4:
        assert gradient[:8].abs().max() == 0
        assert gradient[8:16].abs().max() > 0


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("mode", ["previous_token", "uniform"])
def test_a_clamped_head_attends_as_told(kv_heads: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(2)
    mixed, normed = torch.randn(2, 9, 4, 8, generator=generator), torch.randn(2, 9, 32, generator=generator)
    w_v = torch.randn(kv_heads * 8, 32, generator=generator)
    pattern = torch.eye(9).roll(-1, dims=1).tril(-1)
    pattern[0, 0] = 1.0
    if mode == "uniform":
        pattern = torch.ones(9, 9).tril() / torch.arange(1, 10)[:, None]
    got = Intervention({0: [1, 3]}, mode, False).apply(0, mixed, normed, w_v)
    for head in range(4):
        value = normed @ w_v[(head * kv_heads // 4) * 8 : (head * kv_heads // 4 + 1) * 8].T
        wanted = pattern @ value if head in (1, 3) else mixed[:, :, head]
        torch.testing.assert_close(got[:, :, head], wanted, rtol=1e-4, atol=1e-4)
    assert Intervention({0: [1]}, mode, False).apply(1, mixed, normed, w_v) is mixed


def test_left_out_tokens_count_as_zero() -> None:
    model = small()
    sequences = torch.randint(5, (3, 25), generator=torch.Generator().manual_seed(3))
    logits = model(input_ids=sequences[:, :-1], use_cache=False).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten(), reduction="none")
    kept = ~predictable(sequences).flatten()
    assert 0 < kept.sum() < len(kept)
    wanted = torch.autograd.grad(each[kept].sum() / len(kept), list(model.parameters()))
    loss = NextTokenLoss(model, 64, torch.float32)
    loss.intervention = Intervention({}, "zero", True)
    got = loss(sequences)
    got.backward()
    assert got.item() == pytest.approx((each[kept].sum() / len(kept)).item(), abs=1e-5)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    loss.eval()
    assert loss(sequences).item() == pytest.approx(each.mean().item(), abs=1e-5)


@given(st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=3))
def test_predictable_tokens_are_those_that_induction_could_copy(rows: list[list[int]]) -> None:
    sequences = torch.tensor(rows)
    got = predictable(sequences)
    for r, row in enumerate(rows):
        seen: set[tuple[int, int]] = set()
        for p, pair in enumerate(pairwise(row)):
            assert bool(got[r, p]) == (pair in seen)
            seen.add(pair)
    assert torch.equal(got, induction_predictable(sequences))


def test_it_acts_between_its_steps_only() -> None:
    config = InterventionConfig(heads=((1, 0),), from_step=3, until_step=5)
    assert [active(config, step) is not None for step in range(7)] == [False] * 3 + [True] * 2 + [False] * 2
    assert active(InterventionConfig(), 0) is None


def test_runs_part_where_the_intervention_begins(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "text.jsonl")
    plain = train_small(tmp_path / "plain", small_config(corpus))
    values = {"intervention.heads": [[0, 1]], "intervention.mode": "previous_token", "intervention.from_step": 8}
    clamped = train_small(tmp_path / "clamped", small_config(corpus, values))
    assert weights(plain, 8) == weights(clamped, 8)
    assert weights(plain, 12) != weights(clamped, 12)
    skipping = train_small(tmp_path / "skipping", small_config(corpus, {"intervention.skip_predictable": True}))
    assert weights(plain, 4) != weights(skipping, 4)
    lines = [line for line in metrics(skipping) if "loss" in line]
    assert all(0 <= line["predictable_share"] < 1 for line in lines)
    assert any(line["predictable_share"] for line in lines)
    assert all("predictable_share" not in line for line in metrics(plain))
    first = next(line for line in metrics(plain) if "loss" in line)
    # At the first updates every token is as hard as any other, so the mean over the kept ones is log(vocabulary).
    assert lines[0]["loss"] == pytest.approx(first["loss"], abs=0.1)


def test_bad_configurations_are_named() -> None:
    for values, words in (
        ({"intervention.heads": [[9, 0]]}, r"\[9, 0\] does not exist in 4 layers × 4 heads"),
        ({"intervention.heads": [[0]]}, "intervention.heads"),
        ({"intervention.mode": "clamp"}, "intervention.mode"),
        ({"intervention.from_step": 5, "intervention.until_step": 5}, "must be after from_step"),
    ):
        with pytest.raises(InputError, match=words):
            RunConfig().with_values(values)


def test_plain_runs_keep_their_id() -> None:
    assert RunConfig().with_values({"intervention.heads": []}).run_id == RunConfig().run_id
    assert RunConfig().with_values({"intervention.heads": [[0, 0]]}).run_id != RunConfig().run_id
