"""Scoring: other people's models (a hub series, a GGUF file), several seeds, and what is said of the null."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from copyscope.analyses.formation.nulls import above_null
from copyscope.analyses.tables.run import open_run
from copyscope.analyses.tables.run_prompts import run_prompts
from copyscope.analyses.tables.scores import score
from copyscope.interp.models.vocabulary import vocabulary_of
from copyscope.training.errors import InputError


def tiny(folder: Path, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    size: dict[str, Any] = {"vocab_size": 200, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 128}
    fields: dict[str, Any] = size | heads | changes
    config = LlamaConfig(**fields, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the hub: revisions step1 and step8 of one model."""
    for step in (1, 8):
        tiny(tmp_path / "hub" / f"step{step}", step)

    def download(name: str, revision: str, **_: object) -> str:
        folder = tmp_path / "hub" / revision
        if name != "lab/model" or not folder.is_dir():
            raise OSError("404")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_hub_series_is_scored_into_a_folder_of_its_own(hub: Path, logged: list[str]) -> None:
    result = score("lab/model@step8,step1", ["previous_token"])
    assert sorted(result.heads["step"].unique()) == [1, 8]
    assert (hub / "runs/lab--model/results/heads/step00000008.parquet").is_file()
    assert open_run("lab/model@step8,step1").name == "lab--model"
    assert [line.partition(":")[0] for line in logged] == ["step 1", "step 8"]
    local = score(str(hub / "hub"), ["previous_token"])
    assert local.heads["value"].to_list() == pytest.approx(result.heads["value"].to_list())
    assert score("lab/model@step8,step1", ["previous_token"]).heads.equals(result.heads)
    assert len(logged) == 4  # nothing computed again


def test_what_the_hub_does_not_have(hub: Path) -> None:
    with pytest.raises(InputError, match="at revision step2") as error:
        score("lab/model@step2", ["previous_token"])
    assert "\n" not in str(error.value)


def test_each_checkpoint_is_scored_by_its_own_config(tmp_path: Path) -> None:
    tiny(tmp_path / "a" / "step1", 0)
    rope = {"rope_type": "default", "rope_theta": 50.0}
    for folder in ("a", "b"):
        tiny(tmp_path / folder / "step2", 0, max_position_embeddings=100, rope_parameters=rope)
    both, alone = (score(tmp_path / folder, ["previous_token"]) for folder in ("a", "b"))
    assert both.heads["step"].unique().to_list() == [1, 2]
    second = both.heads.filter(step=2)
    assert second["value"].to_list() == pytest.approx(alone.heads["value"].to_list(), rel=1e-6)
    assert second["value"].to_list() != both.heads.filter(step=1)["value"].to_list()


def test_several_seeds_are_taken_together(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "model", 0)
    alone = [score(folder, ["previous_token", "previous_token_se"], seeds=[seed]) for seed in (3, 4)]
    both = score(folder, ["previous_token", "previous_token_se"], seeds=[3, 4])

    def values(result: object, measure: str) -> list[float]:
        heads: pl.DataFrame = getattr(result, "heads")  # noqa: B009 # a NamedTuple, read by name
        return heads.filter(measure=measure).sort("layer", "head")["value"].to_list()

    means = [values(result, "previous_token") for result in alone]
    assert values(both, "previous_token") == pytest.approx([(a + b) / 2 for a, b in zip(*means, strict=True)], rel=1e-5)
    prompts = run_prompts(open_run(folder), 128, vocabulary_of(None, 200), [3, 4])
    single = run_prompts(open_run(folder), 128, vocabulary_of(None, 200), [4])
    assert len(prompts.test.tokens) == 2 * len(single.test.tokens)
    assert torch.equal(prompts.test.tokens[len(single.test.tokens) :], single.test.tokens)
    assert prompts.test.context.diff().min() == 0
    assert torch.equal(prompts.repeated[len(single.repeated) :], single.repeated)


def test_heads_above_their_null() -> None:
    rows = [
        (8, 0, 0, "previous_token", 0.9), (8, 0, 0, "previous_token_null", 0.1), (8, 0, 0, "previous_token_p", 0.001),
        (8, 0, 1, "previous_token", 0.5), (8, 0, 1, "previous_token_null", 0.4), (8, 0, 1, "previous_token_p", 0.2),
        (1, 0, 1, "previous_token_p", 0.001), (8, 1, 1, "induction_attention", 0.9),
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=["step", "layer", "head", "measure", "value"], orient="row")
    assert above_null(table).rows() == [("previous_token", 0, 0, 0.9, 0.1, 0.001, True)]
