"""Everything that is measured on a GPU: the numbers of the CPU, no tensor left on the wrong device, few copies back.

Without a GPU a pretended one says on which device a tensor would be (`pretend_gpu`); tests marked `gpu` take a real
one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import polars as pl
import pytest
import torch
from handmade import induction_model, llama, needs_hooked, saved
from pretend_gpu import OnGpu, PretendGpu, to_pretended_gpu
from untrained import untrained

from copyscope.interp.ablation.attribution import attribute_heads
from copyscope.interp.ablation.effects import sweep_heads, sweep_layers, sweep_pairs
from copyscope.interp.ablation.entity_copying import causal_copying, token_copying_prompts
from copyscope.interp.ablation.function_vectors import function_vector, labels_prompts
from copyscope.interp.ablation.hooks import METHODS, ablate_heads
from copyscope.interp.ablation.path_patching import patch_paths
from copyscope.interp.ablation.smallest_sets import sets_table, smallest_set
from copyscope.interp.forward.memory import GPU_BYTES, limit_memory, tokens_at_once, within_memory
from copyscope.interp.forward.residual import logits_of
from copyscope.interp.measures.behavior import (
    copying_accuracy,
    copying_loss,
    icl_score,
    natural_losses,
    shuffled_copying_loss,
)
from copyscope.interp.measures.circuits import composition_table
from copyscope.interp.measures.heads import MEASURES, ON_REQUEST, score_heads
from copyscope.interp.measures.logit_lens import copied_token_layer
from copyscope.interp.measures.precision import BF16_ERROR
from copyscope.interp.measures.retrieval import retrieval_score
from copyscope.interp.models.devices import Compute, check_room, dtype_named
from copyscope.interp.models.hooked import load_hooked, load_weights_into, logit_difference, prove_conversion
from copyscope.interp.prompts.generate import copying_test, repeated_random_tokens
from copyscope.interp.tasks.questions import Source
from copyscope.interp.tasks.registry import draw_tasks, run_tasks
from copyscope.training.devices import device_named
from copyscope.training.errors import InputError

VOCAB = torch.arange(1, 400)
TEST = copying_test(VOCAB, 256, 20, 0, 0)
SHORT = repeated_random_tokens(VOCAB, 20, 5, 0, 0, 2)
LONG = repeated_random_tokens(VOCAB, 127, 3, 1, 0, 2)
TEXT = torch.randint(1, 400, (4, 150), generator=torch.Generator().manual_seed(1))
PROMPTS_OF_TASKS = draw_tasks(Source(vocab=VOCAB, n_ctx=256, bos_id=0, n_prompts=8), ["prefix", "markov"])


LABELS = Source(vocab=VOCAB, n_ctx=64, bos_id=0, n_prompts=8)


def hooked_accuracy(model: Any) -> Any:
    with ablate_heads(model, "L1H1", method="mean", reference=LONG):
        return copying_accuracy(model, TEST)


def resampled(model: Any) -> Any:
    with torch.no_grad(), ablate_heads(model, "L1H1", method="resample", reference=LONG):
        return model(SHORT.to(model.cfg.device))


def set_of_one(model: Any) -> pl.DataFrame:
    test = copying_test(VOCAB, 64, 6, 0, 0)
    return sets_table([smallest_set(model, test, "remove", "heads", n_control=2)], "mean")


MEASURED: dict[str, Callable[[Any], Any]] = {
    "scores": lambda m: score_heads(m, vocab=VOCAB, bos_id=0, n_prompts=3),
    "scores on request": lambda m: score_heads(m, ON_REQUEST, vocab=VOCAB, bos_id=0, n_prompts=3),
    "function vector": lambda m: function_vector(m, *labels_prompts(LABELS)).exact.value,
    "token copying": lambda m: causal_copying(m, token_copying_prompts(LABELS)).value,
    "copied token's layer": lambda m: copied_token_layer(m, SHORT).share,
    "retrieval": lambda m: retrieval_score(m, TEST)[1].value,
    "copying accuracy": lambda m: copying_accuracy(m, TEST).by_place,
    "copying loss": lambda m: copying_loss(m, SHORT),
    "shuffled copying loss": lambda m: shuffled_copying_loss(m, SHORT),
    "natural losses": lambda m: natural_losses(m, TEXT),
    "ICL score": lambda m: icl_score(m, TEXT).score,
    "composition": composition_table,
    "subspaces": lambda m: composition_table(m, measure="qk_ov_subspace"),
    "layers": lambda m: sweep_layers(m, TEST, METHODS, repeated=SHORT, windows=TEXT),
    "heads": lambda m: sweep_heads(m, TEST, METHODS, repeated=SHORT, heads="L1"),
    "pairs": lambda m: sweep_pairs(m, TEST, "L1H1,L2H0", repeated=SHORT),
    "paths": lambda m: patch_paths(m, [(0, 1), (1, 0)], [(2, 0), (3, 1)], SHORT, into="keys"),
    "attribution": lambda m: attribute_heads(m, SHORT, METHODS),
    "hooks": lambda m: hooked_accuracy(m).by_place,
    "resampled by hooks": resampled,
    "tasks": lambda m: pl.DataFrame(run_tasks(m, PROMPTS_OF_TASKS)),
}
CPU_WAITS = {"scores": 13, "heads": 30, "layers": 30, "hooks": 8}
"""Copies to the CPU, at most: one or two for each question and method."""


def close(got: Any, wanted: Any, within: float) -> None:
    if isinstance(wanted, pl.DataFrame):
        assert got.drop(pl.selectors.float()).equals(wanted.drop(pl.selectors.float()))
        for column in wanted.select(pl.selectors.float()).columns:
            apart = (got[column] - wanted[column]).abs() / (1 + wanted[column].abs())
            assert (apart.fill_nan(None).max() or 0.0) <= within
            assert got[column].is_nan().sum() == wanted[column].is_nan().sum()
    else:
        got = got.cpu().as_subclass(torch.Tensor) if isinstance(got, torch.Tensor) else torch.tensor(got)
        assert torch.allclose(got, torch.as_tensor(wanted), atol=within, rtol=within, equal_nan=True)


@pytest.fixture(scope="module")
def pair():
    with torch.no_grad():
        return untrained(0), to_pretended_gpu(untrained(0))


@pytest.mark.parametrize("what", MEASURED)
def test_a_gpu_gives_the_numbers_of_the_cpu(pair, what):
    on_cpu, on_gpu = pair
    wanted = MEASURED[what](on_cpu)
    with PretendGpu() as gpu:
        got = MEASURED[what](on_gpu)
        close(got, wanted, 1e-4)
    assert sum(gpu.handed_over.values()) <= CPU_WAITS.get(what, 10), gpu.handed_over


@pytest.mark.gpu
@pytest.mark.parametrize("what", MEASURED)
def test_a_real_gpu_gives_the_numbers_of_the_cpu(what):
    on_cpu, on_gpu = (untrained(0) for _ in range(2))
    on_gpu.to("cuda")
    close(MEASURED[what](on_gpu), MEASURED[what](on_cpu), 2e-4)


@pytest.mark.gpu
@torch.no_grad()
def test_a_bf16_product_in_fp32_is_exact():
    model = untrained(0)
    rows = torch.randn(7, model.cfg.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()
    model.to(torch.bfloat16)
    model.cfg.dtype = torch.bfloat16
    on_cpu = logits_of(model, rows)
    model.to("cuda")
    on_gpu = logits_of(model, rows.cuda())
    assert on_gpu.dtype == torch.float32
    assert (on_gpu.cpu() - on_cpu).abs().max() < 0.03 * on_cpu.abs().max()  # the norm rounds otherwise
    assert torch.unique(on_gpu).numel() > 0.9 * on_gpu.numel()  # in bf16 many would be equal


@pytest.mark.gpu
def test_a_gpu_repeats_itself_bit_for_bit():
    model = untrained(0)
    model.to("cuda")
    first, second = (score_heads(model, vocab=VOCAB, bos_id=0, n_prompts=3) for _ in range(2))
    assert first.equals(second)


@needs_hooked
def test_the_search_for_a_set_runs_on_a_gpu():
    model = induction_model()
    wanted = set_of_one(model)
    with PretendGpu():
        assert set_of_one(to_pretended_gpu(model)).equals(wanted)


def test_copies_do_not_grow_with_layers_or_batches():
    counts = []
    for layers, limit in ((2, None), (4, None), (4, 2**20)):
        with torch.no_grad():
            model = to_pretended_gpu(untrained(0, n_layers=layers))
        with PretendGpu() as gpu:
            limit_memory(model, limit)
            for what in ("scores", "copying accuracy", "natural losses"):
                MEASURED[what](model)
            sweep_heads(model, TEST, repeated=SHORT, heads="L1H0,L1H1")
        counts.append(sum(gpu.handed_over.values()))
    assert len(set(counts)) == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_a_bridge_runs_on_a_gpu(tmp_path, groups):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        "head_dim": 8,
    }
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": groups, "max_position_embeddings": 64}
    config = Gemma2Config(**sizes)
    folder = saved(Gemma2ForCausalLM(config), tmp_path)
    on_cpu, on_gpu = load_hooked(folder), to_pretended_gpu(load_hooked(folder))
    prompts = repeated_random_tokens(range(3, 60), 15, 3)
    for measure in (
        lambda m: score_heads(m, vocab=range(3, 60), n_prompts=2),
        lambda m: copying_loss(m, prompts),
        lambda m: attribute_heads(m, prompts),
    ):
        wanted = measure(on_cpu)
        with PretendGpu():
            close(measure(on_gpu), wanted, 1e-4)


def test_a_pretended_gpu_refuses_what_a_real_one_refuses():
    with PretendGpu() as gpu:
        there = torch.ones(3, 4, device="cuda")
        assert isinstance(there + 1, OnGpu)
        assert there[torch.tensor([0, 2])].device.type == "cuda"
        for mixed in (lambda: there + torch.ones(4), lambda: torch.cat([there, torch.ones(3, 4)])):
            with pytest.raises(RuntimeError, match="on the CPU"):
                mixed()
        with pytest.raises(RuntimeError, match="indexed by one on the GPU"):
            torch.ones(5)[there[0].long()]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert not gpu.handed_over
        assert there.sum().item() == 12
        assert type(there.to("cpu")) is torch.Tensor
    assert gpu.handed_over == {"item": 1, "cpu": 1}


# ------------------------------------------------------------------------------------------------------------- memory


def test_batches_follow_the_memory(pair):
    on_cpu, on_gpu = (untrained(0) for _ in range(2))
    assert tokens_at_once(on_cpu) == 2048
    to_pretended_gpu(on_gpu)
    whole = tokens_at_once(on_gpu)
    limit_memory(on_gpu, GPU_BYTES // 8)
    assert tokens_at_once(on_gpu) == pytest.approx(whole / 8, rel=0.01)
    limit_memory(on_cpu, 2**22)
    assert tokens_at_once(on_cpu) < 2048
    with pytest.raises(InputError, match="at least 1 MB"):
        limit_memory(on_cpu, 1000)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS out of memory")])
def test_half_the_memory_is_tried_when_it_runs_out(logged, error):
    model, tried = untrained(0), []

    @within_memory
    def measure(model: Any, most: int) -> int:
        tried.append(tokens_at_once(model))
        if tried[-1] > most:
            raise error
        return tried[-1]

    to_pretended_gpu(model)
    whole = tokens_at_once(model)
    assert measure(model, whole // 5) <= whole // 5
    assert len(tried) == 4
    assert len(logged) == 1
    assert "out of memory" in logged[0]
    with pytest.raises(InputError, match="--dtype"):
        measure(model, -1)


def test_other_errors_are_not_tried_again():
    @within_memory
    def measure(model: Any) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        measure(untrained(0))


def test_a_model_too_large_is_refused_with_the_numbers(monkeypatch):
    model = llama()
    size = sum(p.numel() for p in model.parameters()) * 4
    monkeypatch.setattr("copyscope.interp.models.devices.free_bytes", lambda device: int(size * 0.6))
    with pytest.raises(InputError, match=r"0\.0 GB.*dtype bfloat16"):
        check_room(model, torch.device("cuda"), "model")
    monkeypatch.setattr("copyscope.interp.models.devices.free_bytes", lambda device: size // 3)
    with pytest.raises(InputError) as refused:
        check_room(model, torch.device("cuda"), "model")
    assert "bfloat16" not in str(refused.value)
    monkeypatch.setattr("copyscope.interp.models.devices.free_bytes", lambda device: size)
    check_room(model, torch.device("cuda"), "model")


# ---------------------------------------------------------------------------------------------------- names, precision


@pytest.mark.parametrize(
    ("name", "says"),
    [("gpu", "auto, cpu, cuda"), ("cuda:99", "cuda:99"), ("meta", "auto, cpu"), ("xpu", "auto, cpu"), ("mps", "Apple")],
)
def test_a_device_that_is_not_there(name, says):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is an Apple GPU")
    for refused in (lambda: device_named(name), lambda: Compute(device=name)):
        with pytest.raises(InputError, match=says):
            refused()


def test_dtypes_by_name():
    assert dtype_named("bfloat16") is dtype_named(torch.bfloat16) is torch.bfloat16
    with pytest.raises(InputError, match="float16: give float32 or bfloat16"):
        Compute(dtype="float16")
    assert Compute().key == ()
    assert Compute(device="cpu", dtype="bfloat16").key == ("bfloat16",)


def test_bfloat16_is_within_its_bounds(tmp_path):
    folder = saved(llama(spread=0.2), tmp_path)
    exact, rounded = load_hooked(folder), load_hooked(folder, dtype=torch.bfloat16)
    assert rounded.W_E.dtype == torch.bfloat16
    assert (logit_difference(load_weights_into(rounded, folder)) or 0.0) < 0.1
    wrong = load_hooked(folder, dtype=torch.bfloat16)
    largest = max(wrong.parameters(), key=torch.numel)
    largest.mul_(3)
    with pytest.raises(InputError, match="logits differ"):
        prove_conversion(wrong, folder)
    vocab = range(5, exact.cfg.d_vocab)
    names = [name for name in BF16_ERROR if name in (*MEASURES, *ON_REQUEST)]
    one, two = (score_heads(m, names, vocab=vocab, n_prompts=4) for m in (exact, rounded))
    for name in names:
        apart = (one.filter(measure=name)["value"] - two.filter(measure=name)["value"]).abs().to_torch().max()
        assert float(apart) <= BF16_ERROR[name], name
    prompts = repeated_random_tokens(vocab, 20, 4)
    assert copying_loss(rounded, prompts).second_half == pytest.approx(
        copying_loss(exact, prompts).second_half, abs=0.02
    )
    effects = [sweep_heads(m, copying_test(vocab, m.cfg.n_ctx, 6), METHODS, repeated=prompts) for m in (exact, rounded)]
    loss = [table.filter(measure="copying_loss")["value"] for table in effects]
    assert float((loss[0] - loss[1]).abs().to_torch().max()) < 0.02


def test_bfloat16_calls_nothing_above_null_that_rounding_may_be(tmp_path):
    folder = saved(llama(spread=0.02), tmp_path)
    model = load_hooked(folder, dtype=torch.bfloat16)
    table = score_heads(model, MEASURES, vocab=range(5, model.cfg.d_vocab), n_prompts=16)
    wide = table.pivot("measure", index=["layer", "head"], values="value")
    for name in ("induction_attention", "previous_token", "duplicate_token"):
        near = wide.filter(pl.col(name) - pl.col(f"{name}_null") <= BF16_ERROR[name])
        assert near.height
        assert near[f"{name}_p"].min() == 1.0


def test_a_family_that_transformers_cannot_run_in_bfloat16(tmp_path):
    from transformers import CodeGenConfig, CodeGenForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "n_positions": 64,
        "n_ctx": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 4,
    }
    folder = saved(CodeGenForCausalLM(CodeGenConfig(**sizes, bos_token_id=None, eos_token_id=None)), tmp_path)
    with pytest.raises(InputError, match="bfloat16"):
        load_hooked(folder, dtype=torch.bfloat16)


@pytest.mark.gpu
def test_a_checkpoint_loads_onto_the_gpu(tmp_path):
    folder = saved(llama(), tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        model = load_hooked(folder, device="auto", dtype=dtype)
        assert model.W_E.device.type == "cuda"
        assert load_weights_into(model, folder).W_E.device.type == "cuda"
        with nullcontext():
            score_heads(model, ["previous_token"], vocab=range(5, 60), n_prompts=2)
