"""Attention in the page: prompts, where induction would look, the patterns themselves, and how much fits."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from page_reader import read
from tiny_series import HEADS, LAYERS, N_CTX, STEPS, tiny_series

from copyscope.analyses.page.attention import Models, attention_bytes, lower_triangles
from copyscope.analyses.page.budget import embed_attention, priority
from copyscope.analyses.page.build import page
from copyscope.analyses.page.head_matrices import head_matrices
from copyscope.analyses.page.payload import payload
from copyscope.analyses.page.predictions import TOP
from copyscope.analyses.page.prompts import (
    SENTENCE,
    _drawable,
    default_prompts,
    induction_targets,
    predictable_by_induction,
    typed_prompt,
)
from copyscope.analyses.page.report import report
from copyscope.analyses.page.texts import Texts, texts_of
from copyscope.analyses.tables.opening import open_run
from copyscope.analyses.tables.run import Run
from copyscope.interp.ablation.hooks import ablate_heads
from copyscope.interp.measures.circuits import head_weights
from copyscope.interp.measures.targets import targets
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.models.vocabulary import vocabulary_of
from copyscope.interp.prompts.generate import random_token_vocab
from copyscope.training.checkpoints.series import CheckpointSeries
from copyscope.training.errors import InputError


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_series(tmp_path_factory.mktemp("attention") / "tiny")


@given(st.lists(st.integers(0, 4), min_size=2, max_size=20))
def test_targets_are_those_of_prefix_matching(ids: list[int]) -> None:
    wanted = targets("prefix_matching_sum", torch.tensor([ids]))
    pairs = sorted(zip(wanted.query.tolist(), wanted.key.tolist(), strict=True))
    measured = {q for q, _ in pairs}  # the measure leaves out queries that have no other key to compare with
    assert [(q, k) for q, keys in enumerate(induction_targets(ids)) for k in keys if q in measured] == pairs


@given(st.lists(st.integers(1, 5), min_size=6, max_size=6))
def test_predictable_tokens_are_counted_as_by_hand(ids: list[int]) -> None:
    earlier = [list(pairwise(ids[: t + 1])) for t in range(len(ids) - 1)]
    count = sum((ids[t], ids[t + 1]) in earlier[t] for t in range(len(ids) - 1))
    wanted = count if 2 * len(set(ids)) >= len(ids) else 0
    assert predictable_by_induction(np.array([ids]))[0] == wanted


def test_random_tokens_come_from_where_random_prompts_draw(tmp_path: Path) -> None:
    counts = np.arange(300, dtype=np.int64) * 7919 % 101
    (tmp_path / "tokens" / "s").mkdir(parents=True)
    (tmp_path / "tokens" / "s" / "counts.bin").write_bytes(counts.tobytes())
    texts = Texts(64, replace(vocabulary_of(None, 300), special=(0,), known=np.arange(1, 300)), None)
    ours = Run(name="r", folder=tmp_path / "r", series=CheckpointSeries("r", ()), config=None, data={"store": "s"})
    assert _drawable(ours, texts) == random_token_vocab(torch.from_numpy(counts), 300, [0]).tolist()
    theirs = replace(ours, data={})
    assert _drawable(theirs, texts) == random_token_vocab(None, 300, [0]).tolist()


def test_default_prompts_are_random_tokens_twice_and_text(series: Path) -> None:
    run = open_run(series)
    texts = texts_of(run)
    repeated, sentence = default_prompts(run, texts)
    half = (len(repeated.ids) - 1) // 2
    assert repeated.ids[0] == texts.opening[0]
    assert repeated.ids[1 : 1 + half] == repeated.ids[1 + half :]
    assert len(set(repeated.ids)) == half + 1
    assert "".join(texts.words(sentence.ids)[1:]) == SENTENCE


def test_a_run_copied_without_its_tokens_keeps_prompts(series: Path) -> None:
    run = replace(open_run(series), data={"store": "gone"})
    shown = default_prompts(run, texts_of(run))
    assert [prompt.kind for prompt in shown] == ["repeated", "natural"]


def test_tokens_are_shown_whatever_they_are(series: Path) -> None:
    texts = texts_of(open_run(series))
    text = 'é\u202e\n"</script>\U0001f600'
    ids = texts.encode(text)
    words = texts.words([*ids, 299_999])
    assert words[0] == "<|endoftext|>"
    assert words[1] == "\\xc3"
    assert words[2] == "\\xa9"  # a character in two tokens
    assert "\n" in words
    assert words[-1] == "#299999"
    assert "\u202e" not in "".join(words)


def test_prompts_that_cannot_be_shown_are_refused_in_a_line(series: Path) -> None:
    texts = texts_of(open_run(series))
    with pytest.raises(InputError, match="empty"):
        texts.encode("")
    with pytest.raises(InputError, match=rf"prompt has \d+ tokens; {N_CTX - 1} fit"):
        texts.encode("x y " * N_CTX)
    with pytest.raises(InputError, match="no tokenizer"):
        texts._replace(tokenizer=None).encode("a")
    assert typed_prompt(texts, "the \ud800 cat").ids
    assert typed_prompt(texts, "a cat").id == typed_prompt(texts, "a cat").id != typed_prompt(texts, "a mat").id


def test_attention_is_the_models_own(series: Path) -> None:
    model = load_hooked(series / "step8", prove=False)
    ids = [0, *range(40, 60)]
    found = np.frombuffer(attention_bytes(model, ids), np.uint8)
    _, cache = model.run_with_cache(torch.tensor([ids]))
    at = 0
    for layer in range(LAYERS):
        for head in range(HEADS):
            pattern = cache["pattern", layer][0, head]
            for query in range(len(ids)):
                for key in range(query + 1):
                    assert abs(found[at] - 255 * pattern[query, key].item()) <= 0.51
                    at += 1
    assert at == len(found)
    with pytest.raises(InputError, match="does not fit"):
        attention_bytes(model, [300])


def test_lower_triangles_go_row_by_row() -> None:
    patterns = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    assert lower_triangles(patterns).tolist() == [[0, 3, 4, 6, 7, 8]]


def test_checkpoints_are_loaded_in_any_order_and_a_damaged_one_harms_no_other(tmp_path: Path) -> None:
    folder = tiny_series(tmp_path / "tiny", (0, 1, 8))
    run, ids = open_run(folder), [0, 40, 41, 40]
    wanted = {step: attention_bytes(load_hooked(folder / f"step{step}", prove=False), ids) for step in (0, 1, 8)}
    (folder / "step1" / "model.safetensors").write_bytes(b"\0" * 100)
    for most_bytes in (0, 1 << 30):
        models = Models(run, most_bytes)
        assert models.attention(0, ids) == wanted[0]
        with pytest.raises(InputError, match="step1"):
            models.attention(1, ids)
        assert models.attention(8, ids) == wanted[8]
        assert models.attention(0, ids) == wanted[0]
        with pytest.raises(InputError, match="no checkpoint at step 5; the nearest is 8"):
            models.attention(5, ids)


def test_the_budget_decides_how_many_checkpoints_are_embedded(series: Path) -> None:
    run = open_run(series)
    sizes, counts = [], []
    base = len(page(payload([run]).index, payload([run]).blocks).encode())
    for more in (60_000, 15_000, 0):
        found = payload([run])
        blocks = embed_attention([run], found, base + more)
        html = page(found.index, blocks)
        prompts = found.index["runs"][0]["prompts"]
        counts.append(len(prompts[0]["steps"]) if prompts else 0)
        sizes.append(len(html.encode()) - base)
        note = " ".join(found.index["left_out"])
        assert ("--max-megabytes" in note) == (counts[-1] < len(STEPS)), note
        for prompt in prompts:
            for step in prompt["steps"]:
                length = len(prompt["tokens"])
                block = blocks[f"attention/0/{prompt['id']}/{step}"]
                assert len(block) == LAYERS * HEADS * length * (length + 1) // 2
        json.loads(read(html).data["index"])
    assert counts[0] == len(STEPS) > counts[1] > counts[2] == 0
    assert sizes[0] <= 60_000
    assert sizes[1] <= 15_000 + 200  # what was left out is said in words


def test_the_most_telling_checkpoints_come_first() -> None:
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    plain = priority(steps, None)
    assert sorted(plain) == steps
    assert plain[:2] == [1024, 0]
    around = priority(steps, (64.0, 256.0))
    assert len({64, 128, 256} & set(around[:5])) > len({64, 128, 256} & set(plain[:5]))


def test_a_report_names_a_damaged_checkpoint_and_is_written_all_the_same(tmp_path: Path, logged: list[str]) -> None:
    folder = tiny_series(tmp_path / "tiny", (0, 1, 8))
    (folder / "step1" / "model.safetensors").write_bytes(b"\0" * 100)
    index = json.loads(read(report(folder).read_text()).data["index"])
    assert any("L1H1 0.17, L1H0 0.12, L0H1 0.07" in line for line in index["summary"])
    assert index["runs"][0]["prompts"][0]["steps"] == [0, 8]
    assert any("attention at step 1" in line and "step1" in line for line in logged)
    said = [line.removeprefix("left out: ").replace(str(folder), "tiny") for line in logged]
    assert index["left_out"] == said


def test_predictions_are_the_models_own_at_every_layer_and_without_a_head(series: Path) -> None:
    run = open_run(series)
    texts = texts_of(run)
    ids = [0, *range(40, 60)]
    model = load_hooked(series / "step8", prove=False)
    models = Models(run)
    found = json.loads(models.predictions(8, ids, texts.words))
    log_probs, cache = model.run_with_cache(torch.tensor([ids]))
    log_probs = log_probs[0].log_softmax(-1)
    right = log_probs[torch.arange(20), torch.tensor(ids[1:])]
    assert found["loss"] == pytest.approx((-right).tolist(), abs=1e-4)
    assert found["p"] == pytest.approx(right.exp().tolist(), abs=1e-4)
    best = log_probs[7].topk(TOP)
    assert [word for word, _ in found["top"][7]] == texts.words(best.indices.tolist())
    assert [p for _, p in found["top"][7]] == pytest.approx(best.values.exp().tolist(), abs=1e-4)
    assert len(found["top"]) == 21
    assert len(found["layers"]) == LAYERS + 1
    assert found["layers"][-1]["p"] == found["p"]  # after the last layer it is the model itself
    lens = model.unembed(model.ln_final(cache["resid_pre", 0]))[0].log_softmax(-1)
    first = lens[torch.arange(20), torch.tensor(ids[1:])]
    assert found["layers"][0]["p"] == pytest.approx(first.exp().tolist(), abs=1e-4)
    with ablate_heads(model, "L1H0"), torch.no_grad():
        ablated = model(torch.tensor([ids]))[0].log_softmax(-1)
    removed = json.loads(models.predictions(8, ids, texts.words, "L1H0"))
    assert removed["loss"] == pytest.approx((-ablated[torch.arange(20), torch.tensor(ids[1:])]).tolist(), abs=1e-4)
    assert removed["loss"] != found["loss"]
    for wrong in ([0, 10**6], []):
        with pytest.raises(InputError, match="does not fit"):
            models.predictions(8, wrong, texts.words)
    with pytest.raises(InputError, match="L7H0"):
        models.predictions(8, ids, texts.words, "L7H0")


def test_a_heads_matrices_are_its_circuits_over_the_different_tokens(series: Path) -> None:
    """Against the full matrices, built token by token; the diagonal of OV is what eigenvalue positivity sums up."""
    texts = texts_of(open_run(series))
    model = load_hooked(series / "step8", prove=False)
    ids = [0, 40, 41, 42, 40, 41]
    found = head_matrices(model, 1, 0, ids, texts.words)
    assert found["tokens"] == texts.words([0, 40, 41, 42])
    w = head_weights(model).folded()
    embedded = torch.nn.functional.rms_norm(w.W_E, (w.W_E.shape[1],), eps=0.0)
    ov = embedded @ w.W_V[1, 0] @ w.W_O[1, 0] @ w.W_U
    ov = ov - ov.mean(dim=1, keepdim=True)
    qk = (embedded @ w.W_Q[1, 0]) @ (embedded @ w.W_K[1, 0]).T / w.W_Q.shape[-1] ** 0.5
    chosen = [0, 40, 41, 42]
    assert np.array(found["ov"]) == pytest.approx(ov[chosen][:, chosen].numpy(), abs=1e-3)
    assert np.array(found["qk"]) == pytest.approx(qk[chosen][:, chosen].numpy(), abs=1e-3)
    assert len(head_matrices(model, 0, 1, range(200), texts.words)["ov"]) == 48
    with pytest.raises(InputError, match="L0H0 to L1H1"):
        head_matrices(model, 2, 0, ids, texts.words)
