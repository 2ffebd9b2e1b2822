"""Tasks of lm-evaluation-harness over a series: a local task file, our log-likelihoods against transformers' own."""

import json
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
import torch
from handmade import induction_model
from run_command import copyscope
from tiny_series import add_checkpoint
from transformers import LlamaForCausalLM

from copyscope.analyses.tables.harness import harness, harness_lines, harness_table
from copyscope.interp.models.hooked import load_hooked
from copyscope.interp.tasks.harness_model import continuations, greedy_text
from copyscope.training.errors import InputError

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed (copyscope[lm-eval])")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("series")
    for step in (1, 8):
        add_checkpoint(folder, step)
    return folder


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Which of two continuations: two questions, the first answer right."""
    rows = [
        {"q": "one two one", "choices": [" two", " one"], "gold": 0},
        {"q": "a b a", "choices": [" b", " a"], "gold": 0},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = (
        "task: tiny_copy",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}",
        "test_split: test",
        "output_type: multiple_choice",
        'doc_to_text: "{{q}}"',
        'doc_to_choice: "{{choices}}"',
        'doc_to_target: "{{gold}}"',
        'target_delimiter: ""',
        "metric_list: [{metric: acc}]",
    )
    path = tmp_path / "tiny.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_log_likelihoods_are_those_of_transformers(series: Path) -> None:
    model = load_hooked(series / "step8")
    plain = LlamaForCausalLM.from_pretrained(series / "step8")
    pairs = [([5, 6, 7], [8, 9]), ([0, 4], [3]), (list(range(1, 80)), [11, 12]), ([], [7, 8])]
    found = continuations(model, pairs, 0)
    for (before, after), (value, greedy) in zip(pairs, found, strict=True):
        opened = before if before[:1] == [0] else [0, *before]
        whole = torch.tensor([[*opened, *after][-65:]])  # n_ctx is 64, and the last token is only predicted
        logprobs = plain(whole[:, :-1]).logits[0].log_softmax(1)[-len(after) :]
        assert value == pytest.approx(logprobs[range(len(after)), after].sum().item(), abs=1e-3)
        assert greedy == (logprobs.argmax(1).tolist() == after)


def test_what_an_induction_head_writes() -> None:
    class Words:
        eos_token_id = 399

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [int(word) for word in text.split()]

        def decode(self, tokens: list[int]) -> str:
            return " ".join(map(str, tokens))

    def written(**how: object) -> str:
        return greedy_text(induction_model(), Words(), "11 12 13 14 11", how, 0)

    assert written(max_gen_toks=3) == "12 13 14"
    assert written(max_gen_toks=9, until=["14"]) == "12 13 "


def test_results_as_a_table() -> None:
    results = {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    }
    table = harness_table(results)
    assert table.rows() == [("arc", "", "acc", 0.5), ("arc", "", "acc_se", 0.1), ("arc", "strict", "em", 1.0)]
    assert harness_lines(table.with_columns(step=3)) == ["arc: acc 0.500 ± 0.100", "arc strict: em 1.000"]


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_harness_one_line_says_what_to_install(
    series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copyscope(monkeypatch, "tasks", str(series), "--lm-eval", "arc_easy", "--quiet") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "copyscope[lm-eval]" in line
    assert copyscope(monkeypatch, "tasks", str(series), "--lm-eval", "arc_easy", "--heads", "--quiet") == 2


@needs_harness
def test_a_local_task_at_every_checkpoint(
    series: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert copyscope(monkeypatch, "tasks", str(series), "--lm-eval", str(task), "--quiet") == 0
    assert any(line.startswith("tiny_copy: acc ") for line in capsys.readouterr().out.splitlines())
    stored = {step: series / f"results/tasks/lm-eval/step{step:08}.parquet" for step in (1, 8)}
    table = pl.concat([pl.read_parquet(path) for path in stored.values()])
    assert table.columns == ["run", "step", "tokens", "task", "variant", "measure", "value"]
    accuracy = dict(table.filter(measure="acc").select("step", "value").iter_rows())
    for step, value in accuracy.items():
        model = load_hooked(series / f"step{step}")
        assert model.tokenizer is not None
        right = 0
        for q, a, b in (("one two one", " two", " one"), ("a b a", " b", " a")):
            ids = [model.tokenizer.encode(text, add_special_tokens=False) for text in (q, q + a, q + b)]
            one, other = continuations(model, [(ids[0], ids[i][len(ids[0]) :]) for i in (1, 2)], 0)
            right += one[0] > other[0]
        assert value == right / 2
    before = stored[8].stat().st_ino
    assert harness(series, [str(task)]).equals(table)
    assert stored[8].stat().st_ino == before
    task.write_text(task.read_text() + "num_fewshot: 0\n")
    harness(series, [str(task)], [8])
    assert stored[8].stat().st_ino != before
    with pytest.raises(InputError, match="no such file"):
        harness(series, ["lost.yaml"])
